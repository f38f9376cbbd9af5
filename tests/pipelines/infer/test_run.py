"""Inference over archives, boxes and data sets: every garment exactly once, and the same answer from every source."""

import csv
import dataclasses
import os
import random
import signal
import tarfile
import threading
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import ray
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from ray.util.state import list_actors

from glefld import storage
from glefld.data.dataset import MANIFEST
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.prediction import prediction_schema
from glefld.schema import GarmentType, Labels, Visibility
from pipelines.infer.overlays import write_overlays
from pipelines.infer.run import (
    InferenceWorkers,
    InferOptions,
    ShardWriter,
    find_finished,
    groups_per_shard,
    infer,
    make_plan,
    measured_precision,
    one_precision,
    output_at,
    writer_settings,
)
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import ingest, prepare
from pipelines.resumable import MARKER
from pipelines.rowfile import RowFile, read_stretch
from tests import dots, typed
from tests.in_process import shards_here
from tests.ingested import write_dataset
from tests.pipelines.outputs import planned
from tests.raw_layouts import Row, write_fld

WIDTH, HEIGHT = 120, 160
WORKERS = InferenceWorkers(least=2, most=2, threads=1, gpu=False, batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dots.write_checkpoint(str(tmp_path_factory.mktemp("infer") / "checkpoint"))


def make_photos(count: int, bad: int = 0) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Files by name, ``bad`` of them no pictures, and the points [2, 2] of the good ones."""
    rng = np.random.default_rng(count)
    files, points = {}, {}
    for i in range(count):
        name = f"a/{i:03d}.jpg" if i % 2 else f"{i:03d}.PNG"
        found = dots.random_points(rng, (0, 0, WIDTH, HEIGHT))
        files[name] = dots.encoded(dots.photo(found, WIDTH, HEIGHT), "JPEG" if i % 2 else "PNG")
        points[name] = found
    for i in range(bad):
        files[f"bad-{i}.jpg"] = b"no picture %d" % i
    return files, points


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], folder: Path) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name in files:
            archive.add(folder / name, f"./{name}")
    return path


def run_here(options: InferOptions, output: Path, batch_size: int = 4) -> dict[str, Any]:
    """The plan's shards in this process, by the writer that the workers run, and what holds of all predictions."""
    plan = make_plan(options, str(output))
    workers = dataclasses.replace(WORKERS, batch_size=batch_size)
    writer = ShardWriter(writer_settings(plan, output_at(str(output)), workers))
    for task in planned(plan, str(output)):
        assert not writer(task)["error"]
    return check(infer(plan, str(output), workers, lambda *_: None), output)


def check(manifest: dict[str, Any], output: Path) -> dict[str, Any]:
    """The counts are those of the files, and each row is either a whole answer or an error with its words."""
    table = read(output)
    assert table.schema.equals(prediction_schema(dots.DOTS))
    assert manifest["rows"] == len(table) == sum(shard["rows"] for shard in manifest["shards"])
    assert manifest["ok"] == table["status"].to_pylist().count("ok")
    assert manifest["ok"] + sum(manifest["errors"].values()) == manifest["rows"]
    rows = table.to_pylist()
    assert len({(row["uri"], row["garment"]) for row in rows}) == len(rows)
    for row in rows:
        assert row["model"] == manifest["model"]
        assert row["visibility"] is None
        if row["status"] == "ok":
            assert row["error"] is None
            assert len(row["landmarks"]) == 2 * len(row["score"]) == 4
        else:
            assert row["landmarks"] is None
            assert len(row["box"]) == 4
            assert row["error"].partition(":")[0] in manifest["errors"]
    for shard in manifest["shards"]:
        assert (output / shard["path"]).stat().st_size == shard["bytes"]
    assert {path.name for path in output.glob("_*")} == {MANIFEST, MARKER}
    return manifest


def read(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("part-*.parquet")))


