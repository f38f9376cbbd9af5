"""Checks of a machine, its packages, its servers and a root folder, before a job fails for one of them."""

import contextlib
import importlib
import importlib.metadata
import logging
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import psutil
from packaging.requirements import Requirement

from glefld import storage, tracking
from glefld.data.dataset import open_dataset, read_manifest
from glefld.errors import UserError
from glefld.onnx_model import PACKAGES
from glefld.redaction import public_url, redacted

Status = Literal["ok", "warning", "problem"]

#: Free memory and disk below which a job may fail, in GiB.
LEAST_MEMORY, LEAST_DISK = 2, 5
#: Ray refuses to store objects on a disk that is fuller.
FULLEST = 95.0
#: Seconds to wait for a server's answer.
WAIT = 3.0
#: Where Ray keeps what its processes share. Containers often have 64 MiB.
SHARED_MEMORY = Path("/dev/shm")


class Finding(NamedTuple):
    """One line of the report."""

    status: Status
    subject: str
    text: str
    """What there is, or what is wrong and what to do about it."""


def examine(root: str, named: str, on_cluster: bool) -> Iterator[Finding]:
    """Yield the findings one by one, as some take seconds.

    root: the root folder, absolute. named: how the user has named it. on_cluster: whether RAY_ADDRESS names a cluster.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "Python": python,
        "packages": packages,
        "CPUs": cpus,
        "memory": memory,
        "temporary disk": temporary_disk,
        "PyTorch": pytorch,
        "GPU": gpu,
        "DALI": dali,
        "export": exporting,
        "Ray": lambda: ray_version(on_cluster),
        "MLflow": lambda: mlflow(root, on_cluster),
        "weights": weights,
        "root": lambda: root_folder(root, named),
        "data sets": lambda: data_sets(root),
        "runs": lambda: runs(root),
    }
    for subject, check in checks.items():
        try:
            found = check()
        except Exception as error:  # whatever is broken is what we are here to find
            words = redacted(" ".join(str(error).split())) or type(error).__name__
            found = Finding(
                "problem",
                subject,
                str(words) if isinstance(error, UserError) else f"{type(error).__name__}: {words}",
            )
        yield found


def python() -> Finding:
    return Finding("ok", "Python", f"{platform.python_version()}, {sys.executable}")


def packages() -> Finding:
    """Whether what is installed is what this project asks for."""
    wanted = [
        needed for needed in map(Requirement, requirements()) if not needed.marker or needed.marker.evaluate()
    ]
    wrong = []
    for needed in wanted:
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name} {version} is not {needed.specifier}")
    if wrong:
        return Finding("problem", "packages", f"{', '.join(wrong)}: install them again (make setup)")
    return Finding("ok", "packages", f"{len(wanted)} as required")


def requirements() -> list[str]:
    """Return this project's dependencies: from the pyproject.toml beside its code, else as it was installed."""
    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text())["project"]["dependencies"])
    return [text for text in importlib.metadata.requires("glefld") or () if "extra ==" not in text]


def cpus() -> Finding:
    from pipelines import ray_private

    return Finding("ok", "CPUs", f"{ray_private.cpus()} ({platform.machine()})")


def memory() -> Finding:
    found = psutil.virtual_memory()
    free, total = found.available / 2**30, found.total / 2**30
    text = f"{free:.1f} of {total:.1f} GiB free"
    if free < LEAST_MEMORY:
        return Finding("warning", "memory", f"{text}: close other programs, or lower --num-workers")
    if SHARED_MEMORY.is_dir() and (shared := shutil.disk_usage(SHARED_MEMORY).total / 2**30) < 1:
        return Finding(
            "warning",
            "memory",
            f"{text}, but {SHARED_MEMORY} has {shared:.2f} GiB, so Ray stores objects on disk: in a container, give it "
            "more (docker run --shm-size 4g)",
        )
    return Finding("ok", "memory", text)


