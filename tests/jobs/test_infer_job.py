"""The inference job as a user runs it: killed at any moment and run again, and told what is wrong in one line."""

import dataclasses
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glefld import storage
from jobs.infer import Options, run
from tests import dots
from tests.in_process import shards_here, without_ray_until_killed
from tests.killing import MOMENTS, kill_job
from tests.mistakes import everything, forbid_ray, one_line, write_wrong_files
from tests.pipelines.outputs import files

PHOTOS, WIDTH, HEIGHT = 90, 90, 120


def shards(output: Path) -> dict[str, int]:
    """The finished shards by name, with what identifies the file."""
    return {path.name: path.stat().st_ino for path in output.glob("part-*.parquet")}


def points() -> dict[str, np.ndarray]:
    """Where the dots of each photo are, by its name."""
    rng = np.random.default_rng(0)
    return {f"{i:03d}.jpg": dots.random_points(rng, (0, 0, WIDTH, HEIGHT)) for i in range(PHOTOS)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options for photos of many shards, and the predictions that they give when nothing happens, made here."""
    root = tmp_path_factory.mktemp("undisturbed")
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for name, place in points().items():
            archive.writestr(name, dots.encoded(dots.photo(place, WIDTH, HEIGHT), "JPEG"))
        archive.writestr("zzz.jpg", b"no picture")
    options = Options(
        checkpoint=dots.write_checkpoint(str(root / "checkpoint")),
        input=str(root / "photos.zip"),
        output=str(root / "output"),
        shard_rows=5,
        num_workers="2",
        threads=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.infer.run.run_tasks", shards_here)
        patch.setattr("jobs.infer.start_ray", lambda **_: None)
        run(options)
    return options


def arguments(options: Options) -> list[str]:
    names = ("checkpoint", "input", "output", "shard_rows", "num_workers", "threads")
    given = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    return [*given, *(["--retry-errors"] if options.retry_errors else [])]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_inference_run_again_predicts_each_photo_once(
    moment: int, undisturbed: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it was killed, the next run ends with each photo once, and redoes no finished shard.

    The first moment is the one between the last shard and the manifest. At the second, two of Ray's workers are killed,
    and the next run has one or two. At the others the job's own process predicts.
    """
    before = None if moment == 1 else without_ray_until_killed
    expected = storage.read_json(storage.join(str(undisturbed.output), "_manifest.json"))
    count = len(expected["shards"])
    output = tmp_path / "output"
    options = dataclasses.replace(undisturbed, output=str(output))
    line = arguments(options)
    wanted = kill_job("infer", line, moment, count, lambda: len(shards(output)), tmp_path, before)
    kept = shards(output)
    assert wanted <= len(kept)
    if before is not None:
        assert not (output / "_manifest.json").exists(), "killed too late to show anything"
        monkeypatch.setattr("pipelines.infer.run.run_tasks", shards_here)
    run(dataclasses.replace(options, num_workers="1-2"))
    assert kept.items() <= shards(output).items()
    assert storage.read_json(str(output / "_manifest.json"))["content_hash"] == expected["content_hash"]
    assert sorted(path.name for path in output.iterdir()) == [
        "_manifest.json",
        "_plan.json",
        *sorted(shards(output)),
    ]
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("part-*"))).to_pylist()
    found = {row["uri"].rpartition("::")[2]: row for row in rows}
    assert len(rows) == len(found)
    assert found.pop("zzz.jpg")["status"] == "error"
    places = points()
    assert found.keys() == places.keys()
    for name, row in found.items():
        landmarks = np.reshape(row["landmarks"], (2, 2))
        np.testing.assert_allclose(landmarks, places[name], atol=HEIGHT / dots.SIZE)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_retry_run_again_predicts_each_error_once(
    moment: int, undisturbed: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos are replaced and their errors retried. Killed whenever, and run again, it ends with the bytes of a retry
    that was not killed, and replaces no shard twice.

    The killed process writes the shards itself, by the writer that Ray's workers run, and does not come to its end. At
    the second moment Ray's workers go on.
    """
    photos, names = tmp_path / "photos", sorted(points())[:40]
    photos.mkdir()
    bad = [name for name in names if int(name[:3]) % 3]
    for name in names:
        (photos / name).write_bytes(b"no picture" if name in bad else _photo(name))
    options = dataclasses.replace(undisturbed, input=str(photos), output=str(tmp_path / "whole"))
    monkeypatch.setattr("pipelines.infer.run.run_tasks", shards_here)
    run(options)
    shutil.copytree(tmp_path / "whole", output := tmp_path / "output")
    for name in bad[:-1]:
        (photos / name).write_bytes(_photo(name))
    whole = dataclasses.replace(options, retry_errors=True)
    run(whole)
    before = shards(output)
    count = len(before)

    def replaced() -> dict[str, int]:
        return {name: inode for name, inode in shards(output).items() if before.get(name) != inode}

    killed = dataclasses.replace(whole, output=str(output))
    line = arguments(killed)
    kill_job("infer", line, moment, count, lambda: len(replaced()), tmp_path, without_ray_until_killed)
    kept = replaced()
    assert storage.exists(str(output / "_retry.json"))
    if moment == 1:
        monkeypatch.undo()
    run(dataclasses.replace(killed, num_workers="1-2"))
    assert kept.items() <= replaced().items()
    assert files(output) == files(tmp_path / "whole")
    assert storage.read_json(str(output / "_manifest.json"))["errors"] == {"unreadable_photo": 1}


def _photo(name: str) -> bytes:
    return dots.encoded(dots.photo(points()[name], WIDTH, HEIGHT), "JPEG")


@pytest.mark.usefixtures("ray_cluster")
def test_a_finished_inference_says_so_and_draws(
    undisturbed: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is predicted again; overlays that are asked for later are drawn all the same."""
    before = shards(Path(str(undisturbed.output)))
    run(dataclasses.replace(undisturbed, overlays=2))
    printed = capsys.readouterr().out
    assert "is already finished" in printed
    assert "unreadable_photo" in printed
    assert shards(Path(str(undisturbed.output))) == before
    assert len(list(Path(str(undisturbed.output), "_overlays").iterdir())) == 3


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such checkpoint": ({"checkpoint": "/nope"}, "--checkpoint: /nope is neither a checkpoint nor a run"),
    "no workers": ({"num_workers": "0"}, "--num-workers 0: MIN must be at least 1 and at most MAX"),
    "no number": ({"readers": "a few"}, "--readers must be N or MIN-MAX, such as 2 or 1-4, not 'a few'"),
    "more processes than CPUs": (
        {"readers": "100"},
        "1 workers and 100 readers need more than this machine's",
    ),
    "empty shards": ({"shard_rows": 0}, "--shard-rows must be at least 1, not 0"),
    "overlays below zero": ({"overlays": -1}, "--overlays must be at least 0"),
    "no such input": ({"input": "/nope"}, "/nope does not exist: --input must be"),
    "an input that nobody serves": (
        {"input": "http://127.0.0.1:1/photos.zip"},
        "--input: http://127.0.0.1:1/photos.zip cannot be reached",
    ),
    "no such boxes": ({"boxes": "/nope.csv"}, "--boxes /nope.csv: there is no such file"),
    "boxes that are a text": ({"boxes": "{place}/notes.txt"}, "--boxes {place}/notes.txt is not a readable"),
    "an output that is a file": ({"output": "{place}/notes.txt"}, "--output {place}/notes.txt is a file"),
    "an output below a file": ({"output": "{place}/notes.txt/a"}, "--output {place}/notes.txt/a lies in"),
    "an output where nothing can be made": ({"output": "/proc/a"}, "--output /proc/a cannot be written"),
    "an output over HTTP": (
        {"output": "http://127.0.0.1:1/a"},
        "--output http://127.0.0.1:1/a: HTTP is for reading only",
    ),
    "boxes of other photos": (
        {"output": None, "root": "{place}/root", "boxes": "{place}/boxes.csv"},
        "none of the 1 uris in {place}/boxes.csv",
    ),
    "errors of nothing": ({"retry_errors": True}, "{place}/output holds no predictions: omit --retry-errors"),
    "overlays of a retry": (
        {"retry_errors": True, "overlays": 1},
        "--overlays does not go with --retry-errors",
    ),
    "a list that is a photo": ({"input": "{place}/photos.parquet"}, "is not a readable CSV or Parquet file"),
    "no GPU": ({"device": "gpu"}, "--device gpu: this machine has no GPU"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_before_ray_starts(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forbid_ray(monkeypatch, "infer")
    write_wrong_files(tmp_path)
    shutil.copy(tmp_path / "photos" / "a.jpg", tmp_path / "photos.parquet")
    (tmp_path / "boxes.csv").write_text("uri,x1,y1,x2,y2\nb.jpg,0,0,9,9\n")
    url = dots.write_checkpoint(str(tmp_path / "checkpoint"))
    options = Options(url, str(tmp_path / "photos"), output=str(tmp_path / "output"))
    changes, message = WRONG[case]
    changes = {k: v.format(place=tmp_path) if isinstance(v, str) else v for k, v in changes.items()}
    before = everything(tmp_path)
    told = one_line(lambda: run(dataclasses.replace(options, **changes)), capsys)
    assert message.format(place=tmp_path) in told
    assert everything(tmp_path) == before