def by_name(output: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return {
        (row["uri"].rpartition("::")[2].rpartition("input/")[2], row["garment"]): row
        for row in read(output).to_pylist()
    }


def test_every_kind_of_input_gives_the_same_predictions(model: str, tmp_path: Path) -> None:
    """Folder, zip, tar and compressed tar: the dots are found, bad photos are rows, other files are counted."""
    files, points = make_photos(13, bad=2)
    extra = {"notes.txt": b"notes", "__MACOSX/._000.PNG": b"fork"}
    folder = write_folder(tmp_path / "input", files | extra)
    sources = [
        folder,
        write_zip(tmp_path / "input.zip", files | extra),
        write_tar(tmp_path / "input.tar", files | extra, folder),
        write_tar(tmp_path / "input.tar.gz", files | extra, folder),
    ]
    found = []
    for i, source in enumerate(sources):
        output = tmp_path / f"output{i}"
        manifest = run_here(InferOptions(model, str(source), shard_rows=4), output, batch_size=3 + i)
        assert manifest["errors"] == {"unreadable_photo": 2}
        assert manifest["skipped"] == {"not a picture's name": 2}
        assert [shard["rows"] for shard in manifest["shards"]] == [4, 4, 4, 3]
        found.append(by_name(output))
    for predictions in found:
        assert predictions.keys() == {(name, 0) for name in files}
        for name, expected in points.items():
            row = predictions[name, 0]
            assert row["box"] == [0, 0, WIDTH, HEIGHT]
            np.testing.assert_allclose(
                np.reshape(row["landmarks"], (2, 2)), expected, atol=HEIGHT / dots.SIZE
            )
            np.testing.assert_allclose(row["landmarks"], found[0][name, 0]["landmarks"], atol=1e-3)
    uris = {read(tmp_path / f"output{i}")["uri"][0].as_py() for i in range(2)}
    assert uris == {f"{folder}/000.PNG", f"{tmp_path}/input.zip::000.PNG"}


def test_answers_that_are_no_numbers_are_error_rows(tmp_path: Path) -> None:
    """Counted in the manifest as other errors are; the photos that the network still answers are ok."""
    model = dots.write_checkpoint(str(tmp_path / "checkpoint"), dots.overflowing())
    files, _ = make_photos(5)
    files["grey.png"] = dots.encoded(Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)), "PNG")
    options = InferOptions(model, str(write_folder(tmp_path / "input", files)))
    manifest = run_here(options, tmp_path / "output")
    assert (manifest["ok"], manifest["errors"]) == (1, {"not_finite": 5})
    for (name, _), row in by_name(tmp_path / "output").items():
        assert row["status"] == ("ok" if name == "grey.png" else "error")
        assert row["error"] is None or row["error"].startswith("not_finite: ")


def test_one_photo_is_an_input(model: str, tmp_path: Path) -> None:
    files, points = make_photos(3)
    folder = write_folder(tmp_path / "input", files)
    run_here(InferOptions(model, str(folder / "a/001.jpg")), tmp_path / "output")
    ((name, _), row), *others = by_name(tmp_path / "output").items()
    assert (name, others) == ("a/001.jpg", [])
    np.testing.assert_allclose(np.reshape(row["landmarks"], (2, 2)), points[name], atol=HEIGHT / dots.SIZE)


