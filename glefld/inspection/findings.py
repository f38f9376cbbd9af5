"""All that is found in a data set: its rows, pictures, copies and rejects, and what is probably wrong."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from glefld.inspection import copies, rejects, suspects
from glefld.inspection.look import Looked, look
from glefld.inspection.rows import Readers, Rows
from glefld.inspection.suspects import Suspects
from glefld.predict import Predictor
from glefld.redaction import public_url
from glefld.schema import Manifest

#: Pairs that look alike are looked for until there are so many: pictures of one colour are all alike.
MOST_PAIRS = 10_000
#: Rejects of each reason that are shown.
SHOWN_REJECTS = 4

Tell = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Copy:
    """Two rows that show the same photo."""

    first: int
    second: int
    bits: int
    """By how many bits their hashes differ; -1 if their bytes are the same."""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All that was found in a data set."""

    data: str
    readers: Readers
    rows: Rows
    looked: Looked
    suspects: Suspects
    across: list[np.ndarray]
    """Groups of rows whose photos are the same bytes, in several splits."""
    within: list[np.ndarray]
    """The same within one split."""
    near: list[Copy]
    """Pairs across splits that look the same, one for each pair of photos, but for those of the same bytes."""
    rejected: dict[str, list[rejects.Reject]]

    @property
    def manifest(self) -> Manifest:
        return self.readers.manifest

    @property
    def alike(self) -> int:
        """How many photos of a split look like one of a split before it."""
        return len({int(self.rows.photo[copy.second]) for copy in self.near})


def inspect(
    data: str,
    readers: Readers,
    model: Predictor | None,
    most_rows: int,
    most_pictures: int,
    progress: Callable[[str], AbstractContextManager[Tell]],
) -> Inspection:
    """Read about so many rows and pictures of each split. progress: begins what is told done and in all."""
    landmark_set = readers.manifest.landmark_set
    with progress("rows") as tell:
        rows = readers.read(most_rows, tell)
    with progress("pictures") as tell:
        looked = look(readers, rows, most_pictures, model, tell)
    across, within = copies.exact(rows.content, rows.photo, rows.split)
    return Inspection(
        data,
        readers,
        rows,
        looked,
        suspects.find(rows, landmark_set, looked.places, looked.answers),
        across,
        within,
        _near(rows, looked),
        rejects.read(data, SHOWN_REJECTS) if readers.manifest.rejects else {},
    )


def _near(rows: Rows, looked: Looked) -> list[Copy]:
    """Return the pairs that look the same. Of two photos with several garments each, the two rows that differ least."""
    found: list[Copy] = []
    split = rows.split[looked.places]
    for index in range(1, len(rows.splits)):
        first, second = looked.places[split < index], looked.places[split == index]
        of_photos: dict[tuple[int, int], Copy] = {}
        for a, b, bits in copies.near(looked.hashes[split < index], looked.hashes[split == index]):
            copy = Copy(int(first[a]), int(second[b]), bits)
            photos = int(rows.photo[copy.first]), int(rows.photo[copy.second])
            if photos not in of_photos and len(of_photos) == MOST_PAIRS:
                break
            if photos not in of_photos or bits < of_photos[photos].bits:
                of_photos[photos] = copy
        found += [c for c in of_photos.values() if rows.content[c.first] != rows.content[c.second]]
    return sorted(found, key=lambda copy: (copy.bits, copy.first, copy.second))


def suspect_rows(found: Inspection) -> list[dict[str, Any]]:
    """Return all that is probably wrong, a row each, with the ids that a person needs to mend it."""
    listed: list[tuple[int, str, str, float]]
    listed = [(s.place, s.kind, s.what, s.score) for some in found.suspects.found.values() for s in some]
    listed += [
        (
            int(place),
            "copy",
            f"the same photo {len(group)} times in {len(set(found.rows.split[group]))} splits",
            0.0,
        )
        for group in found.across
        for place in group
    ]
    others = found.readers.fetch(found.rows, [copy.first for copy in found.near], ["sample_id"])
    listed += [
        (copy.second, "near_copy", f"looks like {others[copy.first]['sample_id']}", float(copy.bits))
        for copy in found.near
    ]
    ids = found.readers.fetch(found.rows, [place for place, *_ in listed], ["sample_id", "source_uri"])
    return [
        {
            "sample_id": ids[place]["sample_id"],
            "split": found.rows.splits[found.rows.split[place]],
            "source_uri": public_url(ids[place]["source_uri"]),
            "finding": kind,
            "what": what,
            "score": round(score, 4),
        }
        for place, kind, what, score in listed
    ]
