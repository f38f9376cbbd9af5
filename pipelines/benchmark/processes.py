"""Whole jobs as a user starts them: their time, their memory, and when their output appears."""

import contextlib
import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from glefld import storage
from glefld.errors import UserError
from glefld.temporary import temporary_file

ROOT = Path(__file__).parents[2]
#: Seconds between two looks at a process and at its output: on object storage each look is a request.
LOOK, LOOK_REMOTE = 0.1, 1.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a process. Times are in seconds; ``began`` and ``ended`` since 1970."""

    began: float
    ended: float
    driver_mib: float
    """The process's own peak memory."""
    mib: float
    """Peak of the private memory of the process and all that it started on this machine, together."""
    seen: dict[str, float]
    """When each file of the watched folder was first seen, since 1970, by name."""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def run_job(job: str, arguments: Sequence[str], watch: str | None = None) -> Run:
    """Run a job to its end. watch: a folder whose files are looked for. Raises UserError if the job fails."""
    return run_module(f"jobs.{job}", arguments, watch)


def run_module(module: str, arguments: Sequence[str], watch: str | None = None) -> Run:
    """Run ``python -m MODULE`` to its end. Raises UserError, with the last line that it printed, if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    began = time.time()
    with temporary_file() as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        looking = _Looking(process.pid, watch)
        looking.start()
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            ended = time.time()
            looking.stop()
        log.seek(0)
        lines = log.read().decode(errors="replace").split("\n")
    if status:
        told = [line for line in lines if line.strip()]
        raise UserError(
            f"{module} ended with status {status}: {told[-1].strip() if told else 'it printed nothing'}"
        )
    return Run(began, ended, looking.driver / 2**20, looking.all / 2**20, looking.seen)


class _Looking(threading.Thread):
    """Looks at a process, what it started, and a folder, until it is stopped."""

    def __init__(self, pid: int, watch: str | None) -> None:
        super().__init__(name="looking", daemon=True)
        self.process = psutil.Process(pid)
        self.watch = watch
        self.driver, self.all = 0, 0
        self.seen: dict[str, float] = {}
        self._stopped = threading.Event()

    def run(self) -> None:
        pause = LOOK if self.watch is None or storage.is_local(self.watch) else LOOK_REMOTE
        while not self._stopped.wait(pause):
            self.look()

    def look(self) -> None:
        with contextlib.suppress(psutil.Error):
            self.driver = max(self.driver, self.process.memory_info().rss)
            total = 0
            for process in [self.process, *self.process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_info()
                    total += memory.rss - memory.shared
            self.all = max(self.all, total)
        if self.watch is not None:
            self.files()

    def files(self) -> None:
        assert self.watch is not None
        for entry in storage.entries(self.watch):
            if not entry.is_folder and not storage.is_unfinished(entry.name):
                self.seen.setdefault(entry.name, time.time())

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        if self.watch is not None:
            self.files()


def import_seconds(module: str) -> float:
    """Return the seconds in which a new process imports a module, its own start included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
    return time.perf_counter() - start
