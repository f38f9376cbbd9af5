"""The ingest job as a user runs it: killed at any moment and run again, and told what is wrong in one line."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
import tyro

from glefld.data.dataset import open_dataset
from jobs.ingest import Options, run
from tests.in_process import shards_here, without_ray_until_killed
from tests.killing import MOMENTS, kill_job
from tests.mistakes import answering, everything, forbid_ray, one_line, write_wrong_files
from tests.raw_layouts import fld_lists, photos, rows, write_fld


def files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def shards(output: Path) -> dict[str, int]:
    """The finished shards by path, with what identifies the file."""
    return {str(path.relative_to(output)): path.stat().st_ino for path in output.glob("split=*/part-*")}


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options for a source of several shards, and the data set that they give when nothing happens."""
    root = tmp_path_factory.mktemp("undisturbed")
    listed = rows(300)
    source = write_fld(root / "source", listed, photos(listed, width=110, height=140))
    options = Options("fld", str(source), output=str(root / "output"), shard_mib=1)
    run(options)
    return options


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_ingest_run_again_gives_the_same_data_set(
    moment: int, undisturbed: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it was killed, the next run ends with the undisturbed data set and redoes no finished shard.

    The first moment is the one between the last shard and the manifest. At the second, Ray's workers are killed. At the
    others the job's own process writes the shards.
    """
    before = None if moment == 1 else without_ray_until_killed
    expected = Path(str(undisturbed.output))
    count = len(open_dataset(str(expected)).shards)
    output = tmp_path / "output"
    options = dataclasses.replace(undisturbed, output=str(output))
    arguments = ["--dataset", "fld", "--source", options.source, "--output", str(output), "--shard-mib", "1"]
    wanted = kill_job("ingest", arguments, moment, count, lambda: len(shards(output)), tmp_path, before)
    kept = shards(output)
    assert wanted <= len(kept)
    if before is not None:
        assert not (output / "_manifest.json").exists(), "killed too late to show anything"
        monkeypatch.setattr("pipelines.ingest.run.run_tasks", shards_here)
    run(options)
    assert files(output) == files(expected)
    assert kept.items() <= shards(output).items()


def test_a_finished_ingest_says_so(undisturbed: Options, capsys: pytest.CaptureFixture[str]) -> None:
    before = shards(Path(str(undisturbed.output)))
    run(undisturbed)
    assert "is already finished" in capsys.readouterr().out
    assert shards(Path(str(undisturbed.output))) == before


#: Mistakes of an ingest whose source is whole.
UNWRITABLE = {
    "an output where nothing can be made": (
        ["--output", "/proc/nope"],
        "--output /proc/nope cannot be written",
    ),
    "a root where nothing can be made": (["--root", "/proc"], "--root /proc/data/fld cannot be written"),
    "an output that is a file": (["--output", "{place}/notes.txt"], "--output {place}/notes.txt is a file"),
    "an output over HTTP": (["--output", "{server}/x"], "--output {server}/x: HTTP is for reading only"),
    "a root over HTTP": (
        ["--root", "{server}/x"],
        "--root (or GLEFLD_ROOT) {server}/x: HTTP is for reading only",
    ),
    "an output in the source": (
        ["--output", "{place}/source/out"],
        "--output {place}/source/out lies in --source",
    ),
    "a source without photos": (
        ["--root", "{place}/a/b", "--source", "{place}/photos"],
        "photos has no photos",
    ),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_a_mistake_is_one_line_before_ray_starts(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And leaves nothing behind, not even an empty folder of the root."""
    forbid_ray(monkeypatch, "ingest")
    listed = rows(10)
    source = write_fld(tmp_path / "source", listed, photos(listed))
    write_wrong_files(tmp_path)
    before = everything(tmp_path)
    with answering(501) as server:
        arguments, message = UNWRITABLE[case]
        given = [word.format(place=tmp_path, server=server) for word in arguments]
        options = tyro.cli(Options, args=["--dataset", "fld", "--source", str(source), *given])
        told = one_line(lambda: run(options), capsys)
        assert message.format(place=tmp_path, server=server) in told
    assert everything(tmp_path) == before


WRONG = {
    "no such source": (Options("fld", "/proc/nowhere"), "neither a folder nor an archive"),
    "a margin below zero": (
        Options("fld", "/proc/nowhere", margin=-0.1),
        "--margin must be between 0 and 10",
    ),
    "a tolerance below zero": (
        Options("fld", "/proc/nowhere", landmark_tolerance=-1),
        "--landmark-tolerance",
    ),
    "no shard size": (Options("fld", "/proc/nowhere", shard_mib=0), "--shard-mib must be at least 1"),
    "an unknown kind of URL": (Options("fld", "ftpx://host/a"), "ftpx"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_of_ingest_are_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = WRONG[case]
    assert message in one_line(lambda: run(options), capsys)


def test_a_mistake_in_the_lists_of_several_archives_is_told_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although Ray's tasks will read the archives."""
    forbid_ray(monkeypatch, "ingest")
    listed = rows(10)
    source = write_fld(tmp_path / "source", listed, photos(listed), "img-0.zip")
    write_fld(source, listed, {}, "img-1.zip")
    boxes = source / "Anno" / "list_bbox.txt"
    boxes.write_text(boxes.read_text().replace("005", "five"))
    printed = one_line(lambda: run(Options("fld", str(source), output=str(tmp_path / "output"))), capsys)
    assert "list_bbox.txt, line 3: expected a number, got 'five'" in printed
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("missing", list(fld_lists([])))
def test_ingest_without_a_list_names_it_and_writes_nothing(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job stops with the list's name, and nothing that could be taken for a data set is written."""
    listed = rows(10)
    source = write_fld(tmp_path / "source", listed, photos(listed))
    (source / missing).unlink()
    printed = one_line(lambda: run(Options("fld", str(source), output=str(tmp_path / "output"))), capsys)
    assert f"the list {missing.split('/')[1]} is missing" in printed
    assert not (tmp_path / "output").exists()
