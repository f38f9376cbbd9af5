"""An action in a process whose files may not grow, which stands for a full disk."""

import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.forks import forks


def on_full_disk(most: int, folder: Path, action: Callable[..., Any], *arguments: Any) -> str:
    """Run the action with at most so many bytes a file and temporary files in the folder.

    Returns the type and words of its error.
    """
    told = folder / "told"
    told.parent.mkdir(parents=True, exist_ok=True)
    told.write_text("")
    process = forks().Process(target=_run, args=(most, folder, told, action, arguments))
    process.start()
    process.join()
    return told.read_text()


def _run(most: int, folder: Path, told: Path, action: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    tempfile.tempdir = str(folder)
    with told.open("w") as file:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            action(*arguments)
        except BaseException as error:
            words = f"{type(error).__name__}: {error}"
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            file.write(words)
