"""What ends a job: one line for what a user can mend, a traceback for a bug of ours."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from glefld.errors import UserError
from jobs import cli
from jobs.cli import guard, open_data, resolve_checkpoint


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str]:
    """The exit status and what stands on stderr of a job that raises this."""

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        guard(fail)
    return end.value.code, capsys.readouterr().err


def test_a_users_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(UserError("give --name\nagain"), capsys) == (1, "error: give --name again\n")


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "No such file", "list.txt"), EndpointConnectionError(endpoint_url="http://store")],
)
def test_what_disks_and_networks_answer_is_one_line_that_says_how_to_see_more(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = ended(error, capsys)
    assert status == 1
    assert line.count("\n") == 1
    assert "GLEFLD_DEBUG=1" in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("No room. Ray's own advice.", "No room"),
        ("\nThe dashboard died.\nIts log", "The dashboard died"),
        ("", "OSError"),
    ],
)
def test_why_ray_did_not_start_is_told_in_words(text: str, told: str) -> None:
    """Ray begins some of its errors with an empty line."""
    assert cli._first_sentence(OSError(text)) == told


def test_secrets_of_urls_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hidden" not in ended(OSError("s3://key:hidden@bucket/a is gone"), capsys)[1]


def test_any_other_error_is_our_bug_and_keeps_its_traceback() -> None:
    def fail() -> None:
        raise ValueError("not a user's")

    with pytest.raises(ValueError, match="not a user's"):
        guard(fail)


def test_the_debug_variable_keeps_every_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLEFLD_DEBUG", "1")

    def fail() -> None:
        raise UserError("give --name")

    with pytest.raises(UserError):
        guard(fail)


@pytest.mark.parametrize("job", ["ingest", "infer", "train", "synthesize"])
def test_a_wrong_option_names_the_command_that_explains_them(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the user typed it: the job's file is no command."""
    monkeypatch.setattr(sys, "argv", ["", "--no-such-option", "1"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert f"python -m jobs.{job} --help" in printed
    assert ".py" not in printed


def test_a_connection_that_breaks_is_no_reader_that_left(capsys: pytest.CaptureFixture[str]) -> None:
    status, line = ended(BrokenPipeError(32, "Broken pipe"), capsys)
    assert status == 1
    assert line.startswith("error: [Errno 32] Broken pipe")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("{root}/runs/frist", "/runs/first"), ("first", "/runs/first"), ("fisrt", "/runs/first"), ("xyz", None)],
)
def test_a_mistyped_run_gets_the_right_one(given: str, meant: str | None, tmp_path: Path) -> None:
    """Beside what was named or, of a name alone, among the runs of the root."""
    (tmp_path / "runs" / "first").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        resolve_checkpoint(given.format(root=tmp_path), "--checkpoint", str(tmp_path))
    assert str(error.value).startswith("--checkpoint: ")
    assert ("did you mean" in str(error.value)) is (meant is not None)
    if meant is not None:
        assert str(error.value).endswith(f"; did you mean {tmp_path}{meant}?")


def test_a_mistyped_data_set_gets_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "data" / "deepfashion").mkdir(parents=True)
    with pytest.raises(UserError, match=f"did you mean {tmp_path}/data/deepfashion\\?"):
        open_data(f"{tmp_path}/data/deepfasion", str(tmp_path), "deepfashion")


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt(), capsys) == (130, "stopped\n")


def test_a_job_ends_with_what_others_do_at_exit_and_all_that_it_printed(tmp_path: Path) -> None:
    """Handlers that were registered before a job's own run too, and the last line reaches a pipe."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, pathlib\natexit.register(lambda: pathlib.Path(__file__).with_name('told').touch())\n"
    )
    job = [
        sys.executable,
        "-m",
        "jobs.synthesize",
        "--layout",
        "fld",
        "--count",
        "2",
        "--output",
        tmp_path / "raw",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(job, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.rstrip().endswith("┘")  # the table's last line
    assert (tmp_path / "told").exists()