def temporary_disk() -> Finding:
    """Where Ray and this project keep temporary files."""
    places = {tempfile.gettempdir(), os.environ.get("RAY_TMPDIR") or "/tmp"}
    worst = min(places, key=lambda place: psutil.disk_usage(place).free)
    usage = psutil.disk_usage(worst)
    text = f"{usage.free / 2**30:.1f} GiB free in {worst}"
    if usage.percent >= FULLEST:
        return Finding(
            "problem",
            "temporary disk",
            f"{text}, {usage.percent:.0f} % full: above {FULLEST:.0f} % Ray stores nothing. Make room, or "
            "set TMPDIR and RAY_TMPDIR",
        )
    if usage.free < LEAST_DISK * 2**30:
        return Finding("warning", "temporary disk", f"{text}: make room, or set TMPDIR and RAY_TMPDIR")
    return Finding("ok", "temporary disk", text)


def pytorch() -> Finding:
    import torch

    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return Finding("ok", "PyTorch", f"{torch.__version__}, {kind}")


def gpu() -> Finding:
    """GPUs are optional, but one that is there should be usable."""
    import torch

    driver = _driver()
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        names = ", ".join(f"{each.name} ({each.total_memory / 2**30:.0f} GiB)" for each in found)
        return Finding("ok", "GPU", f"{names}, driver {driver or 'unknown'}")
    if driver is not None:
        return Finding(
            "problem",
            "GPU",
            f"there is one with driver {driver}, which PyTorch cannot use: CUDA {torch.version.cuda} needs a newer "
            "driver (13: 580 or newer). --device cpu does without",
        )
    return Finding("ok", "GPU", "none: the CPUs compute")


def _driver() -> str | None:
    """Return the version of NVIDIA's driver; None if it finds no GPU."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def dali() -> Finding:
    import torch

    use = "decodes on GPUs" if torch.cuda.is_available() else "not used without a GPU"
    return Finding("ok", "DALI", f"{importlib.import_module('nvidia.dali').__version__}, {use}")


def exporting() -> Finding:
    """The packages that exported models need, which are an extra."""
    try:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        text = f"not possible until {error.name} is installed"
        return Finding("ok", "export", text)
    return Finding("ok", "export", ", ".join(f"{name} {version}" for name, version in versions.items()))


def ray_version(on_cluster: bool) -> Finding:
    """Ray itself, and the cluster that RAY_ADDRESS names."""
    import ray

    supported = next(each.specifier for each in map(Requirement, requirements()) if each.name == "ray")
    if not supported.contains(ray.__version__, prereleases=True):
        return Finding(
            "problem", "Ray", f"{ray.__version__} is not {supported}: install the right one (make setup)"
        )
    if not on_cluster:
        return Finding("ok", "Ray", f"{ray.__version__} ({supported}), on this machine")
    address = os.environ["RAY_ADDRESS"]
    shown = f"RAY_ADDRESS={public_url(address)}"
    host = urlsplit(address if "://" in address else f"ray://{address}")
    if host.hostname and host.port:
        try:
            socket.create_connection((host.hostname, host.port), WAIT).close()
        except OSError as error:
            return Finding(
                "problem",
                "Ray",
                f"nothing answers at {shown} ({error.strerror or error}): start the cluster, correct RAY_ADDRESS, or "
                "unset it to use this machine",
            )
    if host.scheme in ("http", "https"):
        return _ask_dashboard(shown)
    return _join(shown)


def _ask_dashboard(shown: str) -> Finding:
    """Connect to the cluster's dashboard as ``glefld submit`` does."""
    import ray
    from ray.job_submission import JobSubmissionClient

    from pipelines import ray_private

    for name in ray_private.SUBMISSION_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        JobSubmissionClient(os.environ["RAY_ADDRESS"])
    except ray.exceptions.AuthenticationError:
        raise UserError(
            f"the cluster at {shown} does not accept our token: set RAY_AUTH_MODE=token and the cluster's token in "
            "RAY_AUTH_TOKEN, or its file's path in RAY_AUTH_TOKEN_PATH"
        ) from None
    return Finding("ok", "Ray", f"{ray.__version__}, dashboard at {shown} answers")