BOXES = [(0.0, 0.0, 56.0, 80.0), (64.0, 16.0, 120.0, 152.0)]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["uri", "x1", "y1", "x2", "y2"])
        writer.writeheader()
        for row in rows:
            corners = row["box"] or (None,) * 4
            writer.writerow({"uri": row["uri"], **dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True))})
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_boxes_name_the_garments(
    write: Callable[[Path, list[dict[str, Any]]], Path], model: str, tmp_path: Path
) -> None:
    """Numbered in their photo as listed, each with its own answer; what is not there or empty is an error row."""
    rng = np.random.default_rng(8)
    points = {}
    files = {}
    for i in range(3):
        name = f"{i}.png"
        image = dots.photo(first := dots.random_points(rng, BOXES[0]), WIDTH, HEIGHT, BOXES[0])
        other = dots.photo(second := dots.random_points(rng, BOXES[1]), WIDTH, HEIGHT, BOXES[1])
        image.paste(other.crop((60, 0, WIDTH, HEIGHT)), (60, 0))
        files[name] = dots.encoded(image, "PNG")
        points[name] = [first, second]
    files["unlisted.png"] = files["0.png"]
    source = write_zip(tmp_path / "input.zip", files)
    listed = [
        {"uri": "1.png", "box": BOXES[1]},
        {"uri": "gone.png", "box": BOXES[0]},
        {"uri": "0.png", "box": BOXES[0]},
        {"uri": f"{source}::1.png", "box": BOXES[0]},
        {"uri": "0.png", "box": (20.0, 20.0, 20.0, 50.0)},
        {"uri": "2.png", "box": None},
        {"uri": "0.png", "box": (64.0, 16.0, 999.0, 152.0)},
    ]
    boxes = str(write(tmp_path / f"boxes.{'csv' if write is write_csv else 'parquet'}", listed))
    manifest = run_here(InferOptions(model, str(source), boxes=boxes, shard_rows=3), tmp_path / "output")
    assert manifest["errors"] == {"empty_box": 1, "missing_photo": 1}
    assert manifest["skipped"]["picture without a box in --boxes"] == 1
    found = by_name(tmp_path / "output")
    assert found.keys() == {
        ("1.png", 0),
        ("1.png", 1),
        ("0.png", 0),
        ("0.png", 1),
        ("0.png", 2),
        ("2.png", 0),
        ("gone.png", 0),
    }
    assert found["gone.png", 0]["error"].startswith("missing_photo")
    assert found["0.png", 1]["error"].startswith("empty_box")
    assert found["2.png", 0]["box"] == [0, 0, WIDTH, HEIGHT]
    for (name, garment), which in {
        ("1.png", 0): 1,
        ("1.png", 1): 0,
        ("0.png", 0): 0,
        ("0.png", 2): 1,
    }.items():
        row = found[name, garment]
        assert tuple(row["box"]) == BOXES[which]
        landmarks = np.reshape(row["landmarks"], (2, 2))
        np.testing.assert_allclose(landmarks, points[name][which], atol=136 / dots.SIZE)


@pytest.mark.usefixtures("ingest_here")
def test_a_data_set_agrees_with_its_photos(model: str, tmp_path: Path) -> None:
    """The stored crops give, in the original photo's pixels, what the photos give with the annotated boxes."""
    rng = np.random.default_rng(9)
    listed, files, listing = [], {}, []
    for i in range(10):
        x, y = (int(v) for v in rng.integers(10, 30, 2))
        box = (x, y, x + 64, y + 96)
        points = dots.random_points(rng, box)
        marks = [(0, int(px), int(py)) for px, py in points]
        split = "val" if i % 5 == 4 else "train"
        listed.append(Row(f"img/img_{i:08d}.jpg", split, box, garment_type=2, points=marks * 2))
        image = dots.photo(points, WIDTH, HEIGHT, box)
        files[listed[-1].photo] = dots.encoded(image, "JPEG", quality=95, subsampling=0)
        listing.append({"uri": listed[-1].photo, "box": [float(v) for v in box]})
    source = write_fld(tmp_path / "source", listed, files)
    data = str(tmp_path / "data")
    ingest(prepare(IngestOptions("fld", str(source)), data), data, lambda done, total: None)
    boxes = str(write_parquet(tmp_path / "boxes.parquet", listing))
    run_here(InferOptions(model, data), tmp_path / "from-data")
    run_here(InferOptions(model, str(source / "img.zip"), boxes=boxes), tmp_path / "from-photos")
    from_data, from_photos = by_name(tmp_path / "from-data"), by_name(tmp_path / "from-photos")
    assert from_data.keys() == from_photos.keys()
    for key, row in from_data.items():
        assert row["uri"] == from_photos[key]["uri"]
        assert row["box"] == from_photos[key]["box"]
        # The stored crop is a JPEG of a JPEG.
        np.testing.assert_allclose(row["landmarks"], from_photos[key]["landmarks"], atol=0.5)
    manifest = run_here(InferOptions(model, data, split="val"), tmp_path / "val")
    assert (manifest["rows"], manifest["skipped"]) == (2, {"row of split train": 8})


