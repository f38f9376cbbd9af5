"""A tiny benchmark: two-dot photos, a small input, hundredths of a second."""

import json
from pathlib import Path
from typing import Any

from jobs.benchmark import Options, run
from pipelines.benchmark.material import Material
from pipelines.benchmark.options import BenchmarkOptions, Resources
from pipelines.benchmark.stages import Bench
from pipelines.ray_private import cpus
from tests import dots
from tests.ingested import write_dataset
from tests.raw_layouts import photos, rows, write_fld

TINY: dict[str, Any] = {
    "model": "local",
    "input_size": 32,
    "batch_size": 4,
    "rows": 12,
    "seconds": 0.02,
    "repeats": 2,
    "peers": True,
    # Whole jobs are processes that have this machine's CPUs; the tests' own cluster has more of them than there are.
    "cpus": cpus(),
}


def write_material(folder: Path) -> Material:
    """What is measured on: raw photos, a data set, its rows as photos for inference, a checkpoint."""
    listed = rows(20)
    source = write_fld(folder / "raw", listed, photos(listed))
    data = write_dataset(folder / "data", {"train": 24, "val": 8})
    checkpoint = dots.write_checkpoint(str(folder / "checkpoint"))
    (folder / "work").mkdir()
    return Material("fld", str(source), data, data, checkpoint, str(folder / "work"))


def tiny(material: Material, **changes: Any) -> Bench:
    """What a stage gets: one CPU."""
    return Bench(BenchmarkOptions(**TINY | changes), material, Resources(1, False))


FIGURES = {"ours", "ceiling", "peer", "of_ceiling", "of_peer", "spread"}


def measured(options: Options) -> dict[str, dict[str, object]]:
    """Run the benchmark, and return the stages of its JSON."""
    run(options)
    value = json.loads((Path(str(options.output)) / "benchmark.json").read_text())
    assert set(value) == {"stages", "ceilings", "growth", "machine", "options"}
    assert all(set(stage) >= FIGURES for stage in value["stages"].values())
    return value["stages"]
