"""Damaged inputs of every kind: each gives the right rows, counted rejects, or one line, and never a traceback."""

import copy
import csv
import dataclasses
import io
import json
import math
import os
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from glefld import storage
from glefld.data import lossless
from glefld.data import photos as photos_module
from glefld.data.crops import Crops
from glefld.data.host import decode
from glefld.data.photos import decode_rgb
from glefld.datasets import Dataset, read_annotations
from glefld.datasets.deepfashion2 import read_photo
from glefld.datasets.lists import ListFiles
from glefld.errors import BadBox, BadPhoto, UserError
from glefld.models import checkpoint
from glefld.predict import Predictor
from glefld.prediction import Bad, Crop, Prediction, prepare
from pipelines.infer.inputs import open_input
from pipelines.ingest import run as ingest_run
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.shard import rejects_path, shard_path, write_shard
from tests import dots
from tests.raw_layouts import (
    Row,
    deepfashion2_item,
    fine_lists,
    fld_lists,
    jpeg,
    listing,
    rows,
    write_archive,
    write_files,
)

#: More inputs take longer and prove more: `GLEFLD_FUZZ_INPUTS=5000 pytest tests/pipelines/test_fuzz.py`.
INPUTS = int(os.environ.get("GLEFLD_FUZZ_INPUTS", "200"))
#: The printed seed of a failed run repeats it: `GLEFLD_FUZZ_SEED=...`.
SEED = int(os.environ.get("GLEFLD_FUZZ_SEED", "0")) or int(np.random.default_rng().integers(1, 1 << 31))
#: What ends a job in one line.
ONE_LINE = (UserError, OSError)

Rng = np.random.Generator
WHOLE, COUNTED, REFUSED = "as it should be", "with rejects or error rows", "refused in one line"


