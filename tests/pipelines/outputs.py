"""Small ingests and inferences in this process, without Ray: by the functions that the workers run."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glefld import storage
from pipelines.infer import run as infer_run
from pipelines.infer.run import (
    InferencePlan,
    InferenceWorkers,
    InferOptions,
    ShardWriter,
    Task,
    infer,
    make_plan,
    writer_settings,
)
from pipelines.ingest import run as ingest_run
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import begin, ingest, prepare, shard_settings
from pipelines.ingest.shard import write_shard
from pipelines.rowfile import RowFile

WORKERS = InferenceWorkers(least=1, most=1, threads=1, gpu=False, batch_size=4)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One of the two jobs that write shards."""

    write: Callable[[Any, str, int | None], None]
    """Of these options, to this folder: the missing ones of the first so many shards (None: of all)."""
    finish: Callable[[Any, str], Any]
    """Write what is missing, and the manifest."""
    find: Callable[[Any, str], Any]
    """The manifest if all is finished."""


def _write_ingest(options: IngestOptions, output: str, count: int | None) -> None:
    plan = prepare(options, output)
    finished = begin(plan, output)
    settings = shard_settings(plan, output)
    for shard in plan.shards[:count]:
        if shard.path not in finished:
            write_shard({**shard.item, "killers": []}, settings, frozenset())


def _finish_ingest(options: IngestOptions, output: str) -> Any:
    _write_ingest(options, output, None)
    return ingest(prepare(options, output), output, lambda *_: None)


def items(tasks: Sequence[Task], rows: RowFile, output: str) -> list[dict[str, Any]]:
    """What the writers of these shards get."""
    url = storage.join(infer_run.output_at(output).staging, "rows")
    rows.upload(url)
    return [
        {**task._asdict(), "rows": rows.stretch(task.group, url), "number": number, "killers": []}
        for number, task in enumerate(tasks)
    ]


def planned(plan: InferencePlan, output: str) -> list[dict[str, Any]]:
    """What the writers of all shards of a plan get."""
    return items([Task(path, group) for group, path in enumerate(plan.paths())], plan.input.rows, output)


def _write_infer(options: InferOptions, output: str, count: int | None) -> None:
    plan = make_plan(options, output)
    place = infer_run.output_at(output)
    finished = place.begin(plan.paths(), plan.key)
    writer = ShardWriter(writer_settings(plan, place, WORKERS))
    for task in planned(plan, output)[:count]:
        if task["path"] not in finished:
            assert not writer(task)["error"]


def _finish_infer(options: InferOptions, output: str) -> Any:
    _write_infer(options, output, None)
    return infer(make_plan(options, output), output, WORKERS, lambda *_: None)


INGEST = Kind(_write_ingest, _finish_ingest, ingest_run.find_finished)
INFER = Kind(_write_infer, _finish_infer, infer_run.find_finished)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
