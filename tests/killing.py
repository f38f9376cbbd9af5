"""A job as a process that is killed at a seeded moment."""

import contextlib
import os
import runpy
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.forks import forks

#: More moments take longer and prove more: `GLEFLD_KILL_MOMENTS=20 pytest tests/jobs`.
MOMENTS = range(int(os.environ.get("GLEFLD_KILL_MOMENTS", "2")))

#: The environment variable that tells a job's processes from others.
MARK = "GLEFLD_TEST_JOB"

#: What the tests' own cluster has put into our environment. A job's Ray decides on authentication itself: a fork of
#: a process that imported Ray without a mode would tell its servers "token" and speak to them without one.
SET_BY_RAY = ("RAY_ADDRESS", "RAY_AUTH_MODE")


def kill_job(
    job: str,
    arguments: Sequence[str],
    moment: int,
    shards: int,
    written: Callable[[], int],
    folder: Path,
    before: Callable[[], None] | None = None,
) -> int:
    """Run ``python -m jobs.JOB`` with a Ray of its own; SIGKILL for all of its processes at the moment.

    Moment 0 is the one between the last of the ``shards`` and the manifest; any other comes a while after a random
    one, at the last of them at the latest. ``written`` counts the finished shards. What the job prints is put in
    ``folder``. before: called in its process first. Returns how many shards were awaited.
    """
    rng = np.random.default_rng(moment)
    wanted, delay = (
        (shards, 0.0) if moment == 0 else (int(rng.integers(1, shards)), float(rng.uniform(0, 0.3)))
    )
    print(f"killed {delay:.3f} s after {wanted} of {shards} shards were there")
    mark = uuid.uuid4().hex
    printed = folder / "printed"
    process = start_job(job, arguments, printed, {MARK: mark}, before)
    assert process.pid is not None
    while written() < wanted:
        if not process.is_alive():
            pytest.fail(f"the job ended before its moment: {printed.read_text()}")
        time.sleep(0.001)
    until = time.monotonic() + delay
    # A fast machine may be through with the rest by then.
    while time.monotonic() < until and written() < shards:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    # Its workers too, which are in groups of their own: left alone, they may finish the shard in hand seconds later.
    for process_of_job in (left := list(marked(mark))):
        with contextlib.suppress(psutil.NoSuchProcess):
            process_of_job.kill()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive
    return wanted


def start_job(
    job: str,
    arguments: Sequence[str],
    printed: Path,
    environment: Mapping[str, str],
    before: Callable[[], None] | None = None,
) -> BaseProcess:
    """Run ``python -m jobs.JOB`` with a Ray of its own and more in its environment; ``printed`` gets its output.

    before: called in its process first.
    """
    ours = {name: value for name, value in os.environ.items() if name not in SET_BY_RAY}
    given = {**ours, **environment}
    process = forks().Process(target=run_job, args=(job, arguments, given, printed, before))
    process.start()
    return process


def run_job(
    job: str,
    arguments: Sequence[str],
    environment: dict[str, str],
    printed: Path,
    before: Callable[[], None] | None,
) -> None:
    """What a fork does to be the job's process: its own group, output, environment and ``__main__``."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["", *arguments]
    if before is not None:
        before()
    runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)


def marked(mark: str) -> Iterator[psutil.Process]:
    """All processes that a job has started, in whatever session: they inherit its environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                yield process
