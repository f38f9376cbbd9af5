"""The queue alone: what counts as a receiver that is away, and what waits for it."""

import threading
import time

from glefld.tracking.outbox import Outbox, Unsent


def test_a_receiver_that_does_not_answer_counts_as_away_until_it_does() -> None:
    thaw = threading.Event()
    received = []

    def send(item: int) -> None:
        assert thaw.wait(60)
        received.append(item)

    outbox = Outbox(send, is_permanent=lambda error: False)
    outbox.put(0)
    assert not outbox.stuck(0.2)
    assert not outbox.wait(0.3)
    assert outbox.stuck(0.2)
    outbox.put(1)
    assert outbox.stuck(0.2)
    thaw.set()
    assert outbox.wait(60)
    assert not outbox.stuck(0)
    assert received == [0, 1]


def test_draining_waits_for_a_slow_receiver_and_gives_up_a_silent_one() -> None:
    """The limit is for one item, not for the whole queue."""
    silent = threading.Event()

    def send(item: int) -> None:
        if item == 8:
            assert silent.wait(60)
        time.sleep(0.05)

    outbox = Outbox(send, is_permanent=lambda error: False)
    for n in range(8):
        outbox.put(n)
    assert outbox.drain(0.25), "eight items, 0.05 seconds each"
    outbox.put(8)
    assert not outbox.drain(0.25)
    assert outbox.unsent() == [Unsent(8)]
    silent.set()
    assert outbox.drain(60)


def test_a_refused_item_is_set_aside_with_its_error() -> None:
    """It is not sent again, and the items behind it are sent."""
    refusal = ValueError("never")
    received = []

    def send(item: str) -> None:
        if item == "refused":
            raise refusal
        received.append(item)

    outbox = Outbox(send, is_permanent=lambda error: error is refusal)
    for item in ("first", "refused", "last"):
        outbox.put(item)
    assert not outbox.drain(60)
    assert received == ["first", "last"]
    assert outbox.unsent() == [Unsent("refused", refusal)]