def _join(shown: str) -> Finding:
    """Connect to the cluster as a job does."""
    import ray

    joined = not ray.is_initialized()
    if joined:
        ray.init(logging_level="ERROR", log_to_driver=False)
    try:
        found = ray.cluster_resources()
        machines = sum(node["Alive"] for node in ray.nodes())
    finally:
        if joined:
            ray.shutdown()
    have = f"{machines} machines, {found.get('CPU', 0):.0f} CPUs, {found.get('GPU', 0):.0f} GPUs"
    return Finding("ok", "Ray", f"{ray.__version__}, cluster at {shown}: {have}")


def mlflow(root: str, on_cluster: bool) -> Finding:
    uri = tracking.tracking_uri(root, on_cluster)
    tracking.require_answer(uri)
    what = "answers" if not uri.startswith("sqlite:") else "is made with the first run"
    if uri.startswith("sqlite:///") and os.path.exists(uri.removeprefix("sqlite:///")):
        what = "can be used"
    return Finding("ok", "MLflow", f"{importlib.metadata.version('mlflow')}, {redacted(uri)} {what}")


def weights() -> Finding:
    """ImageNet's weights, which are on board."""
    from glefld.models import weights as source
    from glefld.models.backbones import EMBEDDED

    source.read(source.ON_BOARD, EMBEDDED)
    return Finding("ok", "weights", f"{EMBEDDED}: {source.describe(source.ON_BOARD)}")


def root_folder(root: str, named: str) -> Finding:
    """Whether the root can be listed and written, and has room."""
    storage.refuse_http(root, named)
    storage.require_access(root)
    there = storage.exists(root)
    if there and not storage.is_folder(root):
        raise UserError(f"{named} {root} is a file: give a folder")
    if not storage.is_local(root):
        probe = storage.join(root, f"_doctor-{uuid.uuid4().hex}")
        try:
            storage.write_verified(probe, b"glefld doctor\n")
        finally:
            with contextlib.suppress(OSError):
                storage.remove_file(probe)
        return Finding("ok", "root", f"{public_url(root)} can be read and written")
    storage.require_writable(root, named, folder=True)
    if there:
        os.listdir(storage.local_path(root))
    above = Path(storage.local_path(root))
    while not above.exists():
        above = above.parent
    usage = psutil.disk_usage(str(above))
    text = f"{root} {'can be read and written' if there else 'is made when it is needed'}"
    text += f", {usage.free / 2**30:.1f} GiB free"
    if usage.free < LEAST_DISK * 2**30:
        return Finding("warning", "root", f"{text}: make room, or choose another root with --root")
    return Finding("ok", "root", text)


def data_sets(root: str) -> Finding:
    """The data sets below the root."""
    found, unfinished = [], []
    for entry in storage.entries(storage.join(root, "data")):
        if not entry.is_folder:
            continue
        if read_manifest(entry.url) is None:
            unfinished.append(entry.name)
            continue
        manifest = open_dataset(entry.url)
        found.append(f"{entry.name} ({sum(manifest.splits.values()):,} garments)")
    if unfinished:
        words = f"{', '.join(unfinished)}: not finished, run the same `glefld ingest` again"
        return Finding("warning", "data sets", f"{words}; finished: {', '.join(found) or 'none'}")
    return Finding("ok", "data sets", ", ".join(found) or "none yet: `glefld ingest` makes one")


def runs(root: str) -> Finding:
    """The trainings below the root, and whether each has a checkpoint that can be used."""
    from glefld.models import checkpoint

    usable, empty, damaged = [], [], []
    for entry in storage.entries(storage.join(root, "runs")):
        if not entry.is_folder or not storage.exists(storage.join(entry.url, "run.json")):
            continue
        try:
            best = checkpoint.pointed(entry.url, "best")
            if best is None:
                empty.append(entry.name)
                continue
            checkpoint.complete(storage.join(entry.url, best))
            usable.append(entry.name)
        except (UserError, OSError) as error:
            damaged.append(f"{entry.name} ({error})")
    text = f"{len(usable)} with a best checkpoint" if usable else "none yet: `glefld train` makes one"
    if empty:
        text += f"; without one yet: {', '.join(empty)} (`glefld train --resume --name NAME` goes on)"
    if damaged:
        return Finding("problem", "runs", f"damaged: {', '.join(damaged)}; {text}")
    return Finding("ok", "runs", text)
