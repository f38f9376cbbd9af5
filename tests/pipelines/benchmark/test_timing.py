"""Measuring in turn, and the ratios and spreads of the result."""

from collections.abc import Callable

import pytest
import torch

from pipelines.benchmark.timing import Measurement, interleave, rate, stream_rate


def test_cases_take_turns_after_a_round_that_does_not_count() -> None:
    called = []

    def case(name: str) -> Callable[[], float]:
        def figure() -> float:
            called.append(name)
            return float(len(called))

        return figure

    figures = interleave({"a": case("a"), "b": case("b")}, 2, warm_up=True)
    assert called == ["a", "b"] * 3
    assert figures == {"a": [3, 5], "b": [4, 6]}


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is half as fast in the second round changes no ratio."""
    value = Measurement("rows/s", "higher", [100, 50, 80], [200, 100, 160], peer=[50, 25, 40]).to_json()
    assert (value["ours"], value["ceiling"], value["peer"]) == (80, 160, 50 - 10)
    assert (value["of_ceiling"], value["of_peer"]) == (0.5, 2)
    assert value["spread"]["of_peer"] == {"min": 2, "max": 2, "repeats": 3}
    assert value["spread"]["ours"] == {"min": 50, "max": 100, "repeats": 3}


def test_of_seconds_fewer_are_faster() -> None:
    value = Measurement("s", "lower", [20.0], [5.0], peer=[40.0]).to_json()
    assert (value["of_ceiling"], value["of_peer"]) == (0.25, 2)


def test_without_a_peer_there_is_no_ratio_to_it() -> None:
    value = Measurement("s", "lower", [20.0], also={"exit, s": [1.0, 3.0]}).to_json()
    assert value["peer"] is None
    assert value["of_peer"] is None
    assert set(value["spread"]) == {"ours"}
    assert value["also"] == {"exit, s": {"median": 2, "min": 1, "max": 3, "repeats": 2}}


def test_work_that_takes_longer_than_the_time_is_done_once() -> None:
    calls: list[int] = []
    assert rate(lambda: calls.append(1), 7, 0.0, torch.device("cpu")) > 0
    assert calls == [1]


def test_what_a_stream_has_ready_does_not_count() -> None:
    stream = iter(range(100))
    assert stream_rate(stream, 10, 0.0, lambda item: item) > 0
    assert next(stream) == 11, "ten skipped, one counted"


def test_an_error_of_a_case_is_not_hidden() -> None:
    def fail() -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleave({"a": fail}, 1, warm_up=False)
