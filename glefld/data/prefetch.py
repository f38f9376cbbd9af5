"""Working ahead of whoever takes the results: in one thread, or in a pool of them."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


class _Queue(Generic[Item]):
    """Hands items from one thread to another: at most ``count`` of them, and of a total size of at most ``size``.

    A single item may be larger.
    """

    def __init__(self, count: int, size: int | None) -> None:
        self._count, self._size = count, size
        self._items: deque[tuple[Item, int]] = deque()
        self._held = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item, size: int) -> bool:
        """Wait until there is room. Returns False if the queue has been closed."""

        def ready() -> bool:
            fits = self._size is None or not self._items or self._held + size <= self._size
            return self._closed or (fits and len(self._items) < self._count)

        with self._changed:
            self._changed.wait_for(ready)
            if self._closed:
                return False
            self._items.append((item, size))
            self._held += size
            self._changed.notify_all()
            return True

    def get(self) -> Item:
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            item, size = self._items.popleft()
            self._held -= size
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def ahead(
    items: Iterable[Item],
    count: int,
    size: int | None = None,
    size_of: Callable[[Item], int] = lambda item: 0,
) -> Iterator[Item]:
    """Yield the items in order while a thread produces up to ``count`` of them ahead.

    size: limit on the sum of ``size_of`` of the items that wait, of which a single one may be larger.
    An error of the iterable is raised here, after the items before it. Closing this iterator ends the thread.
    """
    full: _Queue[object] = _Queue(count, size)

    def work() -> None:
        try:
            for item in items:
                if not full.put(item, size_of(item)):
                    return
            full.put(_END, 0)
        except BaseException as error:
            full.put(_Failure(error), 0)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while (item := full.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield cast(Item, item)
    finally:
        full.close()
        thread.join()


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield ``function`` of each item, in order, computed by a pool of threads a few items ahead.

    An error of a call is raised in its place, one of the iterable at once.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads, "ahead") as pool:
        futures = deque(pool.submit(function, item) for item in itertools.islice(source, 2 * threads))
        try:
            while futures:
                yield futures.popleft().result()
                futures.extend(pool.submit(function, item) for item in itertools.islice(source, 1))
        finally:
            for future in futures:
                future.cancel()
