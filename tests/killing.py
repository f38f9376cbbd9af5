"""A job as a process that is killed at a seeded moment."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

#: More moments take longer and prove more: `GLEFLD_KILL_MOMENTS=20 pytest tests/jobs`.
MOMENTS = range(int(os.environ.get("GLEFLD_KILL_MOMENTS", "2")))


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
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", *arguments],
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
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
    time.sleep(2)  # a worker that is being taken down may still finish the shard in hand
    return wanted
