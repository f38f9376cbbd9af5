"""Jobs as processes of their own that need not import Ray and PyTorch first: forks of one that has.

Run as a script it imports what the jobs import, and then forks for each line that it reads.
"""

import contextlib
import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
#: Of the Ray that runs in this process, which a job would take for its own.
OWN_RAY = {"RAY_ADDRESS", "RAY_GCS_SERVER_PORT"}
#: What takes seconds to import. A job's own module is not among it: it is run as ``__main__``.
HEAVY = ("ray.data", "ray.job_submission", "ray.train.torch", "glefld.tracking", "jobs.cli", "s3fs")
PIPELINES = ("ingest.run", "infer.overlays", "train.run", "evaluate")


def job_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with some changes; an empty value takes a variable away."""
    wanted = {**os.environ, "RAY_worker_niceness": "0", **changes}
    return {name: value for name, value in wanted.items() if value and name not in OWN_RAY}


def job(name: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """A job as a user starts it, imports and all."""
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *arguments],
        env=job_environment(changes),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@dataclasses.dataclass
class Forks:
    """Started with the object, in an environment that names no servers; each process is given its own."""

    environment: Mapping[str, str]

    def __post_init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.forks"],
            cwd=REPOSITORY,
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """``python -m MODULE ARGUMENTS`` to its end, with this environment and no other."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = {
                "module": module,
                "arguments": list(arguments),
                "environment": dict(environment),
                "outputs": [str(out), str(err)],
            }
            assert self.server.stdin is not None
            assert self.server.stdout is not None
            self.server.stdin.write(json.dumps(request) + "\n")
            self.server.stdin.flush()
            status = int(self.server.stdout.readline())
            return subprocess.CompletedProcess(
                [module, *arguments], status, out.read_text(errors="replace"), err.read_text(errors="replace")
            )

    def job(self, name: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """As ``job``, without its imports."""
        return self.run(f"jobs.{name}", arguments, job_environment(changes))

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()


def serve() -> dict[str, Any]:
    """Fork for each request, and write how the fork ended. Returns in forks only, with the request."""
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            return json.loads(line)
        _, status = os.waitpid(pid, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    raise SystemExit(0)


def become(request: dict[str, Any]) -> None:
    """Run the module as the process's own, to its end."""
    for number, path in enumerate(request["outputs"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["", *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in (*HEAVY, *(f"pipelines.{part}" for part in PIPELINES)):
        __import__(name)
    become(serve())
