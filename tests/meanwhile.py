"""Something done again and again while a test does something else."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def meanwhile(action: Callable[[], None], pause: float = 0.05) -> Iterator[None]:
    """Call ``action`` in a thread, with so many seconds in between, until the block ends. Raises what it raised."""
    over = threading.Event()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            while not over.wait(pause):
                action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if raised:
        raise raised[0]
