"""What a training's workers tell the driver while they train: one line of their logs each, which Ray passes on.

Ray Train tells the driver nothing before the end. Imports no Ray, so that a job can be parsed without it.
"""

import dataclasses
import json
import sys
from typing import Any

#: How such a line begins.
MARK = "glefld-training "


@dataclasses.dataclass(frozen=True)
class Began:
    """The workers have read the data and the last checkpoint, and train."""

    run: str
    """Name of the run."""
    precision: str
    why: str
    """Why this precision, in words."""
    epochs: int
    steps: int
    """Steps of an epoch."""
    done: int
    """Steps that an earlier start has done."""
    workers: int


@dataclasses.dataclass(frozen=True)
class Stepped:
    """Steps were done."""

    run: str
    step: int
    """Completed steps, counted from the run's start."""
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class EpochEnded:
    """An epoch was trained and scored on the val split."""

    run: str
    epoch: int
    """Completed epochs."""
    step: int
    images_per_second: float
    measure: str
    """What the error is: NE, 1 - AP of a detector, or error of a classifier."""
    error: float
    best: float
    """The lowest error so far."""


@dataclasses.dataclass(frozen=True)
class WorkersLost:
    """Workers failed. Ray Train starts the group again, or gives up, as it was told."""

    run: str
    reasons: list[str]
    """By worker, in words."""
    again: bool


Event = Began | Stepped | EpochEnded | WorkersLost
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Began, Stepped, EpochEnded, WorkersLost)}


def tell(event: Event) -> None:
    """Tell the driver from any process of its Ray job."""
    # Not print(), which Ray Train would show twice in a worker.
    sys.stderr.write(line(event) + "\n")
    sys.stderr.flush()


def line(event: Event) -> str:
    """Return an event as a line of text."""
    return MARK + json.dumps({"event": type(event).__name__, **dataclasses.asdict(event)})


def parse(text: str) -> Event | None:
    """Return the event of a line of a log; None for any other line."""
    if not text.startswith(MARK):
        return None
    value = json.loads(text.removeprefix(MARK))
    return _KINDS[value.pop("event")](**value)
