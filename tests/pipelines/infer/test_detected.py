"""Inference with --boxes detect: every garment that is found is a row, and every photo has one at least."""

import dataclasses
import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from glefld.detect import Detector
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.prediction import Detected, open_upright, prediction_schema
from pipelines.infer.overlays import write_overlays
from pipelines.infer.retry import begin, plan_retry, retry
from pipelines.infer.run import (
    InferenceWorkers,
    InferOptions,
    ShardWriter,
    find_finished,
    infer,
    make_plan,
    output_at,
    write_shards,
    writer_settings,
)
from pipelines.resumable import KILLER
from tests import boxed, dots
from tests.in_process import shards_here
from tests.pipelines.outputs import INFER, files, planned

PHOTOS = 14


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[boxed.Card]]]:
    """A zip of photos with up to two garments, and one that is none; the garments by the photo's name."""
    rng = np.random.default_rng(4)
    path = tmp_path_factory.mktemp("photos") / "photos.zip"
    garments = {}
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(PHOTOS):
            photo, cards = boxed.make_photo(rng, i % 3)
            garments[f"{i:03d}.jpg"] = cards
            archive.writestr(f"{i:03d}.jpg", dots.encoded(photo, "JPEG", quality=95))
        archive.writestr("bad.jpg", b"no picture")
    return path, garments


