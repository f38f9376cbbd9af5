"""Parquet files with one row per garment, and ``labels.json``: the layout for sets too large for text lists.

Columns: ``photo`` (its name in the archives beside the files) or ``uri`` (the photo's own place), ``split``, ``box``
(x1 y1 x2 y2), ``landmarks`` (x y of each) and ``visibility``; optional: ``garment`` (its number in the photo, default
0), ``garment_type``, ``variation``, ``category``, ``attributes``, ``view``, ``area``. Types and units are those of a
data set, but positions are in the photo. ``labels.json`` has the fields of a manifest: ``landmark_set``, and if the
rows have them ``categories``, ``attributes``, ``attribute_types``. Rows are streamed: they need not fit into memory.
"""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glefld.datasets.lists import ANNOTATIONS, LARGEST, Annotations, ListFiles
from glefld.errors import UserError
from glefld.schema import SPLITS, VIEWS, Labels, Visibility

LABELS = "labels.json"
REQUIRED = ("split", "box", "landmarks", "visibility")
OPTIONAL = ("garment", "garment_type", "variation", "category", "attributes", "view", "area")
BATCH_ROWS = 1 << 14


def read(lists: ListFiles) -> Annotations:
    """Read the labels; rows are read as they are used. UserError names the file, and the first row that is wrong."""
    if (opened := lists.files.get(f"/{LABELS}")) is None:
        raise UserError(f"{lists.source}: the file {LABELS} is missing, which names the landmarks")
    with opened() as file:
        data = file.read()
    try:
        fields = {"categories": [], "attributes": [], "attribute_types": []} | json.loads(data)
        labels = Labels.from_json(fields)
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise UserError(
            f"{lists.source}: {LABELS} must have the fields of a manifest, such as landmark_set ({error!r})"
        ) from error
    return Annotations(pa.RecordBatchReader.from_batches(ANNOTATIONS, _rows(lists, labels)), labels)


def _rows(lists: ListFiles, labels: Labels) -> Iterator[pa.RecordBatch]:
    for name, opened in lists.tables.items():
        with opened() as raw:
            try:
                file = pq.ParquetFile(raw)
                columns = file.schema_arrow.names
                key = "photo" if "photo" in columns else "uri"
                if missing := [column for column in (key, *REQUIRED) if column not in columns]:
                    raise UserError(f"{name} has no column {missing[0]}; it has {', '.join(columns)}")
                before = 0
                wanted = [key, *REQUIRED, *(column for column in OPTIONAL if column in columns)]
                if twice := [column for column in wanted if columns.count(column) > 1]:
                    raise UserError(f"{name} has the column {twice[0]} more than once: leave one of them")
                for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                    yield _converted(batch, key, labels, name, before)
                    before += len(batch)
            except UserError:
                raise
            except (
                pa.ArrowException,
                ValueError,
            ) as error:  # damaged, or a value that does not fit its column
                raise UserError(f"{name} cannot be read: {error}") from error


