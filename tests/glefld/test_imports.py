"""What a module loads, and in which direction imports point: inference needs no plotting, training no Ray."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
#: What importing a module must not load.
NOT_LOADED = {
    "glefld": {"torch", "numpy", "ray", "mlflow", "matplotlib", "PIL"},
    "glefld.pages": {"torch", "ray", "mlflow", "matplotlib", "pyarrow"},
    "glefld.predict": {"ray", "mlflow", "matplotlib", "rich", "pycocotools"},
    "glefld.detect": {"ray", "mlflow", "matplotlib", "rich", "pycocotools", "torchvision"},
    "glefld.landmarks": {
        "torch",
        "onnxruntime",
        "ray",
        "mlflow",
        "matplotlib",
        "rich",
        "pycocotools",
        "timm",
        "torchvision",
        "nvidia",
    },
    "glefld.serving": {"ray", "mlflow", "matplotlib", "rich", "pycocotools", "torchvision"},
    "glefld.onnx_model": {"torch", "onnxruntime", "ray", "mlflow", "matplotlib", "rich", "cv2", "nvidia"},
    "glefld.export": {"ray", "mlflow", "matplotlib", "rich", "pycocotools", "onnxruntime"},
    "glefld.training.loop": {"ray", "mlflow"},
    "glefld.scoring.evaluation": {"ray", "mlflow", "matplotlib", "rich"},
    "pipelines.ingest.run": {"torch", "mlflow", "tyro", "rich", "matplotlib", "cv2", "nvidia"},
    "pipelines.infer.run": {"mlflow", "matplotlib", "rich", "tyro"},
    # Ray Train's controller imports these, while the workers wait for it.
    "pipelines.train.process_group": {"torch", "mlflow", "matplotlib"},
    "pipelines.train.worker": {"ray", "torch", "mlflow", "matplotlib"},
    "pipelines.train.events": {"ray", "torch", "mlflow", "matplotlib"},
    "pipelines.train.failures": {"torch", "mlflow", "matplotlib"},
    # Help and mistyped commands are answered at once.
    "jobs.__main__": {"ray", "torch", "mlflow", "matplotlib", "tyro", "rich", "numpy", "pyarrow", "botocore"},
    # A user is told of a mistake before what takes seconds is loaded.
    "jobs.cli": {"ray", "torch", "mlflow", "matplotlib"},
    "jobs.ingest": {"torch", "mlflow", "matplotlib", "cv2", "nvidia", "pylibjxl"},
    "jobs.train": {"ray", "mlflow", "matplotlib", "torchvision"},
    "jobs.compare": {"mlflow", "matplotlib", "torchvision"},
    "jobs.evaluate": {"ray", "mlflow", "matplotlib", "torchvision"},
    "jobs.infer": {"mlflow", "matplotlib", "torchvision"},
    "jobs.doctor": {"ray", "torch", "mlflow", "matplotlib"},
    "jobs.predict": {"ray", "torch", "mlflow", "matplotlib", "cv2", "nvidia"},
    "jobs.inspect": {"ray", "torch", "mlflow", "matplotlib", "cv2", "nvidia"},
    "jobs.benchmark": {"ray", "mlflow", "matplotlib", "torchvision"},
}
#: The rooms of the library that each room may import, itself besides.
BELOW = {
    "data": {"schema", "storage", "redaction", "temporary", "errors", "recipe"},
    "datasets": {"coco_format", "data", "schema", "storage", "redaction", "temporary", "errors"},
    "models": {"data", "schema", "storage", "redaction", "temporary", "errors", "recipe"},
    "scoring": {
        "pages",
        "models",
        "data",
        "datasets",
        "schema",
        "storage",
        "redaction",
        "temporary",
        "errors",
        "recipe",
    },
    "training": {
        "scoring",
        "models",
        "data",
        "schema",
        "storage",
        "redaction",
        "temporary",
        "errors",
        "recipe",
    },
    "tracking": {"models", "schema", "storage", "redaction", "temporary", "errors"},
    "inspection": {
        "pages",
        "predict",
        "prediction",
        "scoring",
        "models",
        "data",
        "schema",
        "storage",
        "redaction",
        "errors",
    },
    "synthetic": {"datasets", "schema", "storage", "redaction", "temporary", "errors"},
    "prediction": {"data", "schema", "errors", "recipe"},
    "onnx_model": {"prediction", "models", "data", "schema", "storage", "redaction", "errors"},
    "predict": {
        "prediction",
        "models",
        "data",
        "schema",
        "storage",
        "redaction",
        "temporary",
        "errors",
        "recipe",
    },
    "export": {"predict", "onnx_model", "models", "schema", "errors", "torch_private"},
    "detect": {
        "predict",
        "prediction",
        "models",
        "data",
        "schema",
        "storage",
        "redaction",
        "temporary",
        "errors",
        "recipe",
    },
    "landmarks": {
        "coco_format",
        "detect",
        "onnx_model",
        "predict",
        "prediction",
        "scoring",
        "tracking",
        "models",
        "data",
        "schema",
        "storage",
        "redaction",
        "errors",
        "recipe",
    },
    "serving": {"landmarks", "detect", "predict", "prediction", "models", "errors"},
    "coco_format": {"prediction", "schema", "errors"},
    "pages": set(),
    "torch_private": set(),
    "recipe": {"data", "errors"},
    "listing": {"storage", "temporary"},
    "storage": {"redaction", "temporary", "errors"},
    "redaction": set(),
    "temporary": set(),
    "schema": {"errors"},
    "errors": set(),
}
MODULES = sorted(
    path for package in ("glefld", "pipelines", "jobs") for path in (ROOT / package).rglob("*.py")
)


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports; ``from a import b`` counts as ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


LOADED = """
import importlib, json, logging, os, sys