@pytest.mark.usefixtures("ray_cluster")
def test_lost_processes_and_missing_shards_are_made_good(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker and a reader killed on the way cost nothing but time; a second run, here, makes only what is missing.

    Whoever reads the photos, the bytes are those of a worker that does all by itself.
    """
    seed = random.randrange(1 << 31)
    print("seed", seed)
    files, _ = make_photos(40, bad=3)
    source = write_zip(tmp_path / "input.zip", files)
    options = InferOptions(model, str(source), shard_rows=4)
    expected = run_here(options, tmp_path / "undisturbed")

    output = tmp_path / "output"
    plan = make_plan(options, str(output))
    killed: dict[str, int] = {}
    ended = threading.Event()
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    def kill_one_of_each() -> None:
        """As soon as it is there: all photos may be read before the first answer."""
        address = ray.get_runtime_context().gcs_address
        while len(killed) < 2 and not ended.wait(0.1):
            for actor in list_actors(address, filters=[("state", "=", "ALIVE")]):
                for stage in ("ShardWriter", "ShardReader"):
                    if stage in actor.class_name and stage not in killed:
                        killed[stage] = actor.pid
                        os.kill(actor.pid, signal.SIGKILL)

    workers = dataclasses.replace(WORKERS, readers=(1, 2))
    killer = threading.Thread(target=kill_one_of_each)
    killer.start()
    try:
        manifest = check(infer(plan, str(output), workers, progress), output)
    finally:
        ended.set()
        killer.join()
    assert manifest["content_hash"] == expected["content_hash"]
    assert len(killed) == 2
    assert seen[-1] == (43, 43)

    parts = sorted(output.glob("part-*"))
    lost = {parts[int(i)] for i in np.random.default_rng(seed).choice(len(parts), 3, replace=False)}
    for path in (*lost, output / "_manifest.json"):
        path.unlink()
    lost.copy().pop().write_bytes(b"PAR1 and no more")  # as some clients of object stores leave a file
    (output / f"_part-{uuid.uuid4().hex}").write_bytes(b"PAR1")
    kept = {path: path.stat().st_ino for path in parts if path.exists() and path not in lost}
    alone = dataclasses.replace(WORKERS, least=1, most=1)
    monkeypatch.setattr("pipelines.infer.run.run_tasks", shards_here)
    assert (
        check(infer(plan, str(output), alone, progress), output)["content_hash"] == expected["content_hash"]
    )
    assert {path: path.stat().st_ino for path in kept} == kept


@pytest.mark.usefixtures("ray_cluster")
def test_the_pool_grows_with_the_work_and_the_bytes_stay(model: str, tmp_path: Path) -> None:
    """From one worker to as many as there is room for, of those that there are shards for; each file stays the same."""
    files, _ = make_photos(12, bad=1)
    options = InferOptions(model, str(write_folder(tmp_path / "input", files)), shard_rows=2)
    expected = run_here(options, tmp_path / "one")

    def workers() -> set[str]:
        actors = list_actors(ray.get_runtime_context().gcs_address, limit=1000)
        return {actor.actor_id for actor in actors if "ShardWriter" in actor.class_name}

    output = tmp_path / "output"
    before = workers()
    elastic = dataclasses.replace(WORKERS, least=1, most=100)
    found = infer(make_plan(options, str(output)), str(output), elastic, lambda *_: None)
    assert check(found, output)["content_hash"] == expected["content_hash"]
    for path in output.glob("part-*"):
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    assert 1 < len(workers() - before) <= 4  # CPUs of the test's Ray


def test_shards_are_many_enough_to_share_and_no_smaller(model: str, tmp_path: Path) -> None:
    """By the number of rows: 64 shards where there are rows for them, of 256 to 2048 rows; or as the user says."""
    cases = {100: 1, 10_000: 1, 32_767: 1, 32_768: 2, 100_000: 6, 131_072: 8, 10_000_000: 8}
    assert {rows: groups_per_shard(rows) for rows in cases} == cases
    rows = pa.table({"name": [f"{i}" for i in range(11)]})
    file = RowFile.of([rows], rows.schema, 2)
    file.join(3)
    assert [table["name"].to_pylist() for table in file] == [
        ["0", "1", "2", "3", "4", "5"],
        ["6", "7", "8", "9", "10"],
    ]
    file.upload(str(tmp_path / "rows"))
    assert read_stretch(file.stretch(1, str(tmp_path / "rows"))) == rows.slice(6)


def test_a_finished_output_is_left_alone(model: str, tmp_path: Path) -> None:
    """The same options find it; other options, other boxes and another plan's shards are refused by name."""
    files, _ = make_photos(6)
    source = str(write_folder(tmp_path / "input", files))
    output = tmp_path / "output"
    boxes = write_csv(tmp_path / "boxes.csv", [{"uri": "000.PNG", "box": (1, 1, 60, 60)}])
    options = InferOptions(model, source, boxes=str(boxes))
    assert find_finished(options, str(output)) is None
    manifest = run_here(options, output)
    found = find_finished(options, str(output))
    assert found is not None
    assert found["content_hash"] == manifest["content_hash"]
    with pytest.raises(UserError, match=r"shard_rows None \(now 7\)"):
        find_finished(dataclasses.replace(options, shard_rows=7), str(output))
    write_csv(boxes, [{"uri": "000.PNG", "box": (1, 1, 60, 61)}])
    with pytest.raises(UserError, match=r"boxes '.*boxes\.csv@\w+' \(now"):
        find_finished(options, str(output))
    (output / "_manifest.json").unlink()
    with pytest.raises(UserError, match="which another infer run wrote"):
        infer(make_plan(options, str(output)), str(output), WORKERS, lambda *_: None)


def test_an_unpacked_tar_does_not_outlive_a_kill_after_the_manifest(model: str, tmp_path: Path) -> None:
    """A compressed tar is unpacked below the output; killed before the clean-up, the next call removes it."""
    files, _ = make_photos(4)
    folder = write_folder(tmp_path / "input", files)
    source = write_tar(tmp_path / "input.tar.gz", files, folder)
    options, output = InferOptions(model, str(source)), tmp_path / "output"
    run_here(options, output)
    staged = output / "_staging" / "left.tar"
    staged.parent.mkdir()
    staged.write_bytes(b"unpacked")
    (output / f"_part-{uuid.uuid4().hex}").write_bytes(b"PAR1")
    assert find_finished(options, str(output)) is not None
    assert not staged.parent.exists()
    assert not list(output.glob("_part-*"))


def empty(folder: Path) -> InferOptions:
    (folder / "empty").mkdir()
    (folder / "empty" / "readme.txt").write_text("nothing")
    return InferOptions("", str(folder / "empty"))


def absent(folder: Path) -> InferOptions:
    return InferOptions("", str(folder / "absent"))


def broken_zip(folder: Path) -> InferOptions:
    (folder / "broken.zip").write_bytes(b"PK\x03\x04 and no directory")
    return InferOptions("", str(folder / "broken.zip"))


def no_data_set(folder: Path) -> InferOptions:
    return InferOptions("", str(write_folder(folder / "input", make_photos(1)[0])), split="val")


def boxes_without_corners(folder: Path) -> InferOptions:
    (folder / "boxes.csv").write_text("uri,left\n000.PNG,3\n")
    return dataclasses.replace(no_data_set(folder), split=None, boxes=str(folder / "boxes.csv"))


def boxes_of_other_photos(folder: Path) -> InferOptions:
    write_csv(folder / "boxes.csv", [{"uri": "elsewhere.jpg", "box": (1, 2, 3, 4)}])
    return dataclasses.replace(no_data_set(folder), split=None, boxes=str(folder / "boxes.csv"))


def boxes_that_are_words(folder: Path) -> InferOptions:
    (folder / "boxes.csv").write_text("uri,x1,y1,x2,y2\n000.PNG,a,b,c,d\n")
    return dataclasses.replace(no_data_set(folder), split=None, boxes=str(folder / "boxes.csv"))


def boxes_without_end(folder: Path) -> InferOptions:
    """A few kilobytes that would unpack to gigabytes."""
    source = write_folder(folder / "photos", make_photos(1)[0])
    rows = pa.table(
        {
            "uri": pa.repeat("000.PNG", 1 << 20),
            **{c: pa.nulls(1 << 20, pa.float64()) for c in ("x1", "y1", "x2", "y2")},
        }
    )
    with pq.ParquetWriter(folder / "boxes.parquet", rows.schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(rows)
    assert (folder / "boxes.parquet").stat().st_size < 1 << 20
    return InferOptions("", str(source), boxes=str(folder / "boxes.parquet"))


def output_inside(folder: Path) -> InferOptions:
    write_folder(folder, make_photos(1)[0])
    return InferOptions("", str(folder))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (empty, "holds no picture"),
        (absent, "does not exist"),
        (broken_zip, "is not a readable zip"),
        (no_data_set, "--split is for ingested data sets"),
        (boxes_without_corners, "must have rows with the columns uri and x1, y1, x2, y2"),
        (boxes_of_other_photos, "none of the 1 uris"),
        (boxes_without_end, "more than the 20000000 that one run accepts"),
        (boxes_that_are_words, "not a readable CSV or Parquet file"),
        (output_inside, "lies in --input"),
    ],
)
def test_a_users_mistake_is_one_line(
    make: Callable[[Path], InferOptions], words: str, model: str, tmp_path: Path
) -> None:
    options = dataclasses.replace(make(tmp_path), checkpoint=model)
    with pytest.raises(UserError, match=words):
        make_plan(options, str(tmp_path / "output"))


