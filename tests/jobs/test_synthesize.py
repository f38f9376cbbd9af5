"""The synthesize job's command line."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from glefld.data.dataset import open_dataset
from jobs import cli, synthesize
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import prepare
from tests.ingested import write_dataset
from tests.mistakes import one_line


def test_writes_a_data_set_and_says_what_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line of options gives an archive with its lists and a table of its rows."""
    output = str(tmp_path / "raw")
    monkeypatch.setattr(sys, "argv", ["", "--layout", "fld", "--count", "10", "--output", output])
    cli.main(synthesize.Options, synthesize.run)
    found = sorted(str(path.relative_to(output)) for path in Path(output).rglob("*.*"))
    assert found == [
        "Anno/list_bbox.txt",
        "Anno/list_landmarks.txt",
        "Anno/list_view.txt",
        "Eval/list_eval_partition.txt",
        "img.zip",
        "planted.json",
        "rendered.json",
    ]
    assert "10 photos" in " ".join(capsys.readouterr().out.split())
    # A data set of it does not bear the benchmark's name alone.
    plan = prepare(IngestOptions("fld", output), str(tmp_path / "data"))
    assert plan.source["rendered"]
    manifest = open_dataset(write_dataset(tmp_path / "other", {"train": 1}))
    assert manifest.title == "fld"
    assert dataclasses.replace(manifest, source=plan.source).title == "fld (rendered)"


def test_writes_deepfashion2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two zips and the garments of each category; faults are planted in lists only, and asking for them is told."""
    output = str(tmp_path / "raw")
    options = synthesize.Options("deepfashion2", 12, output, processes=1)
    synthesize.run(options)
    assert sorted(path.name for path in Path(output).iterdir()) == [
        "rendered.json",
        "train.zip",
        "validation.zip",
    ]
    printed = " ".join(capsys.readouterr().out.split())
    assert "12 photos" in printed
    assert "validation" in printed
    told = one_line(lambda: synthesize.run(dataclasses.replace(options, irregularities=1)), capsys)
    assert "omit it for deepfashion2" in told


def test_a_process_ends_in_one_line_with_status_1(tmp_path: Path) -> None:
    """No traceback, no output, an exit status that a script can see."""
    command = [sys.executable, "-m", "jobs.synthesize", "--layout", "fld", "--count", "0"]
    result = subprocess.run(
        [*command, "--output", str(tmp_path / "raw")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.strip() == "error: --count must be at least 1, not 0"
    assert not (tmp_path / "raw").exists()
