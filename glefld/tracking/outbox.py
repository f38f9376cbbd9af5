"""What waits to be sent: a thread sends it in order, and again for as long as the receiver is away."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0

#: One thing to send, as JSON has it.
Item = dict[str, Any]


class Outbox:
    """Items in order; none is lost: each is sent, or refused, or among ``left``.

    send: sends one item or raises. refused: whether an error is about the item, which is then set aside, and not about
    the receiver's absence, in which case it is tried again after a pause. An item may so arrive twice.
    """

    def __init__(self, send: Callable[[Item], None], refused: Callable[[Exception], bool]) -> None:
        self._send, self._is_refusal = send, refused
        self._waiting: deque[Item] = deque()
        self._refused: list[Item] = []
        self._changed = threading.Condition()
        self._moved = time.monotonic()
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None
        """Why the last attempt failed; None after one that did not."""

    def put(self, item: Item) -> None:
        """Never waits for the receiver."""
        with self._changed:
            if not self._waiting:
                self._moved = time.monotonic()
            self._waiting.append(item)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether all that was put has been sent, after so many seconds at most."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds) and not self._refused

    def drain(self, seconds: float) -> bool:
        """Whether all that was put has been sent. Waits while something is, and gives up after so long with nothing."""
        with self._changed:
            start = time.monotonic()
            while self._waiting:
                rest = max(start, self._moved) + seconds - time.monotonic()
                if rest <= 0:
                    return False
                self._changed.wait(rest)
            return not self._refused

    def stuck(self, seconds: float) -> bool:
        """Whether something waits, and the last attempt failed or has gone on for so long."""
        with self._changed:
            return bool(self._waiting) and (
                self.error is not None or time.monotonic() - self._moved > seconds
            )

    def left(self) -> list[Item]:
        """What was refused, with its ``error``, and what waits."""
        with self._changed:
            return [*self._refused, *self._waiting]

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                item = self._waiting[0]
            try:
                self._send(item)
            except Exception as error:
                refused = self._is_refusal(error)
                with self._changed:
                    self.error = error
                    if refused:
                        self._refused.append({**self._waiting.popleft(), "error": str(error)})
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