def _converted(batch: pa.RecordBatch, key: str, labels: Labels, name: str, before: int) -> pa.RecordBatch:
    """Return rows as the schema ``ANNOTATIONS`` has them; UserError names the first that is wrong."""

    def require(good: pa.Array | np.ndarray, what: str) -> None:
        """UserError for the first row that is not good. Null counts as good."""
        wrong = np.flatnonzero(~np.asarray(pc.fill_null(pa.array(good), True)))
        if len(wrong):
            raise UserError(f"{name}, row {before + int(wrong[0]) + 1}: {what}")

    if pa.types.is_list(batch["box"].type) or pa.types.is_large_list(batch["box"].type):
        require(pc.equal(pc.list_value_length(batch["box"]), 4), "box must have four numbers")
    found = {
        field.name: batch[field.name].cast(field.type)
        for field in ANNOTATIONS
        if field.name in batch.schema.names
    }
    photos = batch[key].cast(pa.string())
    photos.validate(full=True)  # text that is not UTF-8
    require(photos.is_valid(), f"{key} is empty")
    split, view, types = found["split"], found.get("view"), found.get("garment_type")
    require(pc.is_in(split, value_set=pa.array([*SPLITS, None])), f"split must be one of {', '.join(SPLITS)}")
    if view is not None:
        require(pc.is_in(view, value_set=pa.array([*VIEWS, None])), f"view must be one of {', '.join(VIEWS)}")
    for column, low, high, of in (
        ("variation", 1, 5, "FLD's types"),
        ("category", 1, len(labels.categories), f"the numbers of {LABELS}'s categories"),
    ):
        if (values := found.get(column)) is not None:
            within = pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high))
            require(within, f"{column} must be {low} to {high}, {of}")
    if (area := found.get("area")) is not None:
        require(pc.and_(pc.greater_equal(area, 0.0), pc.is_finite(area)), "area must be a number from 0")
    if (attributes := found.get("attributes")) is not None:
        indices = pc.fill_null(attributes.flatten(), -1).to_numpy()
        known = np.ones(len(batch), bool)
        known[
            pc.list_parent_indices(attributes).to_numpy()[(indices < 0) | (indices >= len(labels.attributes))]
        ] = False
        require(
            known,
            f"attributes must be indices of the {len(labels.attributes)} attributes in {LABELS}, from 0",
        )
    landmark_set = labels.landmark_set
    k = len(landmark_set)
    counts = np.full(len(batch), k)
    if types is not None:
        sizes = {garment.code: len(garment.landmarks) for garment in landmark_set.garment_types}
        codes = pa.array(list(sizes), pa.int8())
        require(pc.is_in(types, value_set=codes), f"garment_type must be one of {sorted(sizes)}")
        place = pc.index_in(types, value_set=codes)
        own = pc.take(pa.array(list(sizes.values()), pa.int64()), place)
        counts = pc.fill_null(own, k).to_numpy(zero_copy_only=False)
    visibility, landmarks = found["visibility"], found["landmarks"]
    lengths = pc.list_value_length(visibility)
    fits = pc.or_(pc.equal(lengths, k), pc.equal(lengths, pa.array(counts)))
    require(fits, f"visibility must have {k} codes, or those of its garment type's landmarks")
    require(
        pc.equal(pc.fill_null(pc.list_value_length(landmarks), -1), pc.multiply(lengths, 2)),
        "landmarks must have two numbers for each code of visibility",
    )
    owner = pc.list_parent_indices(visibility).to_numpy()
    seen = pc.fill_null(visibility.flatten(), -1).to_numpy()
    good = np.ones(len(batch), bool)
    good[owner[(seen < 0) | (seen > max(Visibility))]] = False
    require(good, "a code of visibility must be 0 to 3")
    # Rows without visibility are incomplete and become rejects, whatever their landmarks are.
    with_codes = landmarks.filter(visibility.is_valid())
    points = pc.fill_null(with_codes.flatten(), np.nan).to_numpy().reshape(-1, 2)
    shown_ = seen < Visibility.CUT_OFF
    good[owner[shown_ & ~(np.abs(points) <= LARGEST).all(axis=1)]] = False
    require(good, "a landmark that is visible or occluded needs a position in the photo")
    points = np.where(shown_[:, None], points, np.nan).astype(np.float32)
    box = found["box"]
    corners = pc.fill_null(box.flatten(), np.nan).to_numpy()
    inside = np.ones(len(batch), bool)
    inside[np.flatnonzero(box.is_valid())] = (np.abs(corners.reshape(-1, 4)) <= LARGEST).all(axis=1)
    require(inside, "a corner of the box is not a number or beyond any photo")
    number = (
        batch["garment"].cast(pa.int32()) if "garment" in batch.schema.names else pa.array([0] * len(batch))
    )
    number = pc.fill_null(number, 0)
    require(pc.greater_equal(number, 0), "garment must be a number from 0")
    offsets = pa.array(2 * np.concatenate([[0], np.cumsum(pc.fill_null(lengths, 0).to_numpy())]), pa.int32())
    found |= {
        "sample_id": pc.binary_join_element_wise(
            pc.binary_join_element_wise("table", photos, "/"), number.cast(pa.string()), "#"
        ),
        "photo": photos,
        "duplicate": pa.array(np.zeros(len(batch), bool)),
        "landmarks": pa.ListArray.from_arrays(offsets, pa.array(points.ravel(), from_pandas=False)),
    }
    arrays = [found.get(field.name, pa.nulls(len(batch), field.type)) for field in ANNOTATIONS]
    return pa.record_batch(arrays, schema=ANNOTATIONS)
