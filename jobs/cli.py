"""What every job shares: options from a dataclass, one line for a user's mistake, the root, and a running Ray."""

import contextlib
import dataclasses
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import ray
import ray.data
import tyro
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.schema import Manifest
from pipelines import ray_private

Options = TypeVar("Options")
Root = Annotated[
    str | None,
    tyro.conf.arg(
        help="Where data sets and runs live, a path or URL. Default: $GLEFLD_ROOT, else ./glefld-data."
    ),
]

#: What is told in one line: what the user can mend, and what files, disks, networks and object storage answer.
#: Anything else is a bug of ours and keeps its traceback.
ONE_LINE = (UserError, OSError, BotoCoreError, ClientError)
#: Set to 1 to see the traceback of any error.
DEBUG = "GLEFLD_DEBUG"
#: Where a job computes.
Device = Annotated[
    Literal["auto", "cpu", "gpu"], tyro.conf.arg(help="Where to compute. auto: on GPUs if there are any.")
]


def main(options_type: type[Options], run: Callable[[Options], None]) -> None:
    """Parse the options (exit status 2 if they are wrong) and run the job."""
    description = sys.modules[options_type.__module__].__doc__
    # Within the guard: options check their own values as they are made.
    guard(lambda: run(tyro.cli(options_type, description=description)))


def guard(action: Callable[[], None]) -> None:
    """End the errors of ``ONE_LINE`` in one line on stderr with exit status 1, Ctrl-C with 130.

    With GLEFLD_DEBUG=1 every error keeps its traceback.
    """
    try:
        action()
    except Exception as error:
        cause = user_error(error)
        if cause is None or os.environ.get(DEBUG, "0") not in ("", "0"):
            raise
        message = storage.redacted(" ".join(str(cause).split())) or type(cause).__name__
        # Of an error that this program has not worded itself, the place may tell more than the words.
        hint = "" if isinstance(cause, UserError) else f" ({DEBUG}=1 shows where)"
        print(f"error: {message}{hint}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


def user_error(error: BaseException) -> BaseException | None:
    """The user's mistake behind an error, looked for through Ray's wrappers; None if there is none."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return user_error(error.cause) if error.cause is not None else None
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if (found := user_error(failure)) is not None:
            return found
    if isinstance(error, ONE_LINE):
        return error
    return None


def on_cluster() -> bool:
    """Whether a cluster was named: RAY_ADDRESS is set by the user or, in a submitted job, by Ray."""
    return bool(os.environ.get("RAY_ADDRESS"))


def resolve_root(root: str | None) -> str:
    """The root as an absolute path or URL; UserError for a relative one on a cluster, where it would be lost."""
    chosen = root or os.environ.get("GLEFLD_ROOT") or "./glefld-data"
    return resolve_url(chosen, "--root (or GLEFLD_ROOT)")


def resolve_url(url: str, option: str) -> str:
    """The same place as an absolute path or URL.

    UserError for a relative path on a cluster, OSError for a place on object storage that cannot be asked for.
    """
    if on_cluster() and "://" not in url and not os.path.isabs(os.path.expanduser(url)):
        raise UserError(
            f"{option} is the relative path {url!r}, which each machine of the cluster would take for its own: "
            "give a URL (s3://bucket/prefix) or an absolute path that all of them share"
        )
    place = storage.absolute(url)
    storage.require_access(place)
    return place


def resolve_checkpoint(given: str, option: str, root: str | None) -> str:
    """The checkpoint folder that an option names: one, a run (its best), or a model in MLflow, copied below the root.

    UserError in one line if there is none. So workers need nothing but the storage that they share.
    """
    # MLflow takes seconds to import, and a place needs none of it.
    if not given.startswith(("models:/", "runs:/")):
        return checkpoint.resolve(resolve_url(given, option))
    from glefld import tracking

    place = resolve_root(root)
    uri = tracking.tracking_uri(place, on_cluster())
    return tracking.fetch(given, uri, storage.join(place, "models"))


def open_data(data: str | None, root: str, dataset: str) -> tuple[str, Manifest]:
    """The ingested data set's URL, by default <root>/data/<dataset>, and its manifest.

    UserError if it is not finished or is another data set.
    """
    url = resolve_url(data, "--data") if data else storage.join(root, "data", dataset)
    manifest = open_dataset(url)
    if manifest.dataset != dataset:
        raise UserError(f"{url} holds the data set {manifest.dataset!r}, not {dataset!r}")
    return url, manifest


def base_options(options: Any, base: type[Options], **changes: Any) -> Options:
    """The part of a job's options that belongs to the dataclass they extend, with some values changed."""
    own = {field.name: getattr(options, field.name) for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    return base(**own | changes)


def start_ray(*, dashboard: bool = False, **local: Any) -> None:
    """Use the cluster that RAY_ADDRESS names, else start Ray on this machine with the given resources.

    ``dashboard`` also starts its state API, which Ray Train asks about the actors of a lost worker group.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if on_cluster():
        ray.init()
        return
    ray_private.listen_on_loopback()
    # Parts of Ray Train look their own cluster up by its address, in vain where a second one runs on this machine.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    address = f"{ray.util.get_node_ip_address()}:{port}"
    ray.init(
        address="local",
        include_dashboard=dashboard,
        runtime_env={"env_vars": {"RAY_ADDRESS": address}},
        **local,
    )


def use_gpu(device: Device) -> bool:
    """Whether to work on GPUs: as asked for, else where there are any. UserError if this machine has none.

    A cluster may add machines with GPUs when they are asked for, so there they are believed in.
    """
    available = ray.cluster_resources().get("GPU", 0) >= 1
    if device == "gpu" and not available and not on_cluster():
        raise UserError("--device gpu: Ray has no GPU here; leave it out to work on CPUs")
    return available if device == "auto" else device == "gpu"


class RowBar(contextlib.AbstractContextManager["RowBar"]):
    """A bar of rows as they are done, and their rate: those that an earlier, stopped run had done do not count."""

    def __init__(self, console: Console, name: str) -> None:
        self._bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console)
        self._task = self._bar.add_task(name, total=None)
        self._start = time.monotonic()
        self._first: int | None = None
        self._done = 0

    def __enter__(self) -> "RowBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that so many rows of all are done."""
        self._first = done if self._first is None else self._first
        self._done = done
        self._bar.update(self._task, completed=done, total=total)

    def rows_per_second(self) -> float:
        return (self._done - (self._first or 0)) / (time.monotonic() - self._start)


def show_own_progress() -> None:
    """Let a job's bar of rows stand alone: Ray Data's own bars, and the lines it logs of each graph, are silenced."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger(ray_private.DATA_PROGRESS_LOGGER).setLevel(logging.ERROR)
    logging.getLogger(ray_private.DATA_EXECUTION_LOGGER).setLevel(logging.WARNING)
