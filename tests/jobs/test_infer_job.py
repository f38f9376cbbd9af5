"""The inference job as a user runs it: killed at any moment and run again, and told what is wrong in one line."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glefld import storage
from jobs.cli import guard
from jobs.infer import Options, run
from tests import dots

#: More moments take longer and prove more: `GLEFLD_KILL_MOMENTS=20 pytest tests/jobs/test_infer_job.py`.
MOMENTS = int(os.environ.get("GLEFLD_KILL_MOMENTS", "2"))
PHOTOS, WIDTH, HEIGHT = 90, 90, 120


def shards(output: Path) -> dict[str, int]:
    """The finished shards by name, with what identifies the file."""
    return {path.name: path.stat().st_ino for path in output.glob("part-*.parquet")}


def points() -> dict[str, np.ndarray]:
    """Where the dots of each photo are, by its name."""
    rng = np.random.default_rng(0)
    return {f"{i:03d}.jpg": dots.random_points(rng, (0, 0, WIDTH, HEIGHT)) for i in range(PHOTOS)}


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options for photos of many shards, and the predictions that they give when nothing happens."""
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
        num_workers=2,
        threads=1,
    )
    run(options)
    return options


def killed(options: Options, wanted: int, delay: float) -> None:
    """Run the job with a Ray of its own; SIGKILL for its whole process group a while after ``wanted`` shards."""
    arguments = []
    for name in ("checkpoint", "input", "output", "shard_rows", "num_workers", "threads"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.infer", *arguments],
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while len(shards(Path(str(options.output)))) < wanted:
            if process.poll() is not None:
                printed.seek(0)
                pytest.fail(f"the job ended before its moment: {printed.read()}")
            time.sleep(0.001)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_and_run_again(moment: int, undisturbed: Options, tmp_path: Path) -> None:
    """Whenever it was killed, the next run ends with each photo once, and redoes no finished shard.

    The first moment is the one between the last shard and the manifest.
    """
    expected = storage.read_json(storage.join(str(undisturbed.output), "manifest.json"))
    count = len(expected["shards"])
    rng = np.random.default_rng(moment)
    wanted, delay = (count, 0.0) if moment == 0 else (int(rng.integers(1, count)), float(rng.uniform(0, 0.3)))
    print(f"killed {delay:.3f} s after {wanted} of {count} shards were there")
    output = tmp_path / "output"
    options = dataclasses.replace(undisturbed, output=str(output))
    killed(options, wanted, delay)
    time.sleep(2)  # a worker that is being taken down may still finish the shard in hand
    kept = shards(output)
    assert wanted <= len(kept)
    if moment == 0:
        assert not (output / "manifest.json").exists(), "killed too late to show anything"
    run(options)
    assert kept.items() <= shards(output).items()
    assert storage.read_json(str(output / "manifest.json"))["content_hash"] == expected["content_hash"]
    assert sorted(path.name for path in output.iterdir()) == ["manifest.json", *sorted(shards(output))]
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("part-*"))).to_pylist()
    found = {row["uri"].rpartition("::")[2]: row for row in rows}
    assert len(rows) == len(found)
    assert found.pop("zzz.jpg")["status"] == "error"
    places = points()
    assert found.keys() == places.keys()
    for name, row in found.items():
        landmarks = np.reshape(row["landmarks"], (2, 2))
        np.testing.assert_allclose(landmarks, places[name], atol=HEIGHT / dots.SIZE)


def test_a_finished_one_says_so_and_draws(undisturbed: Options, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is predicted again; overlays that are asked for later are drawn all the same."""
    before = shards(Path(str(undisturbed.output)))
    run(dataclasses.replace(undisturbed, overlays=2))
    printed = capsys.readouterr().out
    assert "is finished already" in printed
    assert "unreadable_photo" in printed
    assert shards(Path(str(undisturbed.output))) == before
    assert len(list(Path(str(undisturbed.output), "overlays").iterdir())) == 3


WRONG = {
    "no such checkpoint": (
        Options("/nowhere", "/nowhere", output="/nowhere"),
        "neither a checkpoint nor a run",
    ),
    "no workers": (Options("", "", num_workers=0), "--num-workers must be at least 1, not 0"),
    "empty shards": (Options("", "", shard_rows=0), "--shard-rows must be at least 1, not 0"),
    "overlays below zero": (Options("", "", overlays=-1), "--overlays must not be negative"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_end_in_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = WRONG[case]
    with pytest.raises(SystemExit) as end:
        guard(lambda: run(options))
    printed = capsys.readouterr().err
    assert end.value.code == 1
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert message in printed
