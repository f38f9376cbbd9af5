"""The right name that is nearest to a mistyped one."""

import difflib
from collections.abc import Iterable


def nearest(given: str, names: Iterable[str]) -> str | None:
    """Return the name that is most like the given one; None if none is like it."""
    by_small = {name.lower(): name for name in names}
    found = difflib.get_close_matches(given.lower(), by_small, n=1, cutoff=0.6)
    return by_small[found[0]] if found else None


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """Return ``; did you mean NAME?`` to append to a message; empty if no name is like the given one."""
    found = nearest(given, names)
    return f"; did you mean {found}?" if found is not None else ""
