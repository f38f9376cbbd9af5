"""What a user sees of a job while it goes on, in a log and at a terminal."""

import io
import re

import pytest
from rich.console import Console

from jobs import progress
from jobs.progress import RowBar, TrainingProgress, duration
from pipelines.train import events
from pipelines.train.events import Began, EpochEnded, Stepped, WorkersLost
from pipelines.train.workers import WorkerGroup

WORKERS = WorkerGroup(2, 2, 1, False)
BEGAN = Began("first", "fp32", "as asked for", epochs=2, steps=10, done=0, workers=2)
TOLD = (
    BEGAN,
    Stepped("first", 5, 41.2),
    EpochEnded("first", 1, 10, 40.6, "NE", 0.0845, 0.0845),
    Stepped("first", 15, 41.2),
    EpochEnded("first", 2, 20, 1234.4, "NE", 0.09, 0.0845),
)


def shown(console: Console, *told: events.Event, several: bool = False) -> None:
    with TrainingProgress(console, WORKERS, several=several) as display:
        for event in told:
            assert display.take(events.line(event))


def test_rows_in_a_log_are_a_few_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at the start, one at the end, and in between not one for each step."""
    log = io.StringIO()
    with RowBar(Console(file=log), "infer") as bar:
        for done in range(0, 1001, 100):
            bar(done, 1000)
    first, last = log.getvalue().splitlines()
    assert first == "infer  0 of 1,000"
    assert re.fullmatch(r"infer  1,000 of 1,000, [\d,]+ a second", last)

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    log = io.StringIO()
    with RowBar(Console(file=log), "infer") as bar:
        for done in (500, 750, 1000):
            bar(done, 1000)
    assert [line.split()[1] for line in log.getvalue().splitlines()] == ["500", "750", "1,000"]


def test_rows_on_a_terminal_are_a_bar() -> None:
    terminal = io.StringIO()
    with RowBar(Console(file=terminal, force_terminal=True, width=80), "infer") as bar:
        bar(1000, 1000)
    assert "1000/1000" in terminal.getvalue()
    assert "━" in terminal.getvalue()
    assert "a second" not in terminal.getvalue()


def test_a_log_gets_one_plain_line_an_epoch() -> None:
    log = io.StringIO()
    shown(Console(file=log), *TOLD)
    precision, first, second = log.getvalue().splitlines()
    assert precision == "precision  fp32: as asked for"
    assert re.fullmatch(r"epoch 1/2  NE 0\.0845, best 0\.0845, 41 images/s, \d+ s left", first)
    assert second == "epoch 2/2  NE 0.0900, best 0.0845, 1,234 images/s"


def test_a_terminal_also_gets_a_live_line() -> None:
    terminal = io.StringIO()
    shown(Console(file=terminal, force_terminal=True, width=100), *TOLD[:2])
    assert "━" in terminal.getvalue()
    assert "epoch 1/2" in terminal.getvalue()
    assert "41 images/s" in terminal.getvalue()


def test_lines_of_several_runs_name_them() -> None:
    log = io.StringIO()
    shown(Console(file=log), *TOLD, several=True)
    assert all(line.startswith("first: ") for line in log.getvalue().splitlines())


def test_a_restart_is_told() -> None:
    """Why, and where the run goes on; without the precision again."""
    log = io.StringIO()
    lost = WorkersLost("first", ["worker 1: its process died"], again=True)
    gone = WorkersLost("first", ["worker 1: its process died"], again=False)
    shown(Console(file=log), *TOLD[:3], lost, Began("first", "fp32", "as begun", 2, 10, 10, 1), gone)
    assert log.getvalue().splitlines()[2:] == [
        "worker 1: its process died: starting the workers again from the last checkpoint",
        "goes on in epoch 2 of 2 with 1 worker",
    ]


def test_a_finished_run_has_nothing_to_wait_for() -> None:
    log = io.StringIO()
    shown(Console(file=log), Began("first", "fp32", "as begun", 2, 10, 20, 1))
    assert log.getvalue().splitlines()[1:] == ["all 2 epochs are done already"]


def test_workers_that_do_not_start_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a while, until they have: a cluster may have no room."""
    monkeypatch.setattr(progress, "WAIT_SECONDS", 0.01)
    log = io.StringIO()
    with TrainingProgress(Console(file=log), WORKERS) as display:
        while log.getvalue().count("\n") < 2:
            pass
        display.take(events.line(BEGAN))
        before = log.getvalue()
        display._ended.wait(0.1)
        assert log.getvalue() == before
    assert before.splitlines()[0].startswith(
        "waiting for 2 workers of 1 CPU to start, 0 min: there may be no room"
    )


def test_other_lines_are_left_to_ray() -> None:
    log = io.StringIO()
    with TrainingProgress(Console(file=log), WORKERS) as display:
        assert not display.take("Traceback (most recent call last):")
        assert display.take(events.line(Stepped("never begun", 1, 1.0)))
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3599, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (90000, "25 h 00 min"),
    ],
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
