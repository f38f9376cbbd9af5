"""New processes that need not import Ray and PyTorch first: forks of one that has."""

import multiprocessing
from multiprocessing.context import ForkServerContext

#: What the server imports, once for the whole run: what ranks and jobs use, but no job itself, which is ``__main__``.
PRELOAD = [
    "glefld.training.loop",
    "jobs.cli",
    "pipelines.infer.overlays",
    "pipelines.ingest.run",
    "tests.dots",
    "tests.in_process",
]


def forks() -> ForkServerContext:
    """Where to start them. The server is started with the first."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    return multiprocessing.get_context("forkserver")
