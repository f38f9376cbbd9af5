"""Shards as tasks of a Ray Data graph: how often one is tried again, and how its failure reaches the user."""

import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import ray.data
from botocore.exceptions import BotoCoreError
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    WorkerCrashedError,
)
from ray.util.annotations import RayDeprecationWarning

from glefld.errors import UserError

#: How often a shard's task is tried again after its worker or host died. Ray Data's own default is for ever, and so
#: one photo that crashes its decoder would hang the job.
RETRIES = 4


def reports(shards: list[dict[str, Any]], write: Any, **options: Any) -> Iterator[dict[str, Any]]:
    """What ``write`` returned for each shard, by ``or_error``, as each is done. UserError for the first that failed.

    ``options`` are those of Ray Data's ``map``.
    """
    # A block a shard: Ray repeats the task of a worker that was lost, and a shard is whole or not there.
    graph = ray.data.from_items(shards, override_num_blocks=len(shards))
    with warnings.catch_warnings():
        # Up to Ray 2.63 there is no other way to limit the retries.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
        graph = graph.map(write, **options)
    try:
        for report in graph.iter_rows():
            if report["error"]:
                raise UserError(report["error"])
            yield report
    except (
        ActorDiedError,
        ActorUnavailableError,
        NodeDiedError,
        OutOfMemoryError,
        WorkerCrashedError,
    ) as error:
        raise UserError(
            f"the worker of a shard died {RETRIES + 1} times ({type(error).__name__}): its host's log tells why. "
            "Finished shards are kept, the same command goes on from them"
        ) from error


def require_all(planned: Sequence[str], finished: Container[str], output: str) -> None:
    """OSError where a shard that was written is not whole: some object stores' clients lose a write silently."""
    missing = [path for path in planned if path not in finished]
    if missing:
        raise OSError(
            f"{len(missing)} shards, {missing[0]} the first, were written to {output} and are not whole there: the "
            "same command writes them again"
        )


def or_error(write: Callable[[], int]) -> dict[str, Any]:
    """How many rows were written; what the user can mend comes back as a value: Ray Data loses an error's cause."""
    try:
        return {"rows": write(), "error": ""}
    except (OSError, BotoCoreError) as error:
        return {"rows": 0, "error": f"{type(error).__name__}: {error}"}
