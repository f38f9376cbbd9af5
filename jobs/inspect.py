"""Look at a data set before training on it: one HTML page with its garments, numbers and what is probably wrong.

The page shows garments before and after augmentation, what is in each split, where landmarks lie, rejected rows, photos
that are in several splits, and annotations that are probably wrong: left and right exchanged, places far off. It holds
all of its pictures and can be mailed. With --checkpoint, annotations that a model contradicts are found too.
"""

import csv
import dataclasses
import io
import os
from typing import Annotated, cast

import tyro
from rich.console import Console

from glefld import __version__, storage
from glefld.data.augmentation import Augmentation
from glefld.data.dataset import open_dataset
from glefld.datasets import Dataset
from glefld.errors import UserError, require_between
from glefld.recipe import BEST
from glefld.redaction import public_url
from glefld.schema import SPLITS, Manifest, Split
from jobs.cli import (
    Root,
    main,
    naming,
    on_cluster,
    open_data,
    resolve_checkpoint,
    resolve_output,
    resolve_root,
    resolve_url,
    suggesting,
)
from jobs.progress import RowBar


@dataclasses.dataclass(frozen=True)
class Options:
    """What to look at."""

    dataset: Dataset | None = None
    """Data set to look at. Not needed with --data."""
    data: str | None = None
    """Ingested data set, path or URL. Default: <root>/data/<dataset>."""
    split: Split | None = None
    """Look at this split alone. Default: all, and what they share."""
    checkpoint: str | None = None
    """Model to compare the annotations with: a checkpoint or run, path, URL or MLflow model (models:/NAME@ALIAS)."""
    output: str | None = None
    """HTML file to write, path or URL. Default: <root>/inspect/<dataset>.html."""
    suspects: str | None = None
    """Also write a CSV file, path or URL, with all annotations and photos that are probably wrong. Default: none."""
    root: Root = None
    rows: Annotated[int, tyro.conf.arg(metavar="N")] = 1_000_000
    """Read the numbers of about N rows of each split at most."""
    pictures: Annotated[int, tyro.conf.arg(metavar="N")] = 10_000
    """Look at about N pictures of each split at most, for copies and with the model."""
    augmentation: Augmentation = BEST.augmentation
    mlflow: bool = False
    """Also log the page to an MLflow run."""
    experiment: str | None = None
    """MLflow experiment, for --mlflow. Default: glefld-<dataset>."""


def run(options: Options) -> None:
    """Read the data set, write the page and say where it is. Raises UserError if an option is wrong."""
    require_between("--rows", options.rows, 1)
    require_between("--pictures", options.pictures, 1)
    if options.experiment is not None and not options.mlflow:
        raise UserError("--experiment is for --mlflow: add it, or leave --experiment out")
    root = resolve_root(options.root)
    data, manifest = _open(options, root)
    splits = [split for split in SPLITS if manifest.splits.get(split) and options.split in (None, split)]
    if not splits and options.split is None:
        reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in manifest.rejects.items())
        raise UserError(
            f"the data set {data} has no rows"
            + (f": all {manifest.rows_in:,} were rejected ({reasons})" if reasons else "")
        )
    if not splits:
        raise UserError(f"--split {options.split}: the data set {data} has no rows in it")
    output, named = resolve_output(options.output, options.root, lambda: f"inspect/{manifest.dataset}.html")
    storage.require_writable(output, named, folder=False)
    listed = resolve_url(options.suspects, "--suspects") if options.suspects else None
    if listed is not None:
        storage.require_writable(listed, "--suspects", folder=False)
    checkpoint = resolve_checkpoint(options.checkpoint, "--checkpoint", root) if options.checkpoint else None
    uri = None
    if options.mlflow:
        from glefld import tracking
        from glefld.models.checkpoint import digest

        uri = tracking.tracking_uri(root, on_cluster())
        tracking.require_answer(uri)

    from glefld import pages
    from glefld.inspection import answers, findings, report
    from glefld.inspection.rows import Readers

    model = None
    if checkpoint is not None:
        with naming("--checkpoint"):
            model = answers.open_model(checkpoint, manifest.landmark_set, os.cpu_count() or 1)
    console = Console()
    found = findings.inspect(
        data,
        Readers(data, manifest, splits),
        model,
        options.rows,
        options.pictures,
        lambda what: RowBar(console, what),
    )
    facts = {"glefld": __version__} | ({"checkpoint": public_url(checkpoint)} if checkpoint else {})
    text = pages.html(report.page(found, options.augmentation, facts))
    storage.write_bytes(output, text.encode())
    for number in report.numbers(found):
        console.print(f"{number.name:26s} {number.value:>9s}  {number.note}", highlight=False, soft_wrap=True)
    if listed is not None:
        rows = findings.suspect_rows(found)
        storage.write_bytes(listed, _csv(rows))
        console.print(f"{len(rows):,} findings in {listed}", highlight=False, soft_wrap=True)
    if uri is not None:
        model_id = tracking.find_by_digest(uri, digest(checkpoint)) if checkpoint is not None else None
        handle = tracking.start_run(
            uri,
            # The name, also if --data alone was given: runs are searched by it.
            options=dataclasses.replace(options, dataset=cast(Dataset, manifest.dataset)),
            manifest=manifest,
            data=data,
            name=f"inspect-{options.split or 'all'}",
            experiment=options.experiment,
            split=options.split or "all",
            model_id=model_id,
        )
        with tracking.logged_run(handle) as log:
            log.log_text(text, "inspect.html")
        console.print(f"MLflow     {tracking.where(handle)}", soft_wrap=True)
    console.print(f"page       {output}, {len(text) / 1e6:.1f} MB", highlight=False, soft_wrap=True)


def _open(options: Options, root: str) -> tuple[str, Manifest]:
    if options.dataset is not None:
        return open_data(options.data, root, options.dataset)
    if options.data is None:
        raise UserError("name the data set: --dataset NAME of one below the root, or --data URL")
    url = resolve_url(options.data, "--data")
    with naming("--data"), suggesting(url):
        return url, open_dataset(url)


def _csv(rows: list[dict[str, object]]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["sample_id", "split", "source_uri", "finding", "what", "score"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


if __name__ == "__main__":
    main(Options, run)
