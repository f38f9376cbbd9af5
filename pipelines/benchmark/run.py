"""The whole benchmark: its material, its stages in turn, and what machine it was."""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import torch

from glefld import storage
from glefld.temporary import temporary_folder
from pipelines.benchmark import material, stages, whole_jobs
from pipelines.benchmark.material import Material
from pipelines.benchmark.options import JOBS, TRACKED, BenchmarkOptions, Resources
from pipelines.benchmark.stages import Bench
from pipelines.benchmark.timing import Measurement
from pipelines.benchmark.whole_jobs import Jobs

PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda120", "ray", "mlflow", "pillow", "simplejpeg", "pyarrow")
#: Instructions that say how fast a CPU can multiply in bf16.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def benchmark(
    options: BenchmarkOptions,
    made: Material,
    resources: Resources,
    on_cluster: bool,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure, and return the result as JSON has it: ``stages``, ``ceilings``, ``growth``, ``machine``.

    on_cluster: stages in one process run as a task of the cluster, which Ray must be connected to. progress: is told
    each stage's name before it begins. Raises UserError if a job fails.
    """
    call = _on_a_machine(resources) if on_cluster else _here
    bench = Bench(options, made, resources)
    jobs = Jobs(bench, call, on_cluster)
    if set(TRACKED) & set(options.stages):
        whole_jobs.prepare_tracking(jobs)
    found: dict[str, Measurement] = {}
    for stage in options.stages:
        progress(stage)
        found |= whole_jobs.STAGES[stage](jobs) if stage in JOBS else call(stages.measure, stage, bench)
    growth = {}
    if options.grow:
        progress("growth")
        growth = whole_jobs.growth(jobs)
    measured = {name: measurement.to_json() for name, measurement in found.items()}
    return {
        "stages": {name: value for name, value in measured.items() if not name.startswith("ceilings/")},
        "ceilings": {
            name.removeprefix("ceilings/"): {
                "median": value["ours"],
                **value["spread"]["ours"],
                "unit": value["unit"],
            }
            for name, value in measured.items()
            if name.startswith("ceilings/")
        },
        "growth": growth,
        "machine": call(machine, resources),
    }


@contextlib.contextmanager
def workplace(options: BenchmarkOptions, cpus: int) -> Iterator[Material]:
    """Make what is measured on, in a folder that is removed at the end. Raises what ``material.make`` raises."""
    with contextlib.ExitStack() as stack:
        if options.work is None:
            work = stack.enter_context(temporary_folder())
        else:
            work = storage.join(options.work, f"benchmark-{uuid4().hex}")
            stack.callback(storage.remove_tree, work)
        yield material.make(options, work, cpus)


def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _on_a_machine(resources: Resources) -> Callable[..., Any]:
    """Return what calls a function on a machine of the cluster that has the resources."""
    import ray

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        task = ray.remote(num_cpus=resources.cpus, num_gpus=1 if resources.gpu else 0, max_retries=0)(
            function
        )
        return ray.get(task.remote(*arguments))

    return call


def machine(resources: Resources) -> dict[str, Any]:
    """Return what identifies this machine: processor, cores, memory, GPU and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()] if cpuinfo.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = set(facts.get("flags", "").split())
    return {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "cpus": resources.cpus,
        "cpus_of_machine": os.cpu_count(),
        "instructions": [flag for flag in FLAGS if flag in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if resources.gpu else None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