def state():
    from fsspec.config import conf
    levels = {name: each.level for name, each in logging.root.manager.loggerDict.items() if hasattr(each, "level")}
    return {"environment": dict(os.environ), "fsspec": repr(conf), "levels": levels}

modules, libraries, ours = json.loads(sys.argv[1])
for name in modules:
    if name in ("torch", "ray.data"):
        importlib.import_module(name)
        continue
    if not os.fork():
        importlib.import_module(name)
        print(json.dumps([name, list(sys.modules)]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name

for name in libraries:
    importlib.import_module(name)
before = state()
for name in ours:
    importlib.import_module(name)
print(json.dumps([before, state()]))
"""
#: What our modules import, and may change something outside as it is imported.
LIBRARIES = (
    "ray",
    "ray.data",
    "ray.train.torch",
    "ray.job_submission",
    "mlflow",
    "torch",
    "s3fs",
    "tyro",
    "nvidia.dali",
)


class Loaded(NamedTuple):
    """What imports do in a new process."""

    packages: dict[str, set[str]]
    """By module, the packages that a process has loaded which imports it alone."""
    before: dict[str, Any]
    """Environment, fsspec's configuration and logging levels when all libraries are imported."""
    after: dict[str, Any]
    """The same when all modules of ours are imported too."""


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """By one process for all: PyTorch, Ray and MLflow take seconds to import.

    Modules that may use PyTorch, or Ray too, are imported by forks of it once it has these.
    """
    without = [name for name in NOT_LOADED if "torch" in NOT_LOADED[name]]
    with_torch = [name for name in NOT_LOADED if "ray" in NOT_LOADED[name] and name not in without]
    with_both = [name for name in NOT_LOADED if name not in (*without, *with_torch)]
    ours = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in MODULES
    ]
    given = json.dumps([[*without, "torch", *with_torch, "ray.data", *with_both], LIBRARIES, ours])
    done = subprocess.run(
        [sys.executable, "-c", LOADED, given], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *answers, last = map(json.loads, done.stdout.splitlines())
    packages = {module: {name.partition(".")[0] for name in names} for module, names in answers}
    return Loaded(packages, *last)


@pytest.mark.parametrize("module", NOT_LOADED)
def test_a_module_loads_no_more_than_it_needs(module: str, loaded: Loaded) -> None:
    assert module.partition(".")[0] in loaded.packages[module]
    assert not NOT_LOADED[module] & loaded.packages[module]


def test_imports_point_down() -> None:
    """jobs -> pipelines -> glefld, and in the library each room stands on those that ``BELOW`` names."""
    wrong = []
    for path in MODULES:
        package, room, *_ = (*path.relative_to(ROOT).with_suffix("").parts, "")
        names = imported(path)
        packages = {name.partition(".")[0] for name in names} & {"glefld", "pipelines", "jobs"}
        above = packages - {"glefld": {"glefld"}, "pipelines": {"glefld", "pipelines"}}.get(package, packages)
        if package == "glefld" and room != "__init__":
            above |= (
                {name.split(".")[1] for name in names if name.startswith("glefld.")} - BELOW[room] - {room}
            )
        wrong += [(name_of(path), above)] if above else []
    assert not wrong


def test_mlflow_has_one_door() -> None:
    """Only glefld.tracking imports MLflow, and others import it from that package, not from its modules."""
    wrong = [
        (name_of(path), name)
        for path in MODULES
        if not path.is_relative_to(ROOT / "glefld" / "tracking")
        for name in imported(path)
        if name.partition(".")[0] == "mlflow" or (name.startswith("glefld.tracking.") and name.count(".") > 2)
    ]
    assert not wrong


def test_the_library_never_imports_ray() -> None:
    wrong = [
        (name_of(path), name)
        for path in MODULES
        if path.is_relative_to(ROOT / "glefld")
        for name in imported(path)
        if name.partition(".")[0] == "ray"
    ]
    assert not wrong


#: Where the private names of a library may stand.
PRIVATE = {
    "pipelines/ray_private.py": "ray",
    "glefld/tracking/mlflow_private.py": "mlflow",
    "jobs/tyro_private.py": "tyro",
    "glefld/torch_private.py": "torch",
    # These two test what Ray's private names do: ours, and how `ray up` reads a cluster file.
    "tests/pipelines/test_ray_private.py": "ray",
    "tests/infra/test_compose.py": "ray",
    # Ray Train's failures have no public names.
    "tests/pipelines/train/test_failures.py": "ray",
    # PyTorch has no public way to see each operation.
    "tests/glefld/models/test_blocks.py": "torch",
}


def private_names(source: str) -> set[str]:
    """The private names of libraries that a file imports or reaches, under whatever name it has imported them."""
    tree = ast.parse(source)
    names, known = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                names.add(module + alias.name)
                if alias.asname or module:
                    known[alias.asname or alias.name] = module + alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            names.add(known.get(first, first) + dot + rest)
    return {
        name
        for name in names
        if name.partition(".")[0] in ("ray", "mlflow", "torch", "tyro")
        and any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    }


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private",
        "from ray import _private",
        "from ray._private import services",
        "import ray\nray._private.state.actors()",
        "import ray.data\nray.data._internal",
        "import ray.data as rd\nrd._internal",
        "from ray import data as rd\nrd._internal.plan",
        "import torch\ntorch.cpu._is_amx_tile_supported()",
    ],
)
def test_a_private_name_is_seen_however_it_is_reached(source: str) -> None:
    assert private_names(source)


def test_private_names_of_libraries_stand_in_one_file_each() -> None:
    """What a new release may take away is easy to find, also in tests."""
    wrong = [
        (name_of(path), name)
        for path in (*MODULES, *sorted((ROOT / "tests").rglob("*.py")))
        for name in private_names(path.read_text())
        if PRIVATE.get(name_of(path)) != name.partition(".")[0]
    ]
    assert not wrong


def test_importing_changes_nothing_outside(loaded: Loaded) -> None:
    """Environment, fsspec's configuration and logging levels stay as the libraries leave them."""
    before, after = loaded.before, loaded.after
    assert after["fsspec"] == before["fsspec"]
    variables = {
        name for name, value in after["environment"].items() if before["environment"].get(name) != value
    }
    assert not [name for name in variables if name.startswith(("RAY_", "MLFLOW_", "AWS_", "GLEFLD_"))]
    packages = ("urllib3", "mlflow", "alembic", "ray", "botocore", "s3fs", "glefld", "pipelines", "jobs")
    assert not {
        name: level
        for name, level in after["levels"].items()
        if level and before["levels"].get(name, 0) != level and name.partition(".")[0] in packages
    }