def test_overlays_are_drawn_on_the_upright_photo(model: str, tmp_path: Path) -> None:
    """One picture a garment with a dot of its side's colour where the landmark is, and a sheet of all."""
    files, _ = make_photos(5, bad=1)
    source = write_folder(tmp_path / "input", files)
    options = InferOptions(model, str(source))
    run_here(options, tmp_path / "output")
    sheet = write_overlays(options, str(tmp_path / "output"), 3)
    drawn = sorted(path.name for path in (tmp_path / "output" / "_overlays").iterdir())
    assert drawn == ["00000-000-0.jpg", "00001-002-0.jpg", "00002-004-0.jpg", "contact-sheet.jpg"]
    assert sheet == str(tmp_path / "output" / "_overlays" / "contact-sheet.jpg")
    (source / "007.png").write_bytes(b"new")
    with pytest.raises(UserError, match="which another infer run wrote"):
        write_overlays(options, str(tmp_path / "output"), 3)


@pytest.mark.parametrize(("own", "yellow"), [((0, 1), True), ((1,), False)])
def test_overlays_leave_out_what_the_garments_type_lacks(
    own: tuple[int, ...], yellow: bool, tmp_path: Path
) -> None:
    """An ingested data set knows the types: a model that does not tell them answers for all landmarks, and the type's
    own are drawn."""
    types = (GarmentType(1, "dots", own), GarmentType(2, "others", (0, 1)))
    landmark_set = dataclasses.replace(dots.DOTS, garment_types=types)
    data = write_dataset(tmp_path / "data", {"test": 2})
    manifest = storage.read_json(f"{data}/{MANIFEST}")
    storage.write_json(f"{data}/{MANIFEST}", {**manifest, "landmark_set": landmark_set.to_json()})
    url = str(tmp_path / "checkpoint")
    checkpoint.save(url, dots.network(), dots.card(dots.MODEL, dots.CONFIG, Labels(landmark_set), dots.SIZE))
    run_here(InferOptions(url, data, split="test"), tmp_path / "output")
    write_overlays(InferOptions(url, data, split="test"), str(tmp_path / "output"), 1)
    (drawn,) = (tmp_path / "output" / "_overlays").glob("00000-*.jpg")
    red, green, blue = np.moveaxis(np.asarray(Image.open(drawn), int), 2, 0)
    # The left dot's mark is the only yellow in these pictures.
    assert ((red > 200) & (green > 150) & (blue < 100)).any() == yellow


