"""Write an ingested data set as COCO keypoints: a JSON file per split, and the stored pictures as photos.

Other programs read it (annotation tools, pycocotools, mmpose), and `glefld ingest --dataset coco` reads it back.
"""

import dataclasses
import itertools
import time

from rich.console import Console

from glefld import storage
from glefld.datasets import Dataset
from jobs.cli import Root, main, open_data, resolve_output, resolve_root
from jobs.progress import RowBar


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the export."""

    dataset: Dataset
    """Data set to write."""
    data: str | None = None
    """Ingested data set, path or URL. Default: <root>/data/<dataset>."""
    output: str | None = None
    """Folder for annotations/ and images/, path or URL. Default: <root>/coco/<dataset>."""
    root: Root = None


def run(options: Options) -> None:
    """Write the data set, and print what was written. Raises UserError if an option is wrong."""
    data, manifest = open_data(options.data, resolve_root(options.root), options.dataset)
    output, named = resolve_output(options.output, options.root, lambda: f"coco/{options.dataset}")
    storage.require_writable(output, named, folder=True)

    from glefld.datasets import coco_export

    start = time.monotonic()
    console = Console()
    counter, total = itertools.count(1), sum(manifest.splits.values())
    with RowBar(console, "export") as bar:
        bar(0, total)
        written = coco_export.write(data, output, lambda: bar(next(counter), total))
    for split, url in written.files.items():
        console.print(f"{split:6s} {written.rows[split]:7,} garments  {url}", soft_wrap=True, highlight=False)
    rate = sum(written.rows.values()) / (time.monotonic() - start)
    console.print(
        f"photos in {storage.join(output, 'images')}, {rate:,.0f} a second", soft_wrap=True, highlight=False
    )


if __name__ == "__main__":
    main(Options, run)
