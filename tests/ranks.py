"""The processes of a torch.distributed group, for the tests that need several ranks."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing

#: What ranks import. Their server does so once for the whole run, and each rank is a fork of it.
PRELOAD = ["torch.distributed", "glefld.training.loop", "tests.dots"]


def start_ranks(work: Callable[..., None], arguments: tuple[Any, ...], world: int) -> None:
    """Run ``work(rank, *arguments)`` in as many new processes as ``world`` says. Raises what ends one of them."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    torch.multiprocessing.start_processes(work, arguments, nprocs=world, start_method="forkserver")
