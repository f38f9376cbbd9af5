"""A queue sent by a background thread: in order, with retries for as long as the receiver is away."""

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Unsent(Generic[Item]):
    """An item that was not sent."""

    item: Item
    error: Exception | None = None
    """Why the receiver refused it; None while it waits."""


class Outbox(Generic[Item]):
    """Sends items in order and loses none: each one is sent, or is among ``unsent``.

    send: sends one item or raises. An item may be sent twice, when the answer to the first attempt is lost.
    is_permanent: whether an error means that the receiver will never take the item, which is then set aside. After
    any other error the item is sent again.
    """

    def __init__(self, send: Callable[[Item], None], is_permanent: Callable[[Exception], bool]) -> None:
        self._send, self._is_permanent = send, is_permanent
        self._waiting: deque[Item] = deque()
        self._refused: list[Unsent[Item]] = []
        self._changed = threading.Condition()
        self._moved = time.monotonic()  # when the queue last got shorter, or stopped being empty
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None
        """Why the last attempt failed; None if it succeeded."""

    def put(self, item: Item) -> None:
        """Add an item. Never waits for the receiver."""
        with self._changed:
            if not self._waiting:
                self._moved = time.monotonic()
            self._waiting.append(item)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until the queue is empty, for at most ``seconds``. Returns whether everything was sent."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds) and not self._refused

    def drain(self, seconds: float) -> bool:
        """Wait for as long as items are taken; give up after ``seconds`` without one. Returns whether all were sent."""
        with self._changed:
            start = time.monotonic()
            while self._waiting:
                rest = max(start, self._moved) + seconds - time.monotonic()
                if rest <= 0:
                    return False
                self._changed.wait(rest)
            return not self._refused

    def stuck(self, seconds: float) -> bool:
        """Whether an item waits and the last attempt failed or has taken longer than ``seconds``."""
        with self._changed:
            return bool(self._waiting) and (
                self.error is not None or time.monotonic() - self._moved > seconds
            )

    def unsent(self) -> list[Unsent[Item]]:
        """The refused items, then the waiting ones."""
        with self._changed:
            return [*self._refused, *(Unsent(item) for item in self._waiting)]

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                item = self._waiting[0]
            try:
                self._send(item)
            except Exception as error:
                refused = self._is_permanent(error)
                with self._changed:
                    self.error = error
                    if refused:
                        self._refused.append(Unsent(self._waiting.popleft(), error))
                        self._moved = time.monotonic()
                        self._changed.notify_all()
                if not refused:
                    time.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
                with self._changed:
                    self._waiting.popleft()
                    self.error, self._moved = None, time.monotonic()
                    self._changed.notify_all()
