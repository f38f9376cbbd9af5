"""Working ahead: in order, within its limits, and errors and endings where they belong."""

import threading
from collections.abc import Iterator

import pytest

from glefld.data.prefetch import ahead, in_threads


def recorded(made: list[int], count: int) -> Iterator[int]:
    for i in range(count):
        made.append(i)
        yield i


def wait_for(made: list[int], count: int) -> None:
    """Until so many are made, then a moment more, in which one too many would be made."""
    pause = threading.Event()
    for _ in range(200):
        if len(made) >= count:
            break
        pause.wait(0.01)
    pause.wait(0.05)
    assert len(made) == count


def test_a_thread_works_ahead_by_number_and_by_size() -> None:
    """One item is held back until there is room for it; a single one may be larger than the limit."""
    made: list[int] = []
    stream = ahead(recorded(made, 20), 3)
    assert next(stream) == 0
    wait_for(made, 5)
    assert list(stream) == list(range(1, 20))

    made.clear()
    stream = ahead(recorded(made, 20), 100, 10, lambda item: 5)
    assert next(stream) == 0
    wait_for(made, 4)
    assert list(stream) == list(range(1, 20))

    made.clear()
    stream = ahead(recorded(made, 20), 100, 10, lambda item: 1000)
    assert next(stream) == 0
    wait_for(made, 3)
    assert list(stream) == list(range(1, 20))


def test_an_error_comes_after_what_was_before_it() -> None:
    def failing() -> Iterator[int]:
        yield from range(3)
        raise OSError("gone")

    stream = ahead(failing(), 10)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(stream)
    with pytest.raises(OSError, match="gone"):
        list(in_threads(lambda item: item, failing(), 1))


def test_closing_ends_the_threads() -> None:
    before = threading.active_count()
    made: list[int] = []
    for stream in (ahead(recorded(made, 10**9), 2), in_threads(lambda item: item, recorded(made, 10**9), 2)):
        assert next(stream) == 0
        assert threading.active_count() > before
        stream.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before


def test_a_pool_keeps_the_order() -> None:
    """The first item is the last to be done."""
    others = threading.Semaphore(0)

    def work(item: int) -> int:
        if item == 0:
            for _ in range(3):
                assert others.acquire(timeout=10)
        others.release()
        return item * item

    assert list(in_threads(work, range(50), 2)) == [i * i for i in range(50)]
    assert list(in_threads(work, [], 2)) == []
