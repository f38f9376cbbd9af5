"""How far a job is: on a terminal a live line; elsewhere plain lines, of a training one an epoch."""

import contextlib
import logging
import threading
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from pipelines.train import events
from pipelines.train.workers import WorkerGroup

#: How long workers may take to start before a line says that they have not, and how often it is repeated.
WAIT_SECONDS = 60.0
#: How long to wait for a last line that is still on its way when the workers have ended.
LAST_SECONDS = 2.0
#: How often a log that is no terminal gets a line of the rows that are done.
LINE_SECONDS = 30.0


class RowBar(contextlib.AbstractContextManager["RowBar"]):
    """Progress of rows, and their rate, which excludes rows that an earlier, stopped run had finished.

    A bar on a terminal; elsewhere a plain line at the start, at the end and every ``LINE_SECONDS`` in between.
    """

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(name, total=None)
        self._start = self._line = time.monotonic()
        self._first: int | None = None
        self._done = 0
        self._total: int | None = None

    def __enter__(self) -> "RowBar":
        self._bar.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._bar.stop()
        if self._total is not None and kind is None:
            self._tell(f", {self.rows_per_second():,.0f} a second")

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` rows are finished."""
        first = self._first is None
        self._first = done if self._first is None else self._first
        self._done, self._total = done, total
        self._bar.update(self._task, completed=done, total=total)
        if first or (time.monotonic() - self._line >= LINE_SECONDS and done < total):
            self._tell("")

    def _tell(self, more: str) -> None:
        if self._bar.disable:
            text = f"{self._name}  {self._done:,} of {self._total:,}{more}"
            self._console.print(text, soft_wrap=True, highlight=False)
            self._line = time.monotonic()

    def rows_per_second(self) -> float:
        """Return the mean rate since the bar was made."""
        return (self._done - (self._first or 0)) / (time.monotonic() - self._start)


def show_own_progress() -> None:
    """Silence Ray Data's progress bars and execution logs, which would disturb the job's own progress bar."""
    import ray.data

    from pipelines import ray_private

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger(ray_private.DATA_PROGRESS_LOGGER).setLevel(logging.ERROR)
    logging.getLogger(ray_private.DATA_EXECUTION_LOGGER).setLevel(logging.WARNING)


class TrainingProgress(contextlib.AbstractContextManager["TrainingProgress"]):
    """Shows what the workers of one or more trainings tell. ``take`` gets the lines of their logs."""

    def __init__(self, console: Console, workers: WorkerGroup, *, several: bool = False) -> None:
        """several: name the run in each line."""
        self._console, self._workers, self._several = console, workers, several
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rest]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._runs: dict[str, _Run] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._all_told = threading.Event()
        self._waiting = True
        self._watch = threading.Thread(target=self._tell_waiting, name="waiting", daemon=True)

    def __enter__(self) -> "TrainingProgress":
        self._bars.start()
        self._watch.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and any(run.begun_here for run in self._runs.values()):
            self._all_told.wait(LAST_SECONDS)
        self._ended.set()
        self._watch.join()
        self._bars.stop()

    def take(self, line: str) -> bool:
        """Show the event of a line, if there is one in it. Returns whether there is."""
        event = events.parse(line)
        if event is None:
            return False
        with self._lock:
            self._waiting = isinstance(event, events.WorkersLost)
            match event:
                case events.Began():
                    self._began(event)
                case events.Stepped() if event.run in self._runs:
                    self._runs[event.run].stepped(event)
                case events.EpochEnded() if event.run in self._runs:
                    self._epoch_ended(event)
                case events.WorkersLost():
                    self._lost(event)
        return True

    def _began(self, event: events.Began) -> None:
        before = self._runs.get(event.run)
        if before is None:
            self._print(event.run, f"precision  {event.precision}: {event.why}")
        if event.done >= event.epochs * event.steps:
            self._print(event.run, f"all {event.epochs} epochs are done already")
        elif before is not None or event.done:
            workers = f"{event.workers} worker{'s' * (event.workers > 1)}"
            self._print(
                event.run,
                f"goes on in epoch {event.done // event.steps + 1} of {event.epochs} with {workers}",
            )
        bar = before.bar if before is not None else self._bars.add_task(event.run, rest="")
        self._all_told.clear()
        self._runs[event.run] = _Run(event, self._bars, bar, event.run if self._several else "")

    def _epoch_ended(self, event: events.EpochEnded) -> None:
        run = self._runs[event.run]
        run.stepped(events.Stepped(event.run, event.step, event.images_per_second))
        left = f", {run.left}" if run.left else ""
        self._print(
            event.run,
            f"epoch {event.epoch:>{len(str(run.epochs))}}/{run.epochs}  {event.measure} {event.error:.4f}, "
            f"best {event.best:.4f}, {event.images_per_second:,.0f} images/s{left}",
        )
        if all(run.is_done for run in self._runs.values()):
            self._all_told.set()

    def _lost(self, event: events.WorkersLost) -> None:
        if event.again:
            self._print(
                event.run, f"{'; '.join(event.reasons)}: starting the workers again from the last checkpoint"
            )

    def _print(self, run: str, text: str) -> None:
        name = f"{run}: " if self._several else ""
        self._bars.console.print(name + text, soft_wrap=True, highlight=False, markup=False)

    def _tell_waiting(self) -> None:
        """Say so, once a while, if no worker has begun."""
        most, cpus = self._workers.most, self._workers.cpus
        wanted = f"{most} worker{'s' * (most > 1)} of {cpus} CPU{'s' * (cpus > 1)}"
        wanted += " and a GPU" if self._workers.gpu else ""
        since = time.monotonic()
        while not self._ended.wait(WAIT_SECONDS):
            with self._lock:
                if self._waiting:
                    minutes = (time.monotonic() - since) / 60
                    self._bars.console.print(
                        f"waiting for {wanted} to start, {minutes:.0f} min: there may be no room for them yet",
                        soft_wrap=True,
                        highlight=False,
                    )
                else:
                    since = time.monotonic()


class _Run:
    """How far one run is, since its workers have begun."""

    def __init__(self, began: events.Began, bars: Progress, bar: TaskID, name: str) -> None:
        self.bar, self.epochs, self._steps, self._name = bar, began.epochs, began.steps, name
        self._bars = bars
        self._first, self._done = began.done, began.done
        self._since = time.monotonic()
        self.begun_here = False
        self._show("")

    @property
    def is_done(self) -> bool:
        """Whether its last epoch is done."""
        return self._done >= self.epochs * self._steps

    @property
    def left(self) -> str:
        """How long it will take, in words; empty if that is not known or it is done."""
        if self.is_done or self._done == self._first:
            return ""
        seconds = (time.monotonic() - self._since) / (self._done - self._first)
        return f"{duration(seconds * (self.epochs * self._steps - self._done))} left"

    def stepped(self, event: events.Stepped) -> None:
        """Take note of completed steps."""
        self._done, self.begun_here = event.step, True
        self._show(", ".join(filter(None, (f"{event.images_per_second:,.0f} images/s", self.left))))

    def _show(self, rest: str) -> None:
        epoch = min(self._done // self._steps + 1, self.epochs)
        self._bars.update(
            self.bar,
            description=f"{self._name} epoch {epoch}/{self.epochs}".strip(),
            completed=self._done - (epoch - 1) * self._steps,
            total=self._steps,
            rest=rest,
            visible=not self.is_done,
        )


def duration(seconds: float) -> str:
    """Return a length of time in words, such as ``1 h 05 min``, ``12 min`` or ``40 s``."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