def choice(rng: Rng, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def mutated(rng: Rng, data: bytes, tokens: Sequence[bytes], where: Sequence[range] = ()) -> bytes:
    """The data with one to three changes, most of them within ``where``, if that is given."""
    for _ in range(int(rng.integers(1, 4))):
        if not data:
            return data
        place = choice(rng, where) if where and rng.random() < 0.8 else range(len(data))
        at = min(choice(rng, place), len(data) - 1)
        end = min(len(data), at + int(rng.integers(1, 1 + choice(rng, (1, 4, 40)))))
        token = choice(rng, tokens)
        data = choice(
            rng,
            (
                lambda d, at, end, token: d[:at] + bytes([d[at] ^ (1 << int(rng.integers(8)))]) + d[at + 1 :],
                lambda d, at, end, token: d[:at] + rng.bytes(end - at) + d[end:],
                lambda d, at, end, token: d[:at] + token + d[at + len(token) :],
                lambda d, at, end, token: d[:at] + token + d[at:],
                lambda d, at, end, token: d[:at] + d[end:],
                lambda d, at, end, token: d[:at] + d[at:end] + d[at:],
                lambda d, at, end, token: d[:at],
            ),
        )(data, at, end, token)
    return data


def one_line(error: Exception, most: int) -> str:
    assert len(str(error)) < most
    return REFUSED


# Archives


LISTED = [Row(f"img/{i}.jpg", garment_type=i % 3 + 1) for i in range(6)]
PHOTOS = {row.photo: jpeg(i) for i, row in enumerate(LISTED)}
MEMBERS = {**PHOTOS, "img/notes.txt": b"notes " * 9}
INTEGERS = [
    number.to_bytes(size, "little")
    for size in (2, 4, 8)
    for number in (0, 1, 6, 1 << 15, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1)
]


def try_archive(path: Path, check: Callable[[str, bytes], bool], members: int | None) -> str:
    """Infer and ingest it.

    check: whether a member's bytes are right. members: how many must be rows or skipped, if that is known.
    """
    outcomes = Counter()
    try:
        found = open_input(str(path), None, None, str(path.parent / "staging"))
        photos = [photo.data for photo in found.photos.read(found.rows.read(0))]
        assert len(photos) == len(found.rows)
        keys = list(
            zip(found.rows.read(0)["uri"].to_pylist(), found.rows.read(0)["garment"].to_pylist(), strict=True)
        )
        assert len(set(keys)) == len(keys)
        if members is not None:
            assert len(found.rows) + sum(found.skipped.values()) == members
        for (uri, _), data in zip(keys, photos, strict=True):
            assert isinstance(data, BadPhoto) or check(uri.rpartition("::")[2], data)
            outcomes[COUNTED if isinstance(data, BadPhoto) or is_bad(data) else WHOLE] += 1
    except ONE_LINE:
        outcomes[REFUSED] += 1
    try:
        outcomes[COUNTED if ingested(path.parent, path.parent) else WHOLE] += 1
    except ONE_LINE:
        outcomes[REFUSED] += 1
    return next(outcome for outcome in (REFUSED, COUNTED, WHOLE) if outcomes[outcome])


def is_bad(data: bytes) -> bool:
    """Whether inference would give an error row for the photo."""
    try:
        decode(prepare(data, 64).picture)
    except BadPhoto:
        return True
    return False


def ingested(source: Path, folder: Path) -> int:
    """Ingest a source of FLD's layout as its tasks do. Rows and rejects are all that is listed; returns the rejects."""
    options = IngestOptions("fld", str(source))
    output = str(folder.with_name(f"{folder.name}-output"))
    storage.remove_tree(output)
    plan = ingest_run.prepare(options, output)
    settings = ingest_run.shard_settings(plan, output)
    kept, rejects = 0, sum(plan.rejects.values())
    for shard in plan.shards:
        write_shard({**shard.item, "killers": []}, settings, frozenset())
        kept += pq.read_metadata(f"{output}/{shard_path(shard.split, shard.index)}").num_rows
        path = Path(output, rejects_path(shard.split, shard.index))
        rejects += pq.read_metadata(path).num_rows if path.exists() else 0
    assert kept + rejects == plan.rows_in >= len(LISTED)
    return rejects


def zip_bytes(folder: Path, members: Mapping[str, bytes] = MEMBERS) -> tuple[bytes, list[range]]:
    """A zip's bytes and where its structure is: the headers of its members, its directory and its end record."""
    path = write_archive(folder / "good.zip", members, zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        headers = [range(m.header_offset, m.header_offset + 46) for m in archive.infolist()]
        directory = range(archive.start_dir, len(data) - 22)
    end = range(len(data) - 22, len(data))
    return data, [*headers, *[directory] * 8, *[end] * 6]


def try_zip(rng: Rng, folder: Path) -> str:
    data, structure = cached(zip_bytes, folder)
    (folder / "img.zip").write_bytes(mutated(rng, data, INTEGERS, structure))
    # Sums protect a zip's bytes, and the end record its number of members.
    return try_archive(folder / "img.zip", lambda _, found: found in MEMBERS.values(), len(MEMBERS))


#: Kinds of members, but for those that hold another member's name or size.
TAR_KINDS = b"01234567 \0SDMVQ"
#: Where a header's fields are and how long: name, mode, size, time, kind, link's target, magic and prefix.
TAR_FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155))


