"""What a killed process leaves in the folder for temporary files is removed by the next."""

import multiprocessing
import os
import signal
import tempfile
import uuid
from pathlib import Path

import pytest

from glefld.temporary import temporary_folder


def leave_a_folder(printed: str) -> None:
    """What a process does that is killed while it has a temporary folder."""
    with temporary_folder() as folder:
        Path(folder, "weights").write_bytes(bytes(100))
        Path(printed).write_text(folder)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_its_temporary_folder_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which removes it, but no folder in use, and nothing of another name."""
    temporary = tmp_path / "temporary"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for name in ("glefld-temporary-mine", f"glefld-{uuid.uuid4().hex}", "elsewhere"):
        (temporary / name).mkdir(parents=True)
    (temporary / f"glefld-temporary-{uuid.uuid4().hex}").symlink_to(temporary / "elsewhere")
    there = sorted(temporary.iterdir())
    process = multiprocessing.get_context("fork").Process(
        target=leave_a_folder, args=(str(tmp_path / "printed"),)
    )
    process.start()
    process.join()
    left = Path((tmp_path / "printed").read_text())
    assert list(left.iterdir())
    with temporary_folder() as first:
        assert not left.exists()
        with temporary_folder() as second:
            assert sorted(temporary.iterdir()) == sorted([*there, Path(first), Path(second)])
    assert sorted(temporary.iterdir()) == there
