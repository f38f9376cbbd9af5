"""One pass over the pictures of some rows: a hash of each, and a model's answer if there is a model."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from glefld.inspection import answers, copies
from glefld.inspection.answers import Answers
from glefld.inspection.rows import Group, Readers, Rows, spread
from glefld.predict import Predictor
from glefld.prediction import Crop


class Looked(NamedTuple):
    """What was seen of n pictures."""

    places: np.ndarray  # [n] of the rows in ``Rows``
    hashes: np.ndarray  # [n, 4] uint64
    answers: Answers | None


def look(
    readers: Readers, rows: Rows, most: int, model: Predictor | None, tell: Callable[[int, int], None]
) -> Looked:
    """Look at the pictures of about ``most`` rows of each split. tell: is told pictures done and pictures in all."""
    chosen: list[Group] = []
    for split in rows.splits:
        groups = [group for group in rows.groups if group.split == split]
        chosen += [groups[i] for i in spread([g.rows.stop - g.rows.start for g in groups], most)]
    total = sum(group.rows.stop - group.rows.start for group in chosen)
    hashes: list[np.ndarray] = []
    columns = answers.COLUMNS if model is not None else ["image"]
    tell(0, total)

    def crops() -> Iterator[Crop]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for split in rows.splits:
                numbers = [group.number for group in chosen if group.split == split]
                for table in readers.of[split].tables(columns, numbers):
                    thumbnails = pool.map(copies.thumbnail, table["image"].to_pylist())
                    hashes.extend(map(copies.perceptual_hash, thumbnails))
                    if model is not None:
                        yield from answers.crops(table, model.card.input_size)
                    else:
                        tell(len(hashes), total)

    found: list[Any] = []
    if model is None:
        assert next(crops(), None) is None
    else:
        for answer in model.predict(crops()):
            found.append(answer)
            tell(len(found), total)
    return Looked(
        np.concatenate([np.arange(group.rows.start, group.rows.stop) for group in chosen]),
        np.stack(hashes),
        answers.collect(found, len(readers.manifest.landmark_set)) if model is not None else None,
    )
