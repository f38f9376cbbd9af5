"""``export``: a file that ``predict`` takes in place of the checkpoint, and mistakes in one line."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from jobs import export, predict
from tests import dots
from tests.mistakes import one_line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and a photo."""
    root = tmp_path_factory.mktemp("export")
    dots.write_checkpoint(str(root / "dots"))
    dots.photo(dots.random_points(np.random.default_rng(0), (0, 0, 240, 160)), 240, 160).save(
        root / "photo.png"
    )
    return root


def test_predict_takes_the_file_for_the_checkpoint(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed says what the file holds and where it is; by default in this folder."""
    monkeypatch.chdir(place)
    export.run(export.Options(str(place / "dots")))
    said = capfd.readouterr().out
    assert f"written        {place / 'model.onnx'}" in said
    assert "model          local" in said
    assert "differs from PyTorch by at most" in said
    answers = []
    for checkpoint in (place / "dots", place / "model.onnx"):
        predict.run(predict.Options((str(place / "photo.png"),), str(checkpoint), device="cpu"))
        (row,) = json.loads(capfd.readouterr().out)
        answers.append(row)
    ours, theirs = (answer.pop("landmarks") for answer in answers)
    assert answers[0] == answers[1]
    for name in dots.DOTS.landmarks:
        assert ours[name] == pytest.approx(theirs[name], abs=0.01)


def test_a_mistake_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (
        (export.Options(str(place / "absent")), "--checkpoint"),
        (export.Options(str(place / "dots"), output=str(place / "photo.png" / "x.onnx")), "--output"),
        (export.Options(str(place / "dots"), output=str(place / "x.pt2")), "must end in .onnx"),
        (export.Options(str(place / "dots"), "torch", str(place / "x.onnx")), "must end in .pt2"),
    ):
        with redirect_stdout(io.StringIO()):
            assert words in one_line(lambda options=options: export.run(options), capsys)  # type: ignore[misc]


def test_other_jobs_say_that_they_take_checkpoints(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.cli import resolve_checkpoint

    (place / "some.onnx").write_bytes(b"")
    line = one_line(lambda: print(resolve_checkpoint(str(place / "some.onnx"), "--checkpoint", None)), capsys)
    assert "predict" in line
