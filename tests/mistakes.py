"""What a user sees of a mistake."""

from collections.abc import Callable

import pytest

from jobs.cli import guard


def one_line(action: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr in which the action ends, with exit status 1."""
    with pytest.raises(SystemExit) as end:
        guard(action)
    printed = capsys.readouterr().err
    assert end.value.code == 1
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed
