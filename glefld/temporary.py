"""Temporary files and folders of which killed processes leave nothing for good."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

#: Start of the names of temporary folders.
_TEMPORARY = "glefld-temporary-"


@contextlib.contextmanager
def temporary_space() -> Iterator[None]:
    """Within the block only temporary files are written: OSError names their folder if it is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            f"no space for temporary files in {tempfile.gettempdir()} ({error.strerror}): free some, or set TMPDIR to "
            "another folder"
        ) from error


@contextlib.contextmanager
def temporary_file() -> Iterator[IO[bytes]]:
    """Yield an unnamed temporary file, of which a killed process leaves nothing behind. See ``temporary_space``."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        yield file
    finally:
        # What is still buffered is not needed any more, and may be what did not fit.
        with contextlib.suppress(OSError):
            file.close()


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Yield a new folder for temporary files, and remove it at the end.

    A process that is killed leaves its folder, and the next call on this machine removes it. A folder in use is told
    from an abandoned one by a lock, which ends with the process that holds it.
    """
    place = Path(tempfile.gettempdir())
    _remove_abandoned(place)
    folder, lock = _locked_folder(place)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder)
        os.close(lock)


def _remove_abandoned(place: Path) -> None:
    for folder in place.glob(f"{_TEMPORARY}*"):
        if not re.fullmatch(_TEMPORARY + "[0-9a-f]{32}", folder.name):
            continue
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or gone by now
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # which says that it is in use
                logger.warning("%s, which a killed process left, cannot be removed: %s", folder, error)
        finally:
            os.close(lock)


def _locked_folder(place: Path) -> tuple[Path, int]:
    """Make a temporary folder. Returns it with the descriptor that holds its lock."""
    while True:
        folder = place / f"{_TEMPORARY}{uuid.uuid4().hex}"
        folder.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)
        # Another process took it for abandoned before it was locked.
