"""Shared by all jobs: option parsing, one-line error messages, the root folder, and starting Ray."""

import atexit
import contextlib
import dataclasses
import logging
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar

import tyro
from botocore.exceptions import BotoCoreError, ClientError

from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.errors import UserError
from glefld.redaction import public_url, redacted
from glefld.schema import Manifest
from jobs import tyro_private
from jobs.commands import caller
from jobs.nearest import nearest

# Ray, PyTorch and MLflow take seconds to import, so functions import them when they need them: a user is told of a
# mistake before that.

Options = TypeVar("Options")
Root = Annotated[
    str | None,
    tyro.conf.arg(
        help="Folder of data sets and runs, path or URL. Default: $GLEFLD_ROOT, else ./glefld-data."
    ),
]

#: Errors reported in one line: mistakes that the user can fix, and failures of disks, networks and object storage.
#: Any other error is a bug and keeps its traceback.
ONE_LINE = (UserError, OSError, BotoCoreError, ClientError)
#: Environment variable; 1 shows the traceback of every error, and what Ray says of itself.
DEBUG = "GLEFLD_DEBUG"
Device = Annotated[
    Literal["auto", "cpu", "gpu"], tyro.conf.arg(help="Device to compute on. auto: GPUs if there are any.")
]


def main(options_type: type[Options], run: Callable[[Options], None]) -> None:
    """Parse the command line (exit status 2 if it is wrong) and run the job."""
    module = sys.modules[options_type.__module__]
    # Parse inside the guard: options may check their values when they are constructed.
    guard(lambda: run(parse_options(options_type, sys.argv[1:], module)))


def run_command(module: ModuleType, argv: list[str]) -> None:
    """Run the job in a module with these arguments, as ``python -m`` would."""
    guard(lambda: module.run(parse_command(module, argv)))


def parse_command(module: ModuleType, argv: list[str]) -> Any:
    """Return a job's options. Exits with 2 if they are wrong, and with 0 after ``--help``."""
    if hasattr(module, "parse"):  # a job whose defaults depend on other options
        return module.parse(argv)
    return parse_options(module.Options, argv, module)


def parse_options(
    options_type: type[Options], argv: list[str], module: ModuleType, default: Any = tyro.MISSING_NONPROP
) -> Options:
    """Parse arguments to the options of the job in a module; with exit status 2, a line says what may have been meant.

    default: the options where no arguments are given.
    """
    hints: list[str] = []
    try:
        with tyro_private.hints(hints.append):
            return tyro.cli(
                options_type,
                args=argv,
                prog=program(module.__file__),
                description=module.__doc__,
                default=default,
            )
    except SystemExit:
        for hint in hints:
            print(f"did you mean {hint}?", file=sys.stderr)
        raise


def program(file: str | None) -> str:
    """Return how a user calls the job in a file, for messages: as the one that runs was called."""
    assert file is not None
    name = Path(file).stem
    called = caller()
    return f"{called} {name.replace('_', '-')}" if called else f"python -m jobs.{name}"


