"""Predict again what ended in an error: of an output's shards, the rows with errors, in place.

A shard with errors is replaced by one of the same name, in which the rows without errors are as they were. So readers
of the folder find each garment exactly once at any moment. While that lasts, the output has no manifest but a file
``_retry.json``. The footers' ``retry`` tells which shards are done: a killed retry is continued by calling it again.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glefld import storage
from glefld.data.dataset import MANIFEST
from glefld.errors import UserError
from pipelines import metrics
from pipelines.infer.inputs import GARMENTS, occurrences
from pipelines.infer.run import (
    MODULUS,
    PREDICTIONS_VERSION,
    RETRY,
    InferencePlan,
    InferenceWorkers,
    InferOptions,
    Task,
    identities,
    make_plan,
    outcome,
    output_at,
    packages,
    retry_begun,
    write_shards,
    writer_settings,
)
from pipelines.resumable import MARKER, READERS
from pipelines.rowfile import RowFile

logger = logging.getLogger(__name__)

_KEYS = ["uri", "garment", "box", "status"]


@dataclasses.dataclass(frozen=True)
class RetryPlan:
    """The garments to predict again, or the photos if a detector finds the garments.

    ``rows`` has a group for each of ``tasks``.

    manifest: that of the output before, or None if it was not finished. state: the manifest's ``source_state`` to be.
    """

    plan: InferencePlan
    key: str
    number: int
    manifest: dict[str, Any] | None
    paths: list[str]
    tasks: list[Task]
    rows: RowFile
    finished: list[dict[str, Any]]
    state: str


def plan_retry(options: InferOptions, output: str) -> RetryPlan:
    """Find the rows with errors in the shards of an output, and their photos in the input as it is now.

    In a finished output these photos may have been replaced since; those that were predicted may not.
    Raises UserError if there are no errors, and if the output was made with other options, by another release, or from
    photos that have changed.
    """
    place = output_at(output)
    number, manifest = retry_begun(output)
    if manifest is not None:
        _require_same(options, output, manifest)
    elif not storage.exists(storage.join(output, MARKER)):
        raise UserError(f"{output} holds no predictions: omit --retry-errors")
    plan = make_plan(options, output)
    if manifest is None:
        key, paths = plan.key, plan.paths()
    else:
        key, paths = manifest["plan"], [shard["path"] for shard in manifest["shards"]]
    reports = place.reports(paths, key)
    if manifest is not None and len(reports) < len(paths):
        raise UserError(
            f"{len(paths) - len(reports)} of the {len(paths)} shards in {output} are missing or damaged: run without "
            "--retry-errors first"
        )
    begun = number > 0
    number = number or 1 + max((report["retry"] for report in reports.values()), default=0)
    chosen = [
        path
        for path in paths
        if path in reports and reports[path]["errors"] and reports[path]["retry"] < number
    ]
    if not chosen and not begun:
        raise UserError(f"{output} has no errors to retry: omit --retry-errors")
    tasks = [Task(path, group, number, reports[path]["answered"]) for group, path in enumerate(chosen)]
    state = plan.input.state
    if plan.key == key:
        rows = _by_place(plan, output, chosen)
    else:
        assert manifest is not None
        rows, new = _by_name(plan, output, paths, chosen, reports)
        if new:
            logger.warning(
                "%d garments of the input are new since %s was made: they are not predicted", new, output
            )
            state = manifest["source_state"]
    finished = [reports[path] for path in paths if path in reports]
    return RetryPlan(plan, key, number, manifest, paths, tasks, rows, finished, state)


def _require_same(options: InferOptions, output: str, manifest: dict[str, Any]) -> None:
    """Raise UserError unless these options and versions would predict as those of the manifest did."""
    before, now = manifest.get("options", {}), options.public()
    if differing := [name for name in now if before.get(name) != now[name]]:
        words = ", ".join(f"{name} {before.get(name)!r} (now {now[name]!r})" for name in differing)
        raise UserError(f"{output} was made with {words}: --retry-errors needs the options of the first run")
    facts = {"predictions_version": PREDICTIONS_VERSION, **packages()}
    made = {"predictions_version": manifest.get("predictions_version"), **manifest.get("packages", {})}
    if differing := [name for name in facts if made.get(name) != facts[name]]:
        words = ", ".join(f"{name} {made.get(name)} (now {facts[name]})" for name in differing)
        raise UserError(
            f"{output} was made with {words}: --retry-errors needs the same, or choose another --output"
        )


def _by_place(plan: InferencePlan, output: str, chosen: list[str]) -> RowFile:
    """Return the plan's rows where the shards have errors: the input is what it was."""
    rows = RowFile(plan.input.rows.schema)
    groups = {path: group for group, path in enumerate(plan.paths())}
    for path, shard in _shards(output, chosen, ["uri", "status"]):
        planned = plan.input.rows.read(groups[path])
        failed = pc.equal(shard["status"], "error")
        if plan.options.detects:
            failed = pc.is_in(planned["uri"], value_set=shard["uri"].filter(failed))
        rows.add(planned.filter(failed))
    return rows