def try_tar(rng: Rng, folder: Path) -> str:
    """Half of the changes are to a header whose sum is put right again."""
    names = list(MEMBERS)
    stream = io.BytesIO()
    sized = False
    with tarfile.open(
        fileobj=stream, mode="w", format=choice(rng, (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    ) as archive:
        for name, data in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if rng.random() < 0.1:
                info.type, info.linkname, info.size = choice(rng, (b"1", b"2")), choice(rng, names), 0
            archive.addfile(info, io.BytesIO(data))
    data = stream.getvalue()
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    if rng.random() < 0.5:
        data = mutated(rng, data, INTEGERS, [range(at, at + 512) for at in headers])
    else:
        at = choice(rng, headers)
        block = bytearray(data[at : at + 512])
        field, width = choice(rng, TAR_FIELDS)
        # A size that is a lie may hide members, and so may a kind that has no data.
        sized = field in (124, 156)
        if field == 156:
            block[field] = choice(rng, TAR_KINDS)
        elif field == 124 and rng.random() < 0.5:
            number = choice(rng, (-1, -512, 0, 512, 1 << 20, 1 << 40, 1 << 62))
            block[field : field + width] = b"\xff" * 4 + number.to_bytes(8, "big", signed=True)
        else:
            block[field : field + width] = rng.bytes(width)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        data = data[:at] + bytes(block) + data[at + 512 :]
    (folder / "img.tar").write_bytes(data)
    return try_archive(folder / "img.tar", lambda *_: True, None if sized else len(MEMBERS))


def everything(folder: Path) -> list[tuple[str, bytes, list[range]]]:
    """An archive of each kind that holds the lists too: its name, its bytes and where its structure is."""
    members = {name: text.encode() for name, text in fld_lists(LISTED).items()} | PHOTOS
    data = write_archive(folder / "good.tar", members).read_bytes()
    headers = [
        range(at, at + 512) for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"
    ]
    return [("all.zip", *zip_bytes(folder, members)), ("all.tar", data, headers)]


def try_all_in_one(rng: Rng, folder: Path) -> str:
    name, data, structure = choice(rng, cached(everything, folder))
    (folder / name).write_bytes(mutated(rng, data, INTEGERS, structure))
    try:
        return COUNTED if ingested(folder / name, folder) else WHOLE
    except ONE_LINE:
        return REFUSED


def try_names(rng: Rng, folder: Path) -> str:
    """Names of random bytes, in a folder, a tar and, as text, a zip."""
    allowed = [byte for byte in range(1, 256) if byte not in b"/"]
    raw = {bytes(choice(rng, allowed) for _ in range(int(rng.integers(1, 9)))) + b".jpg" for _ in range(8)}
    raw |= {b"good.jpg"}
    kind = choice(rng, ("folder", "tar", "zip"))
    place = folder / f"{kind}-{int(rng.integers(1 << 40))}"
    names = [os.fsdecode(name) for name in raw]
    if kind == "folder":
        place.mkdir()
        for name in names:
            (place / name).write_bytes(PHOTOS["img/0.jpg"])
    elif kind == "tar":
        place = write_archive(place.with_suffix(".tar"), dict.fromkeys(names, PHOTOS["img/0.jpg"]))
    else:
        names = [name.decode("cp437") for name in raw]
        place = write_archive(place.with_suffix(".zip"), dict.fromkeys(names, PHOTOS["img/0.jpg"]))
    found = open_input(str(place), None, None, "")
    assert len(found.rows) + sum(found.skipped.values()) == len(raw)
    photos = [photo.data for photo in found.photos.read(found.rows.read(0))]
    assert all(photo == PHOTOS["img/0.jpg"] for photo in photos if not isinstance(photo, BadPhoto))
    for text in found.rows.read(0)["uri"].to_pylist():
        text.encode()
    return COUNTED if any(isinstance(photo, BadPhoto) for photo in photos) else WHOLE


# Lists


TOKENS = [
    *(
        b"1_0",
        b"1e39",
        b"-1",
        b"nan",
        b"inf",
        b"1e400",
        b"1" + b"0" * 400,
        b"1" * 5000,
        b"0x10",
        b"+7",
        b".5",
        b"5.",
    ),
    *(
        "٣".encode(),
        b"train",
        b"val",
        b"train val",
        b"3",
        b"0",
        b"999",
        b"70000",
        b"img/0.jpg",
        b"x_1",
        b"image_name",
    ),
    *(
        b" ",
        b"\t",
        b"\n",
        b"\r",
        b"\r\n",
        b"\0",
        b"\x1c",
        "\x85".encode(),
        "\xa0".encode(),
        b"\xff",
        b"\xef\xbb\xbf",
    ),
    *(b"variation_type", b"landmark_visibility_1", b"2 000 000", b"landmark_location_x_2"),
]


def lists_of(dataset: Dataset) -> dict[str, str]:
    listed = rows(6)
    names = [row.photo for row in listed]
    vocabulary = {
        "list_category_cloth.txt": listing("category_name category_type", ["Anorak  1", "Jeans   2"]),
        "list_attr_cloth.txt": listing("attribute_name attribute_type", ["a-line 3", "a b c 1", "d 2"]),
    }
    if dataset == "fld":
        return fld_lists(listed)
    if dataset == "deepfashion":
        return (
            fld_lists(listed)
            | {f"Anno/{name}": text for name, text in vocabulary.items()}
            | {
                "Anno/list_category_img.txt": listing("image_name category_label", [f"{n} 2" for n in names]),
                "Anno/list_attr_img.txt": listing(
                    "image_name attribute_labels", [f"{n} 1 -1 0" for n in names]
                ),
                "Anno/list_view.txt": listing("image_name view", [f"{n} side" for n in names]),
            }
        )
    files = fine_lists(listed) | {f"Anno_fine/{name}": text for name, text in vocabulary.items()}
    return files | {
        "Anno_fine/train_cate.txt": "1\n" * 6,
        "Anno_fine/train_attr.txt": "0 1 0\n" * 6,
        "Anno_fine/train_view.txt": "back\n" * 6,
    }


def in_memory(files: Mapping[str, bytes]) -> ListFiles:
    return ListFiles("raw", {name.lower(): partial(io.BytesIO, data) for name, data in files.items()})


def by_photo(table: pa.Table) -> dict[str, str]:
    """Each row as text, NaN included, by its photo and which row of that photo it is."""
    return {f"{row['photo']} {row['duplicate']}": str(row) for row in table.to_pylist()}


def try_lists(rng: Rng, folder: Path) -> str:
    dataset: Dataset = choice(rng, ("fld", "deepfashion", "deepfashion-fine"))
    good = {name: text.encode() for name, text in lists_of(dataset).items()}
    expected = by_photo(read_annotations(dataset, in_memory(good)).table)
    name = choice(rng, sorted(good))
    files = {**good, name: mutated(rng, good[name], TOKENS)}
    try:
        annotations = read_annotations(dataset, in_memory(files))
    except ONE_LINE as error:
        return one_line(error, 600)
    found = by_photo(annotations.table)
    assert len(found) == len(annotations.table)
    for row in annotations.table.to_pylist():
        numbers = [*(row["box"] or []), *(v for v in row["landmarks"] or [] if not math.isnan(v))]
        assert all(map(math.isfinite, numbers))
        assert row["split"] in (None, "train", "val", "test")
    before, after = good[name].splitlines(), files[name].splitlines()
    if dataset == "deepfashion-fine" or "cloth" in name:
        assert len(found) == len(expected)  # the other files say how many rows there are
        return WHOLE if found == expected else COUNTED
    # All photos that are in an unchanged line have their rows, unless the header has changed its meaning.
    assert len(found) >= len(expected)
    if before[:2] == after[:2]:
        changed = {line.split()[0].decode() for line in {*before[2:]} ^ {*after[2:]} if line.split()}
        for key, row in expected.items():
            if key.split()[0] not in changed:
                assert found[key] == row
    return WHOLE if found == expected else COUNTED


# Boxes


CSV = b"uri,x1,y1,x2,y2\n" + b"".join(b"%d.jpg,1,2,%d,40\n" % (i % 4, 20 + i) for i in range(8))


def try_boxes(rng: Rng, folder: Path) -> str:
    photos = folder / "photos"
    if not photos.exists():
        write_files(photos, {f"{i}.jpg": jpeg(i, 30, 40) for i in range(4)})
    if as_csv := rng.random() < 0.5:
        data = mutated(rng, CSV, [*TOKENS, b",", b'"', b"uri", b"x1", b"box", b"null", b"\n\n", b"0.jpg"])
    else:
        boxes = np.random.default_rng(1).integers(1, 50, (8, 4))
        table = pa.table({"uri": [f"{i % 4}.jpg" for i in range(8)], "box": boxes.tolist()})
        data = mutated_parquet(rng, table)
    path = folder / ("boxes.csv" if as_csv else "boxes.parquet")
    path.write_bytes(data)
    try:
        found = open_input(str(photos), str(path), None, "")
    except ONE_LINE:
        return REFUSED
    keys = set(
        zip(found.rows.read(0)["uri"].to_pylist(), found.rows.read(0)["garment"].to_pylist(), strict=True)
    )
    assert len(keys) == len(found.rows)
    if as_csv and not set(b'"\r') & set(data):
        listed = [record for record in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if record]
        assert len(found.rows) == len(listed) - 1
    outcome = WHOLE
    for photo, box in zip(
        found.photos.read(found.rows.read(0)), found.rows.read(0)["box"].to_pylist(), strict=True
    ):
        assert box is None or not any(map(math.isinf, box))
        try:
            assert not isinstance(photo.data, BadPhoto)
            decode(prepare(photo.data, 64, box).picture)
        except (AssertionError, BadBox):
            outcome = COUNTED
    return outcome


VALUES: list[Any] = [
    None,
    True,
    "1",
    [],
    [[1]],
    b"\xff",
    10**18,
    -(10**18),
    1e300,
    float("inf"),
    float("nan"),
    {"a": 1},
]


def mutated_parquet(rng: Rng, table: pa.Table) -> bytes:
    """Its bytes changed, or a column of other values, of another name or twice."""
    what = choice(rng, ("bytes", "bytes", "values", "value", "columns"))
    if what == "values":
        value = choice(rng, VALUES)
        at = int(rng.integers(2))
        table = table.set_column(at, table.column_names[at], pa.array([value] * len(table)))
    elif what == "value":
        boxes = table["box"].to_pylist()
        place = int(rng.integers(8))
        boxes[place] = choice(
            rng, [None, [], [1] * 3, [1] * 5, [None] * 4, [1, None, 3, 4], [-5, -5, 999, 999], [9, 9, 9, 9]]
        )
        table = table.set_column(1, "box", pa.array(boxes))
    elif what == "columns":
        extra = choice(rng, ("uri", "box", "x1", "image"))
        table = table.append_column(extra, table[int(rng.integers(2))])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return mutated(rng, sink.getvalue(), INTEGERS) if what == "bytes" else sink.getvalue()


# JSON


def changed_value(rng: Rng, value: Any) -> Any:
    """A JSON value with one change somewhere within it."""
    odd = [
        None,
        True,
        "1_0",
        "",
        [],
        {},
        -1,
        0,
        3,
        1e39,
        10**400,
        1.5,
        float("nan"),
        float("inf"),
        [1, 2],
        "x" * 3000,
        2**63,
    ]
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = choice(rng, sorted(value))
        found = dict(value)
        if rng.random() < 0.15:
            del found[key]
        elif rng.random() < 0.1:
            found[choice(rng, ("colour", "item0", "item", "Item1", "item7"))] = found[key]
        else:
            found[key] = changed_value(rng, found[key])
        return found
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = int(rng.integers(len(value)))
        return [
            *value[:at],
            *choice(rng, ([], [changed_value(rng, value[at])], [value[at]] * 2)),
            *value[at + 1 :],
        ]
    return copy.deepcopy(choice(rng, odd))


def try_json(rng: Rng, folder: Path) -> str:
    items = [deepfashion2_item(9, 8), deepfashion2_item(1, 25), deepfashion2_item(7, 10, segmentation=[])]
    content = {f"item{i}": item for i, item in enumerate(items, 1)} | {"source": "user", "pair_id": 1}
    if rng.random() < 0.5:
        data = json.dumps(changed_value(rng, content)).encode()
    else:
        data = mutated(
            rng, json.dumps(content).encode(), [*TOKENS, b"{", b"[" * 9000, b'"item1": ', b"null", b","]
        )
    try:
        garments = list(read_photo("train/annos/000001.json", data))
    except UserError as error:
        return one_line(error, 600)
    named = [key for key in json.loads(data) if key.lower().startswith("item")]
    assert len(garments) == len(named) == len({garment.sample_id for garment in garments})
    for garment in garments:
        numbers = [*garment.box, *garment.landmarks[~np.isnan(garment.landmarks)], garment.area or 0]
        assert np.isfinite(np.array(numbers, np.float32)).all()
        assert len(garment.landmarks) == 2 * len(garment.visibility)
    return WHOLE if len(garments) == 3 else COUNTED


# Photos


def pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {"progressive JPEG": dots.encoded(image, "JPEG", progressive=True, exif=exif)}
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        found[kind] = dots.encoded(image, kind)
    found["16-bit TIFF"] = dots.encoded(Image.fromarray(rng.integers(0, 65536, (40, 30), np.uint16)), "TIFF")
    found["palette PNG"] = dots.encoded(image.quantize(16), "PNG", transparency=3)
    found["compressed TIFF"] = dots.encoded(image, "TIFF", compression="tiff_lzw")
    return found


def try_picture(rng: Rng, folder: Path) -> str:
    kind = choice(rng, sorted(PICTURES))
    kind = choice(rng, ("JPEG", "progressive JPEG", kind))
    good = PICTURES[kind]
    # The head holds what decoders trust: sizes, tables and offsets.
    data = mutated(rng, good, [*INTEGERS, *(n[::-1] for n in INTEGERS)], [range(min(700, len(good)))])
    outcome = WHOLE
    try:
        image = decode_rgb(data)
        assert image.mode == "RGB"
        assert image.width * image.height <= photos_module.MAX_PIXELS
    except BadPhoto:
        outcome = COUNTED
    try:
        opened = Crops(data, lossless.library() is not None)
        corner = (max(0, opened.width - 9), max(0, opened.height - 9), opened.width, opened.height)
        cut, (x1, y1, x2, y2) = opened.cut(corner)
        assert decode_rgb(cut).size == (x2 - x1, y2 - y1)
        assert outcome == WHOLE
    except BadPhoto:
        assert outcome == COUNTED
    try:
        crop = prepare(data, 64, (3.0, 3.0, 20.0, 30.0))
        assert np.isfinite(crop.to_photo).all()
        decode(crop.picture)
    except (BadPhoto, BadBox):
        outcome = COUNTED
    return outcome


PICTURES = pictures()


def predictor(folder: Path) -> Predictor:
    return Predictor(dots.write_checkpoint(str(folder / "predictor")), torch.device("cpu"), batch_size=1)


def try_prediction(rng: Rng, folder: Path) -> str:
    """A JPEG that Pillow opens reaches the faster decoder as it is."""
    good = PICTURES[choice(rng, ("JPEG", "progressive JPEG"))]
    data = mutated(rng, good, INTEGERS, [range(min(700, len(good)))])
    try:
        crop: Crop | Bad = prepare(data, dots.SIZE)
    except BadPhoto as bad:
        crop = bad
    (answer,) = cached(predictor, folder).predict([crop])
    if isinstance(answer, BadPhoto):
        return COUNTED
    assert isinstance(answer, Prediction)
    assert np.isfinite(answer.landmarks).all()
    return WHOLE


# Checkpoints


def checkpoint_files(folder: Path) -> dict[str, bytes]:
    url = dots.write_checkpoint(str(folder / "good"))
    return {path.name: path.read_bytes() for path in Path(url).iterdir()}


def try_checkpoint(rng: Rng, folder: Path) -> str:
    """Its card or its weights' header changed, with sums as whoever changed it would have written them."""
    files = dict(cached(checkpoint_files, folder))
    card = json.loads(files["model.json"])
    what = rng.random()
    if what < 0.5:
        files["model.json"] = json.dumps(changed_value(rng, card)).encode()
    elif what < 0.75:
        files["model.json"] = mutated(
            rng, files["model.json"], [*TOKENS, b"null", b"true", b",", b"}", b"[" * 9000]
        )
    elif what < 0.9:
        weights = files["model.safetensors"]
        header = range(8 + int.from_bytes(weights[:8], "little"))
        tokens = [*INTEGERS, b"F32", b"F16", b"I64", b"[]", b"[0]", b"99999999999999999999", b"}", b'"dtype"']
        files["model.safetensors"] = mutated(rng, weights, tokens, [header])
    sums = {name: storage.digest(data) for name, data in files.items() if name != "complete.json"}
    files["complete.json"] = json.dumps(sums).encode()
    if what >= 0.9:
        files["complete.json"] = json.dumps(changed_value(rng, sums)).encode()
    write_files(folder / "checkpoint", files)
    try:
        model, found = checkpoint.load(str(folder / "checkpoint"))
    except UserError as error:
        return one_line(error, 1200)
    assert found.input_size % model.stride == 0
    written = json.loads(files["model.json"])
    assert dataclasses.asdict(found).keys() == {*written, "version"}
    return WHOLE if written == card else COUNTED


CACHE: dict[Any, Any] = {}


def cached(make: Callable[[Path], Any], folder: Path) -> Any:
    if make not in CACHE:
        CACHE[make] = make(folder)
    return CACHE[make]


KINDS: dict[str, Callable[[Rng, Path], str]] = {
    "zip": try_zip,
    "tar": try_tar,
    "all in one": try_all_in_one,
    "names": try_names,
    "lists": try_lists,
    "boxes": try_boxes,
    "JSON": try_json,
    "pictures": try_picture,
    "predictions": try_prediction,
    "checkpoints": try_checkpoint,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_no_damaged_input_ends_in_a_traceback(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no row is lost: what is neither a row nor refused is counted."""
    # Decoding what claims to be huge takes seconds each; the limit itself has its tests.
    monkeypatch.setattr(photos_module, "MAX_PIXELS", 1_000_000)
    write_files(tmp_path, fld_lists(LISTED))
    outcomes: Counter[str] = Counter()
    start = time.monotonic()
    for number in range(INPUTS):
        try:
            outcomes[KINDS[kind](np.random.default_rng((SEED, number)), tmp_path)] += 1
        except BaseException:
            print(f"input {number} of {kind}, seed {SEED}")
            raise
    told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    print(f"seed {SEED}: {INPUTS} inputs in {time.monotonic() - start:.1f} s: {told}")
    assert INPUTS < 100 or len(outcomes) > 1, (
        "changes that change nothing, or refuse everything, show nothing"
    )