def guard(action: Callable[[], None]) -> None:
    """Run ``action``, printing errors of ``ONE_LINE`` as one line on stderr.

    The exit status is 1 for such an error and 130 for Ctrl-C. With GLEFLD_DEBUG=1 every error keeps its traceback.
    Nothing is printed when the reader of stdout has left, as ``head`` does: the exit status is then 1.
    """
    try:
        action()
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            _discard_output()
            raise SystemExit(1) from None
        cause = user_error(error)
        if cause is None or debugging():
            raise
        message = redacted(" ".join(str(cause).split())) or type(cause).__name__
        # The message of an error from a library may not be enough to find the cause.
        hint = "" if isinstance(cause, UserError) else f" ({DEBUG}=1 shows the traceback)"
        print(f"error: {message}{hint}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
    atexit.register(_leave)  # it comes before Ray's handler, which was registered earlier


def reader_left() -> bool:
    """Return whether stdout is a pipe that nobody reads any more."""
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # captured, as in tests
        return False
    poll = select.poll()
    poll.register(stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def needing_no_reader() -> Iterator[None]:
    """Go on after this block though the reader of stdout has left in it, as ``head`` does.

    For what a job prints before its work is complete: the rest of the output goes nowhere, and the work is done.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not reader_left():
            raise
        _discard_output()
    except SystemExit as end:  # rich's, which has discarded stdout by itself
        if not isinstance(end.__context__, BrokenPipeError):
            raise


def _discard_output() -> None:
    """Let what is still in stdout's buffer go nowhere, so that Python does not fail again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _leave() -> None:
    """Stop Ray, and end a job's process without taking Python apart.

    Ray's own exit handler first waits half a second for late messages. Python would then collect all that PyTorch, Ray
    and MLflow have imported, which takes one to six seconds and finds nothing.
    """
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if caller() is None and (main is None or not main.name.startswith("jobs.")):
        return  # a test, or a script that uses this module: its exit is its own
    atexit.unregister(_leave)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        if not reader_left():
            return  # Python tries again, and makes it the exit status
        os._exit(1)
    os._exit(0)


def debugging() -> bool:
    """Return whether the user wants to see all: tracebacks, and what Ray says of itself."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def user_error(error: BaseException) -> BaseException | None:
    """Return the error of ``ONE_LINE`` that is inside Ray's wrappers, or None if there is none."""
    # Without Ray there is no error of its.
    if (ray := sys.modules.get("ray")) is not None and isinstance(error, ray.exceptions.RayTaskError):
        return user_error(error.cause) if error.cause is not None else None
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if (found := user_error(failure)) is not None:
            return found
    if isinstance(error, ONE_LINE):
        return error
    return None


def on_cluster() -> bool:
    """Return whether RAY_ADDRESS names a cluster. It is set by the user or, in a submitted job, by Ray."""
    return bool(os.environ.get("RAY_ADDRESS"))


def resolve_root(root: str | None) -> str:
    """Return the root folder as an absolute path or URL. Raises what ``resolve_url`` raises."""
    return resolve_url(chosen_root(root), "--root (or GLEFLD_ROOT)")


def chosen_root(root: str | None) -> str:
    """Return the root folder as the user gave it."""
    return root or os.environ.get("GLEFLD_ROOT") or "./glefld-data"


def resolve_url(url: str, option: str) -> str:
    """Return a path or URL as an absolute one, and check access if it is on object storage.

    Raises UserError for a relative path on a cluster and for a bucket that cannot be accessed.
    """
    if on_cluster() and "://" not in url and not os.path.isabs(os.path.expanduser(url)):
        raise UserError(
            f"{option} is the relative path {url!r}, which differs on each machine of the cluster: "
            "give a URL (s3://bucket/prefix) or an absolute path that all of them share"
        )
    place = storage.absolute(url)
    with naming(option):
        storage.require_access(place)
    return place


def resolve_output(url: str | None, root: str | None, default: Callable[[], str]) -> tuple[str, str]:
    """Return the URL of a job's output, and the option that names it: --output or, for ``<root>/default()``, --root.

    Raises what ``resolve_url`` raises, and UserError for an HTTP URL, before its server is asked.
    """
    if url:
        storage.refuse_http(url, "--output")
        return resolve_url(url, "--output"), "--output"
    storage.refuse_http(chosen_root(root), "--root (or GLEFLD_ROOT)")
    return storage.join(resolve_root(root), default()), "--root"


@contextlib.contextmanager
def naming(option: str) -> Iterator[None]:
    """Name the option in the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def resolve_checkpoint(given: str, option: str, root: str | None) -> str:
    """Return the URL of the checkpoint that an option names: a checkpoint, a run (its best one) or an MLflow model.

    An MLflow model is copied below the root, so that workers need only the shared storage.
    Raises UserError if there is no such checkpoint.
    """
    from glefld import tracking
    from glefld.models import checkpoint

    if not given.startswith(("models:/", "runs:/")):
        url = resolve_url(given, option)
        with (
            naming(option),
            suggesting(url, None if "/" in given else storage.join(chosen_root(root), "runs")),
        ):
            return checkpoint.resolve(url)
    place = resolve_root(root)
    uri = tracking.tracking_uri(place, on_cluster())
    tracking.require_answer(uri)
    with naming(option):
        return tracking.fetch(given, uri, models_folder(place))


def resolve_detector(given: str | None, root: str | None) -> str:
    """Return the URL of the detector's checkpoint for --boxes detect, and say which it is if --detector does not.

    Without --detector it is $GLEFLD_DETECTOR, else the newest run of a detector below the root. Raises UserError if
    there is none.
    """
    from glefld.detect import default_detector

    if given:
        return resolve_checkpoint(given, "--detector", root)
    with naming("--boxes detect"):
        found, why = default_detector(resolve_root(root))
    print(f"detector   {public_url(found)} ({why})")
    return resolve_checkpoint(found, "--detector", root)


@contextlib.contextmanager
def suggesting(url: str, folder: str | None = None) -> Iterator[None]:
    """Append the place that was probably meant to the message of a UserError: what is named alike beside the URL.

    folder: where it may be instead, under this name or one like it.
    """
    try:
        yield
    except UserError as error:
        above, _, name = url.rstrip("/").rpartition("/")
        for place in (above, folder):
            if place and not storage.is_http(place):
                names = [entry.name for entry in storage.entries(place) if entry.is_folder]
                found = nearest(name, names)
                if found is not None and storage.join(place, found) != url.rstrip("/"):
                    raise UserError(f"{error}; did you mean {storage.join(place, found)}?") from error
        raise


def require_name(name: str | None) -> None:
    """Raise UserError unless a run's name is that of a folder in ``<root>/runs``."""
    if name is not None and (name in ("", ".", "..") or "/" in name or "\0" in name):
        raise UserError(f"--name {name}: give a name without slashes, of a folder in <root>/runs")


def models_folder(root: str) -> str:
    """Return the folder of a root for copies of MLflow's models."""
    return storage.join(root, "models")


def open_data(data: str | None, root: str, dataset: str) -> tuple[str, Manifest]:
    """Return the URL of an ingested data set, by default <root>/data/<dataset>, and its manifest.

    Raises UserError if it is not finished, or is not ``dataset``.
    """
    url = resolve_url(data, "--data") if data else storage.join(root, "data", dataset)
    with naming("--data"), suggesting(url):
        manifest = open_dataset(url)
    if manifest.dataset != dataset:
        raise UserError(
            f"--data: {url} holds the data set {manifest.dataset!r}, not {dataset!r}: check --data and --dataset"
        )
    return url, manifest


def base_options(options: Any, base: type[Options], **changes: Any) -> Options:
    """Return a job's options as the dataclass ``base`` that they extend, with some values changed."""
    own = {field.name: getattr(options, field.name) for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    return base(**own | changes)


def start_ray(*, dashboard: bool = False, **local: Any) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray on this machine.

    dashboard: start the dashboard too; Ray Train needs its state API to clean up after a lost worker group.
    local: passed to ``ray.init`` on this machine, such as its resources.
    """
    import ray

    from pipelines import ray_private

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with contextlib.nullcontext() if debugging() else ray_private.quiet_driver():
        _start_ray(dashboard, local)
    if not debugging():
        ray_private.take_worker_lines(ray_private.is_noise)
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")


def _start_ray(dashboard: bool, local: dict[str, Any]) -> None:
    import ray

    from pipelines import ray_private

    level = logging.INFO if debugging() else logging.WARNING
    if on_cluster():
        ray.init(logging_level=level)
        return
    ray_private.listen_on_loopback()
    options = {"include_dashboard": dashboard, "logging_level": level, **local}
    try:
        _start_local_ray(options)
    except Exception as error:  # Ray has no class of its own for this
        # Ray waits 30 s for its processes to find each other, however busy the machine is. A port may be gone as well.
        print(f"Ray did not start ({_first_sentence(error)}): trying once more", file=sys.stderr)
        try:
            _start_local_ray(options)
        except Exception as again:
            raise UserError(
                f"Ray did not start, twice ({_first_sentence(again)}): this machine may be too busy, or have no memory "
                f"or no room in /tmp left ({DEBUG}=1 shows the traceback)"
            ) from again


def _start_local_ray(options: dict[str, Any]) -> None:
    import ray

    from pipelines import ray_private

    # Parts of Ray Train find their cluster by its address, which fails if a second cluster runs on this machine.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray_private.choose_gcs_port(port)
    address = f"{ray.util.get_node_ip_address()}:{port}"
    # Ray's processes inherit these. A runtime environment would do, but not for the workers that Ray starts ahead.
    with (
        variables(RAY_ADDRESS=address, **ray_private.waiting_threads(), **ray_private.one_machine()),
        ray_private.local_node(),
    ):
        ray.init(address="local", **options)


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an error's text, which may begin with an empty line, or else its class."""
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Set these variables of this process's environment for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def available() -> Mapping[str, float]:
    """Return the numbers of CPUs and GPUs, as ``CPU`` and ``GPU``: those that Ray has, or will have on this machine.

    Connects to a cluster, but does not start Ray on this machine, which takes seconds: options can be checked before.
    """
    import ray

    from pipelines import ray_private

    if on_cluster():
        start_ray()
    if ray.is_initialized():
        return ray.cluster_resources()
    import torch

    return {"CPU": ray_private.cpus(), "GPU": torch.cuda.device_count()}


def count_machines() -> int:
    """Return the number of machines to compute on: at least 1, as an autoscaling cluster may have none yet."""
    import ray

    if not ray.is_initialized():
        return 1
    return max(1, sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes()))


def use_gpu(device: Device, gpus: float) -> bool:
    """Return whether to use GPUs, of which there are ``gpus``. Raises UserError for ``gpu`` on a machine without one.

    A cluster is not checked, as it may add machines with GPUs on demand. If it has none, ``auto`` asks its autoscaler,
    and a line says what was chosen.
    """
    if device == "gpu" and gpus < 1 and not on_cluster():
        raise UserError("--device gpu: this machine has no GPU; omit --device to use CPUs")
    if device != "auto" or gpus >= 1 or not on_cluster():
        return gpus >= 1 if device == "auto" else device == "gpu"
    from pipelines import ray_private

    declared = ray_private.declared_gpus()
    if declared:
        print(
            "device     GPU: the cluster has none yet, but its autoscaler may add them (--device cpu takes CPUs)"
        )
    else:
        print(
            "device     CPU: the cluster has no GPU, and no autoscaler declares any (--device gpu waits for one)"
        )
    return declared >= 1