@pytest.mark.parametrize(("told", "red"), [("both", True), ("left", False)])
def test_landmarks_that_the_told_type_lacks_have_no_place(told: str, red: bool, tmp_path: Path) -> None:
    """The type has its columns; what it lacks is NaN and absent, and is not drawn."""
    url = typed.write_checkpoint(str(tmp_path / "checkpoint"), told)
    grey = dots.encoded(Image.new("RGB", (WIDTH, HEIGHT), "grey"), "PNG")
    files = {"a.png": grey, "b.png": grey, "c.jpg": b"no picture"}
    options = InferOptions(url, str(write_folder(tmp_path / "input", files)))
    output = tmp_path / "output"
    plan = make_plan(options, str(output))
    writer = ShardWriter(writer_settings(plan, output_at(str(output)), WORKERS))
    for task in planned(plan, str(output)):
        assert not writer(task)["error"]
    assert infer(plan, str(output), WORKERS, lambda *_: None)["ok"] == 2
    table = read(output)
    assert table.schema.equals(prediction_schema(typed.PAIR))
    *rows, bad = table.to_pylist()
    assert bad["garment_type"] is bad["garment_type_score"] is bad["landmarks"] is None
    for row in rows:
        assert row["garment_type"] == told
        assert row["garment_type_score"] == pytest.approx(0.9)
        assert np.isnan(row["landmarks"]).tolist() == [False, False, not red, not red]
        assert np.isnan(row["score"]).tolist() == [False, not red]
        assert row["visibility"] == [Visibility.VISIBLE, Visibility.VISIBLE if red else Visibility.ABSENT]
    write_overlays(options, str(output), 1)
    (drawn,) = (output / "_overlays").glob("00000-*.jpg")
    picture = np.asarray(Image.open(drawn), int)
    assert (picture[..., 0] > picture[..., 1:].max(axis=2) + 60).any() == red  # the photo is grey