@pytest.fixture(scope="module")
def options(
    photos: tuple[Path, Any], detector: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> InferOptions:
    model = dots.write_checkpoint(str(tmp_path_factory.mktemp("landmarks") / "checkpoint"))
    return InferOptions(
        model, str(photos[0]), boxes="detect", detector=checkpoint.resolve(detector[1]), shard_rows=4
    )


def read(output: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(pq.read_table(p) for p in sorted(output.glob("part-*.parquet"))).to_pylist()


def told(output: Path) -> list[str]:
    """The rows as text: the box of an error is no number, which is not equal to itself."""
    return list(map(str, read(output)))


def alone(options: InferOptions, path: Path) -> dict[str, np.ndarray]:
    """The boxes of each photo as the detector finds them, asked photo by photo."""
    assert options.detector is not None
    detector = Detector(options.detector, torch.device("cpu"))
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name != "bad.jpg":
                (answer,) = detector.detect([open_upright(archive.read(name)).whole(boxed.SIZE)])
                assert isinstance(answer, Detected)
                found[name] = answer.boxes
    return found


def test_each_garment_is_a_row(
    options: InferOptions, photos: tuple[Path, dict[str, list[boxed.Card]]], tmp_path: Path
) -> None:
    """Those that the detector finds, best first, with their landmarks; a photo without any says so; all are counted."""
    path, garments = photos
    manifest = INFER.finish(options, str(tmp_path / "output"))
    rows = read(tmp_path / "output")
    schema = pq.read_schema(next((tmp_path / "output").glob("part-*")))
    assert schema.equals(prediction_schema(dots.DOTS))
    by_photo: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_photo.setdefault(row["uri"].rpartition("::")[2], []).append(row)
    assert by_photo.keys() == {*garments, "bad.jpg"}
    (bad,) = by_photo.pop("bad.jpg")
    assert bad["error"].startswith("unreadable_photo")
    right = 0
    for name, boxes in alone(options, path).items():
        found = by_photo[name]
        assert [row["garment"] for row in found] == list(range(max(1, len(boxes))))
        if not len(boxes):
            assert found[0]["error"].startswith("no_garment: no box has a score of")
            assert (found[0]["box_score"], found[0]["landmarks"]) == (None, None)
            continue
        np.testing.assert_allclose([row["box"] for row in found], boxes, atol=0.01)
        scores = [row["box_score"] for row in found]
        assert scores == sorted(scores, reverse=True)
        for row in found:
            assert row["status"] == "ok"
            points = np.reshape(row["landmarks"], (2, 2))
            right += any(np.abs(points - card.points).max() < 3 for card in garments[name])
    true = sum(map(len, garments.values()))
    assert right >= 0.8 * true
    counted = Counter((row["error"] or "ok").partition(":")[0] for row in rows)
    assert counted["no_garment"] > 0
    assert manifest["ok"] == counted.pop("ok")
    assert manifest["errors"] == counted
    assert (manifest["rows"], manifest["photos"]) == (len(rows), PHOTOS + 1)
    assert [shard["photos"] for shard in manifest["shards"]] == [4, 4, 4, 3]
    assert manifest["options"]["detector"].startswith(f"{options.detector}@")
    assert find_finished(options, str(tmp_path / "output")) == json.loads(json.dumps(manifest))


@pytest.mark.usefixtures("ray_cluster")
def test_shards_are_the_same_bytes_for_any_number_of_workers(options: InferOptions, tmp_path: Path) -> None:
    """And if a run was stopped after a shard and goes on."""
    INFER.write(options, str(tmp_path / "alone"), 1)
    INFER.finish(options, str(tmp_path / "alone"))
    seen: list[tuple[int, int]] = []
    workers = InferenceWorkers(least=2, most=2, threads=1, gpu=False, batch_size=4)
    output = str(tmp_path / "two")
    infer(make_plan(options, output), output, workers, lambda *done: seen.append(done))
    assert files(tmp_path / "alone") == files(tmp_path / "two")
    assert seen[-1] == (PHOTOS + 1, PHOTOS + 1)


def test_errors_are_detected_again(
    options: InferOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photo that has been replaced gets as many rows as it has garments, the others stay; as in a run of its own.

    Nothing is lost if it is killed between two shards; with another number of workers the bytes are the same.
    """
    monkeypatch.setattr("pipelines.infer.run.run_tasks", shards_here)
    rng = np.random.default_rng(8)
    folder = tmp_path / "photos"
    folder.mkdir()
    good = {}
    for i in range(9):
        photo, _ = boxed.make_photo(rng, 2 if i % 3 == 0 else 1)
        good[f"{i}.jpg"] = dots.encoded(photo, "JPEG", quality=95)
        (folder / f"{i}.jpg").write_bytes(good[f"{i}.jpg"] if i % 3 else b"no picture")
    chosen = dataclasses.replace(options, input=str(folder))
    output = tmp_path / "output"
    before = INFER.finish(chosen, str(output))
    assert before["errors"] == {"unreadable_photo": 3}
    workers = InferenceWorkers(least=1, most=1, threads=1, gpu=False, batch_size=4)

    def again(where: Path) -> dict[str, Any]:
        manifest = retry(plan_retry(chosen, str(where)), str(where), workers, lambda *_: None)
        assert manifest is not None
        return manifest

    # Nothing has changed: the same errors.
    shutil.copytree(output, tmp_path / "same")
    same = again(tmp_path / "same")
    assert told(tmp_path / "same") == told(output)
    assert (same["rows"], same["errors"], same["retries"]) == (before["rows"], before["errors"], 1)
    for name in ("0.jpg", "3.jpg"):
        (folder / name).write_bytes(good[name])
    shutil.copytree(output, tmp_path / "killed")
    after = again(output)
    assert after["errors"] == {"unreadable_photo": 1}
    assert (after["photos"], after["rows"]) == (9, len(read(output)))
    assert [shard["photos"] for shard in after["shards"]] == [4, 4, 1]
    INFER.finish(chosen, str(tmp_path / "fresh"))
    assert told(output) == told(tmp_path / "fresh")
    assert after["rows"] == manifest_of(tmp_path / "fresh")["rows"]
    fresh = {shard["path"]: shard["answered"] for shard in manifest_of(tmp_path / "fresh")["shards"]}
    assert {shard["path"]: shard["answered"] for shard in after["shards"]} == fresh
    # Killed after its first shard, and run again.
    planned_again = plan_retry(chosen, str(tmp_path / "killed"))
    begin(planned_again, str(tmp_path / "killed"))
    some = dataclasses.replace(planned_again, tasks=planned_again.tasks[:1])
    settings = dataclasses.replace(
        writer_settings(some.plan, output_at(str(tmp_path / "killed")), workers), key=some.key
    )
    assert list(write_shards(some.tasks, some.rows, settings, some.finished, workers))
    again(tmp_path / "killed")
    assert files(tmp_path / "killed") == files(output)
    # A photo that was answered may not change.
    (folder / "1.jpg").write_bytes(good["2.jpg"])
    with pytest.raises(UserError, match="have changed or are gone"):
        plan_retry(chosen, str(output))


def manifest_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "_manifest.json").read_text())


def test_a_photo_that_kills_its_worker_is_one_row(options: InferOptions, tmp_path: Path) -> None:
    output = str(tmp_path / "output")
    plan = make_plan(options, output)
    workers = InferenceWorkers(least=1, most=1, threads=1, gpu=False, batch_size=4)
    writer = ShardWriter(writer_settings(plan, output_at(output), workers))
    rows = plan.input.rows.read(0)
    killer = rows["uri"][1].as_py()
    found = [row for row in writer.predict(rows, frozenset([killer])) if row["uri"] == killer]
    assert [row["error"].partition(":")[0] for row in found] == [KILLER[0]]
    assert planned(plan, output)


def test_the_most_garments_and_the_least_score_are_part_of_the_plan(
    options: InferOptions, tmp_path: Path
) -> None:
    keys = set()
    for changes in ({}, {"most_garments": 1}, {"least_score": 0.9}, {"boxes": None, "detector": None}):
        chosen = dataclasses.replace(options, **changes)  # type: ignore[arg-type]
        keys.add(make_plan(chosen, str(tmp_path / "keys")).key)
    assert len(keys) == 4
    one = dataclasses.replace(options, most_garments=1)
    INFER.finish(one, str(tmp_path / "one"))
    rows = read(tmp_path / "one")
    assert len(rows) == PHOTOS + 1
    with pytest.raises(UserError, match="is already finished, but with most_garments 1"):
        find_finished(options, str(tmp_path / "one"))


def test_what_is_found_is_drawn(options: InferOptions, tmp_path: Path) -> None:
    """Each overlay is of its own garment's photo."""
    manifest = INFER.finish(options, str(tmp_path / "output"))
    sheet = write_overlays(options, str(tmp_path / "output"), 100)
    assert sheet is not None
    drawn = sorted(path.name for path in (tmp_path / "output" / "_overlays").iterdir())
    assert len(drawn) == manifest["ok"] + 1
    ok = [row for row in read(tmp_path / "output") if row["status"] == "ok"]
    assert drawn[:-1] == [
        f"{i:05d}-{row['uri'].rpartition('::')[2][:-4]}-{row['garment']}.jpg" for i, row in enumerate(ok)
    ]


def test_what_cannot_be_detected_is_told(
    options: InferOptions, detector: tuple[str, str], tmp_path: Path
) -> None:
    """A landmark model is no detector; a data set has its own boxes; options of a detector need one."""
    output = str(tmp_path / "output")
    with pytest.raises(UserError, match="is no detector"):
        make_plan(dataclasses.replace(options, detector=options.checkpoint), output)
    with pytest.raises(UserError, match="is a data set and has its own boxes"):
        make_plan(dataclasses.replace(options, input=detector[0]), output)
    for changes in ({"least_score": 0.5}, {"detector": "x"}):
        plain = dataclasses.replace(options, boxes=None, detector=None)
        with pytest.raises(UserError, match="is for detected boxes: add --boxes detect"):
            dataclasses.replace(plain, **changes).check()  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--most-garments must be at least 1"):
        dataclasses.replace(options, most_garments=0).check()
