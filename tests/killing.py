"""A job as a process that is killed at a seeded moment."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import psutil
import pytest

#: More moments take longer and prove more: `GLEFLD_KILL_MOMENTS=20 pytest tests/jobs`.
MOMENTS = range(int(os.environ.get("GLEFLD_KILL_MOMENTS", "2")))

#: The environment variable that tells a job's processes from others.
MARK = "GLEFLD_TEST_JOB"


def kill_job(job: str, arguments: Sequence[str], moment: int, shards: int, written: Callable[[], int]) -> int:
    """Run ``python -m jobs.JOB`` with a Ray of its own; SIGKILL for its whole process group at the moment.

    Moment 0 is the one between the last of the ``shards`` and the manifest; any other comes a while after a random
    one. ``written`` counts the finished shards. Returns how many were awaited.
    """
    rng = np.random.default_rng(moment)
    wanted, delay = (
        (shards, 0.0) if moment == 0 else (int(rng.integers(1, shards)), float(rng.uniform(0, 0.3)))
    )
    print(f"killed {delay:.3f} s after {wanted} of {shards} shards were there")
    mark = uuid.uuid4().hex
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", *arguments],
            env=environment | {MARK: mark},
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while written() < wanted:
            if process.poll() is not None:
                printed.seek(0)
                pytest.fail(f"the job ended before its moment: {printed.read()}")
            time.sleep(0.001)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # A worker that is being taken down may still finish the shard in hand.
    _, alive = psutil.wait_procs(list(marked(mark)), timeout=30)
    assert not alive, f"processes that outlive their job: {alive}"
    return wanted


def marked(mark: str) -> Iterator[psutil.Process]:
    """All processes that a job has started, in whatever session: they inherit its environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                yield process
