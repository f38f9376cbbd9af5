"""Measuring alternatives in turn, so that a machine that gets slower or faster meanwhile favours none of them."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

#: Figures of one alternative, one per repetition.
Figures = list[float]


def interleave(cases: Mapping[str, Callable[[], float]], repeats: int, warm_up: bool) -> dict[str, Figures]:
    """Call the cases in turn, ``repeats`` times each, and return their figures. warm_up: one more round before."""
    if warm_up:
        for case in cases.values():
            case()
    figures: dict[str, Figures] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            figures[name].append(case())
    return figures


def rate(work: Callable[[], object], items: float, seconds: float, device: torch.device) -> float:
    """Return items per second: ``work``, which does ``items`` at a time, is repeated for at least ``seconds``."""
    synchronize(device)
    start, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or not calls:
        work()
        calls += 1
        # Without it a GPU's queue would fill, and its time would not be counted.
        synchronize(device)
    return items * calls / spent


def stream_rate(stream: Iterator[Any], skip: int, seconds: float, count: Callable[[Any], int]) -> float:
    """Return items per second of a stream that works ahead: the first ``skip`` elements, made before, do not count."""
    for _ in range(skip):
        next(stream)
    start, items = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or not items:
        items += count(next(stream))
    return items / spent


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(figures: Sequence[float]) -> dict[str, float]:
    """Return the lowest and highest figure and their number."""
    return {"min": min(figures), "max": max(figures), "repeats": len(figures)}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A stage's figures, those of what it is compared with, and what those are in words."""

    unit: str
    better: Literal["higher", "lower"]
    ours: Figures
    ceiling: Figures | None = None
    ceiling_is: str = ""
    peer: Figures | None = None
    peer_is: str = ""
    also: dict[str, Figures] = dataclasses.field(default_factory=dict)
    """Further figures by name and unit, such as ``exit, s``."""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What was measured, such as the batch size."""

    def of(self, other: Figures | None) -> Figures | None:
        """Return how fast we are relative to other figures, repetition by repetition: 1 is as fast, 2 twice as fast."""
        if other is None:
            return None
        pairs = zip(self.ours, other, strict=True)
        return [ours / theirs if self.better == "higher" else theirs / ours for ours, theirs in pairs]

    def to_json(self) -> dict[str, Any]:
        """Return medians, ratios and spreads. ``of_ceiling`` and ``of_peer`` are medians of the ratios in one round."""
        named = {"ours": self.ours, "ceiling": self.ceiling, "peer": self.peer}
        named |= {"of_ceiling": self.of(self.ceiling), "of_peer": self.of(self.peer)}
        medians = {name: None if not f else statistics.median(f) for name, f in named.items()}
        return {
            **medians,
            "spread": {name: spread(f) for name, f in named.items() if f},
            "unit": self.unit,
            "better": self.better,
            "ceiling_is": self.ceiling_is,
            "peer_is": self.peer_is,
            "also": {name: {"median": statistics.median(f), **spread(f)} for name, f in self.also.items()},
            "facts": self.facts,
        }