def _by_name(
    plan: InferencePlan,
    output: str,
    paths: list[str],
    chosen: list[str],
    reports: dict[str, dict[str, Any]],
) -> tuple[RowFile, int]:
    """Return the rows of the chosen shards' errors in an input that has changed, and how many garments of it are new.

    The input is looked up by uri and garment, or by uri if a detector finds the garments; it has to fit in memory.
    Raises UserError if a photo that was predicted has changed or is gone.
    """
    if plan.input.photos.dataset is not None:
        raise UserError(
            f"the data set that {output} was made from has changed since: choose another --output"
        )
    listed = pa.concat_tables(plan.input.rows)
    shards = dict(_shards(output, paths, _KEYS))
    garments = pa.concat_tables(shards.values())
    detects = plan.options.detects
    names, known = (table["uri"] if detects else _named(table) for table in (garments, listed))
    places = pc.index_in(names, value_set=known).combine_chunks()
    rows = RowFile(listed.schema)
    start, wanted = 0, set(chosen)
    for path, shard in shards.items():
        there = places.slice(start, len(shard))
        start += len(shard)
        failed = pc.equal(shard["status"], "error")
        ok = listed.take(there.filter(pc.invert(failed)))
        if f"{sum(identities(ok)) % MODULUS:x}" != reports[path]["answered"]:
            raise UserError(
                f"photos that were predicted without an error ({path}) have changed or are gone since {output} was "
                "made: choose another --output"
            )
        if path in wanted:
            # Of a photo with several errors one row.
            first = pc.equal(occurrences(shard["uri"].filter(failed)), 0) if detects else None
            errors, photos = shard.filter(failed), listed.take(there.filter(failed))
            if first is not None:
                errors, photos = _as_planned(errors.filter(first)), photos.filter(first)
            rows.add(_located(errors, photos))
    return rows, len(listed) - pc.count_distinct(places).as_py()


def _named(garments: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(garments["uri"], garments["garment"].cast(pa.string()), "\n")


def _as_planned(errors: pa.Table) -> pa.Table:
    """Return rows of photos as a plan has them: garment 0, without a box."""
    n = len(errors)
    garment = pa.array(np.zeros(n, np.int32))
    box = pa.array([[math.nan] * 4] * n, GARMENTS.field("box").type)
    for name, column in (("garment", garment), ("box", box)):
        errors = errors.set_column(errors.column_names.index(name), name, column)
    return errors


def _located(errors: pa.Table, listed: pa.Table) -> pa.Table:
    """Return the listed rows; for an error that is no longer listed, one without a photo."""
    gone = pc.is_null(listed["uri"]).to_pylist()
    boxes = [
        theirs if not is_gone else None if math.isnan(mine[0]) else mine
        for mine, theirs, is_gone in zip(
            errors["box"].to_pylist(), listed["box"].to_pylist(), gone, strict=True
        )
    ]
    own = [errors["uri"], errors["garment"], pa.array(boxes, GARMENTS.field("box").type)]
    return pa.table([*own, *listed.columns[len(own) :]], listed.schema)


def _shards(output: str, paths: list[str], columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield columns of shards, in order; some are read at the same time."""

    def read(path: str) -> pa.Table:
        with storage.open(storage.join(output, path)) as file:
            return pq.ParquetFile(file).read(columns=columns)

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(paths), READERS):
            some = paths[start : start + READERS]
            yield from zip(some, pool.map(read, some), strict=True)


def begin(retried: RetryPlan, output: str) -> None:
    """Put the retry's file in place of the manifest: from now on the shards are no longer those which that counts."""
    before = {"number": retried.number, "manifest": retried.manifest}
    storage.write_json(storage.join(output, RETRY), before)
    storage.remove_file(storage.join(output, MANIFEST))


def retry(
    retried: RetryPlan, output: str, workers: InferenceWorkers, progress: Callable[[int, int], None]
) -> dict[str, Any] | None:
    """Predict the garments and replace their shards. Returns the new manifest, or None if other shards are missing.

    Ray must be running. ``progress(done, total)`` is called with numbers of garments.
    Raises OSError if the storage fails.
    """
    place = output_at(output)
    begin(retried, output)
    settings = dataclasses.replace(writer_settings(retried.plan, place, workers), key=retried.key)
    done, total = 0, len(retried.rows)
    progress(done, total)
    for rows in write_shards(retried.tasks, retried.rows, settings, retried.finished, workers):
        done += rows
        progress(done, total)
        metrics.rows_left("infer", total - done)
    manifest = None
    if retried.manifest is not None:
        reports = place.complete(retried.paths, retried.key)
        manifest = {**retried.manifest, **outcome(reports), "source_state": retried.state}
        place.finish(manifest)
    else:
        place.clean(retried.paths)
    storage.remove_file(storage.join(output, RETRY))
    return manifest
