"""All uses of tyro's private names in this project: it has no public way to see why it refuses a command line.

A test fails if a release removes one of them.
"""

import contextlib
from collections.abc import Callable, Iterator

from tyro._errors import InvalidChoice, MissingArgs, ParseErrorEvent, on_parse_error

from jobs.nearest import nearest


@contextlib.contextmanager
def hints(tell: Callable[[str], None]) -> Iterator[None]:
    """Call ``tell`` with the option or value that was probably meant, just before tyro refuses a command line.

    tyro itself suggests options, but neither values nor an option whose mistyped name leaves a required one missing.
    """

    def look(event: ParseErrorEvent) -> None:
        if isinstance(event, InvalidChoice):
            if (value := nearest(event.value, event.choices)) is not None:
                tell(f"{event.argument.lowered.name_or_flags[-1]} {value}")
        elif isinstance(event, MissingArgs):
            missing = [flag for each in event.missing_arguments for flag in each.arg.lowered.name_or_flags]
            for token in event.unrecognized_tokens:
                option = token.partition("=")[0]
                if option.startswith("--") and (flag := nearest(option, missing)) is not None:
                    tell(flag)

    with on_parse_error(look):
        yield
