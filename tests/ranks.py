"""The processes of a torch.distributed group, for the tests that need several ranks."""

from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing

from tests.forks import forks


def start_ranks(work: Callable[..., None], arguments: tuple[Any, ...], world: int) -> None:
    """Run ``work(rank, *arguments)`` in as many new processes as ``world`` says. Raises what ends one of them."""
    forks()
    torch.multiprocessing.start_processes(work, arguments, nprocs=world, start_method="forkserver")