def test_a_photo_that_kills_its_worker_is_an_error_row(model: str, tmp_path: Path) -> None:
    files, _ = make_photos(4)
    options = InferOptions(model, str(write_folder(tmp_path / "input", files)))
    plan = make_plan(options, str(tmp_path / "output"))
    writer = ShardWriter(writer_settings(plan, output_at(str(tmp_path / "output")), WORKERS))
    ((_, rows),) = plan.shards()
    killer = rows["uri"][2].as_py()
    found = list(writer.predict(rows, frozenset([killer])))
    assert [row["uri"] for row in found if row["status"] == "error"] == [killer]
    assert found[2]["error"].startswith("kills_its_worker: ")


class Recording(LocalFileSystem):
    """A file system that records which ranges it was asked for."""

    protocol = "recording"
    cachable = False
    starts: ClassVar[list[int]] = []

    def cat_ranges(self, paths: list[str], starts: list[int], ends: list[int], **options: Any) -> list[bytes]:
        self.starts.extend(starts)
        return super().cat_ranges(paths, starts, ends, **options)


@pytest.mark.parametrize("most", [16 << 20, 3000])
def test_photos_are_read_ahead_of_the_model_within_a_limit(
    most: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first answer is looked at, all that may be held is asked for: a slow store is waited for once."""
    fsspec.register_implementation("recording", Recording, clobber=True)
    monkeypatch.setattr("pipelines.members.BATCH_BYTES", 2500)  # two or three photos a range
    monkeypatch.setattr("pipelines.infer.run.AHEAD_BYTES", most)
    files, _ = make_photos(150)
    source = write_zip(tmp_path / "input.zip", files)
    plan = make_plan(InferOptions(model, f"recording://{source}"), str(tmp_path / "output"))
    workers = dataclasses.replace(WORKERS, batch_size=1)
    writer = ShardWriter(writer_settings(plan, output_at(str(tmp_path / "output")), workers))
    ((_, rows),) = plan.shards()
    Recording.starts.clear()
    found = writer.predict(rows, frozenset())
    first = next(found)
    read = wait_until_still(Recording.starts)
    last = max(rows["start"].to_pylist())
    if most > source.stat().st_size:
        assert max(Recording.starts) > 0.9 * last
    else:
        # What waits, what is opened and decoded ahead, and the range that is being read.
        assert 1 < read < 15
        assert max(Recording.starts) < 0.3 * last
    assert [first["uri"], *(row["uri"] for row in found)] == rows["uri"].to_pylist()


def wait_until_still(items: list[int]) -> int:
    """How many there are once none has been added for a while."""
    pause = threading.Event()
    count = -1
    while count != len(items):
        count = len(items)
        pause.wait(0.3)
    return count


def test_all_shards_of_an_output_are_of_one_precision(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A named one, else that of the shards which an earlier run wrote, else the one measured for all workers."""
    files, _ = make_photos(2)
    options = InferOptions(model, str(write_folder(tmp_path / "input", files)), precision="bf16")
    run_here(options, tmp_path / "output")
    (report,) = (
        output_at(str(tmp_path / "output"))
        .reports(
            make_plan(options, str(tmp_path / "output")).paths(),
            make_plan(options, str(tmp_path / "output")).key,
        )
        .values()
    )
    assert report["precision"] == "bf16"
    auto = dataclasses.replace(options, precision="auto")
    settings = writer_settings(
        make_plan(auto, str(tmp_path / "other")), output_at(str(tmp_path / "other")), WORKERS
    )
    assert one_precision(settings, [report]) == "bf16"
    assert one_precision(dataclasses.replace(settings, precision="fp32"), [report]) == "fp32"
    for seconds, expected in (({"fp32": 2.0, "bf16": 1.0}, "bf16"), ({"fp32": 1.0, "bf16": 1.0}, "fp32")):
        monkeypatch.setattr("glefld.models.precision.measure", lambda *_, training, found=seconds: found)
        assert measured_precision(settings) == expected
