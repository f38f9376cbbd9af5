"""Overlays: predictions drawn on their photos, one picture per garment, and a contact sheet."""

import io
import itertools
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from glefld import storage
from glefld.data.photos import open_photo, to_rgb, upright
from glefld.errors import BadPhoto
from glefld.schema import LandmarkSet, Visibility
from glefld.scoring.draw import Tile, contact_sheet, overlay
from glefld.scoring.tables import MOST_COLUMNS
from pipelines.infer.inputs import InputPhoto
from pipelines.infer.run import InferencePlan, InferOptions, make_plan, output_at

#: Parquet readers skip it for its underscore.
FOLDER = "_overlays"
COLUMNS = 5
#: Maximum number of pictures on the contact sheet.
SHEET = 30


def write_overlays(options: InferOptions, output: str, number: int) -> str | None:
    """Draw the first ``number`` successful predictions. Returns the contact sheet's URL, or None if there are none.

    Raises UserError if the input has changed since the predictions were made.
    """
    plan = make_plan(options, output)
    try:
        return _write_overlays(plan, output, number)
    finally:
        storage.remove_tree(output_at(output).staging)  # a compressed tar is unpacked there


def _write_overlays(plan: InferencePlan, output: str, number: int) -> str | None:
    output_at(output).reports(plan.paths(), plan.key)
    tiles: list[Tile] = []
    landmark_set = plan.card.labels.landmark_set
    for i, (row, photo) in enumerate(itertools.islice(_predicted(plan, output), number)):
        picture, offset = _upright(photo)
        drawn = overlay(
            picture,
            landmark_set,
            predicted=np.array(row["landmarks"]).reshape(-1, 2) - offset,
            score=np.array(row["score"]),
            visibility=_seen(landmark_set, row),
            box=np.array(row["box"]) - np.tile(offset, 2),
            names=len(landmark_set) <= MOST_COLUMNS,
        )
        stem = PurePosixPath(row["uri"].rpartition("::")[2]).stem
        _write(drawn, storage.join(output, FOLDER, f"{i:05d}-{stem}-{row['garment']}.jpg"))
        if len(tiles) < SHEET:
            tiles.append((drawn, stem))
    if not tiles:
        return None
    url = storage.join(output, FOLDER, "contact-sheet.jpg")
    title = f"predictions, {plan.card.model} of {plan.card.dataset}"
    _write(contact_sheet(tiles, COLUMNS, title=title, legend="predictions"), url)
    return url


def _predicted(plan: InferencePlan, output: str) -> Iterator[tuple[dict[str, Any], InputPhoto]]:
    """Yield the rows without an error, in order, with their photos."""
    for path, planned in plan.shards():
        with storage.open(storage.join(output, path)) as file:
            predictions = pq.read_table(file)
        ok = pc.equal(predictions["status"], "ok")
        if plan.options.detects:
            places = pc.index_in(predictions.filter(ok)["uri"], value_set=planned["uri"])
            found = planned.take(places)
        else:
            found = planned.filter(ok)
        rows = predictions.filter(ok).to_pylist()
        if "garment_type" in found.column_names:
            types = found["garment_type"].to_pylist()
            rows = [{**row, "known_type": code} for row, code in zip(rows, types, strict=True)]
        yield from zip(rows, plan.input.photos.read(found), strict=True)


def _seen(landmark_set: LandmarkSet, row: dict[str, Any]) -> np.ndarray | None:
    """Return visibility codes [K] that leave out absent landmarks; None if nobody tells which these are.

    An ingested data set knows its garments' types; else the model's answer counts.
    """
    for garment in landmark_set.garment_types:
        if garment.code == row.get("known_type"):
            codes = np.full(len(landmark_set), Visibility.ABSENT)
            codes[list(garment.landmarks)] = Visibility.VISIBLE
            return codes
    return np.array(row["visibility"]) if row["visibility"] is not None else None


def _upright(photo: InputPhoto) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture, [H, W, 3] uint8, upright by its EXIF, and its top left corner in the photo, [2]."""
    assert not isinstance(photo.data, BadPhoto), "a photo that was predicted can no longer be read"
    with open_photo(photo.data) as image:
        return np.asarray(to_rgb(upright(image))), np.array(photo.origin)


def _write(picture: Image.Image, url: str) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    storage.write_bytes(url, buffer.getvalue())
