"""The comparison job: two systems and what guides one of them, as child runs of one MLflow run."""

import dataclasses
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import tyro
from mlflow import MlflowClient
from ray.util.state import list_tasks

import jobs.compare
from glefld import storage
from glefld.data.dataset import open_dataset
from glefld.errors import UserError
from glefld.models import weights
from glefld.recipe import Recipe
from glefld.scoring.comparison import Result
from glefld.scoring.cost import Cost
from jobs.compare import Options, parse_entry, run, trainable_systems
from pipelines import compare
from pipelines.compare import Comparison, make_job
from pipelines.lease import hold
from pipelines.train import run as train
from pipelines.train.workers import WorkerGroup
from tests import dots
from tests.in_process import task_here, train_here
from tests.ingested import write_dataset
from tests.mistakes import NO_SERVER, everything, forbid_ray, one_line, write_wrong_files

TINY = Recipe(
    input_size=32,
    epochs=1,
    batch_size=8,
    learning_rate=1e-3,
    precision="fp32",
    schedule="cosine",
    log_steps=2,
)


@pytest.mark.usefixtures("ray_cluster")
def test_it_ends_in_one_table_and_goes_on_where_it_was_stopped(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A child run each, beneath the parent, the classifier's among them; run again, nothing is trained anew.

    They are trained here; by Ray's workers, two side by side, in tests/cluster/test_submit.py.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    write_dataset(tmp_path / "data" / "fld", {"train": 16, "val": 9, "test": 5})
    options = Options(
        dataset="fld",
        recipe=TINY,
        models=(
            "gle:backbone=test_resnet,pyramid=0,modules=0",
            "sanl:backbone=test_resnet,guide=test_resnet,width=16",
        ),
        random_weights=True,
        root=str(tmp_path),
        name="both",
        cpus_per_worker=1,
        parallel=2,
    )
    measured = jobs.compare.measure
    monkeypatch.setattr(jobs.compare, "measure", unmeasured)
    monkeypatch.setattr(train, "train", train_here)
    monkeypatch.setattr(compare, "_child", task_here(compare._child._function))
    run(dataclasses.replace(options, models=options.models[:1]))
    with monkeypatch.context() as patch:
        patch.setattr(jobs.compare, "measure", measured)
        run(options)
    printed = capsys.readouterr().out
    assert "gle:backbone=test_resnet" in printed
    assert "mean position" in printed

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-fld"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3
    assert {r.info.status for r in runs} == {"FINISHED"}
    (guide,) = [r for r in children if "val_ne" not in r.data.metrics]
    assert guide.data.metrics["val_accuracy_top1"] == pytest.approx(1 - guide.data.metrics["val_error_best"])
    assert {f.path for f in client.list_artifacts(parent.info.run_id, "val")} == {
        "val/table.txt",
        "val/ne.png",
        "val/results.json",
    }
    value = storage.read_json(str(tmp_path / "runs" / "both" / "results-val.json"))
    assert [r["system"] for r in value["results"]] == list(options.models)
    for r in value["results"]:
        assert r["ne"] > 0
    assert set(value["costs"]) == set(options.models)
    for cost in value["costs"].values():
        assert min(cost["parameters"], cost["multiply_adds"], cost["images_per_second"]) > 100

    run(options)
    assert len(client.search_runs([experiment.experiment_id])) == len(runs)
    # Another split is scored anew, with the same checkpoint and in the same run.
    run(dataclasses.replace(options, split="test", models=options.models[:1]))
    (other,) = storage.read_json(str(tmp_path / "runs" / "both" / "results-test.json"))["results"]
    (same,) = [r for r in value["results"] if r["system"] == options.models[0]]
    assert other["checkpoint"] == same["checkpoint"]
    assert other["ne"] != same["ne"]
    assert len(client.search_runs([experiment.experiment_id])) == len(runs)
    with pytest.raises(UserError, match="started with other options"):
        run(dataclasses.replace(options, recipe=dataclasses.replace(TINY, epochs=2)))


def unmeasured(results: list[Result], _: WorkerGroup) -> dict[str, Cost]:
    """What the systems cost, where it is not looked at: measuring takes two seconds each."""
    return {result.system: Cost(1, 1, 1.0) for result in results}


def kill_the_child(begun: Path, killed: list[int]) -> None:
    """SIGKILL the process that drives the first training, once its MLflow run is there."""
    running = [("name", "=", "_child"), ("state", "=", "RUNNING")]
    deadline = time.monotonic() + 120
    while not begun.exists() or not (
        tasks := list_tasks(address=ray.get_runtime_context().gcs_address, filters=running, detail=True)
    ):
        assert time.monotonic() < deadline, "no training to kill"
        time.sleep(0.1)
    os.kill(tasks[0].worker_pid, signal.SIGKILL)
    killed.append(tasks[0].worker_pid)


@pytest.mark.usefixtures("ray_cluster")
def test_a_lost_child_ends_its_run_and_the_parents(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process killed, nothing of it can end its MLflow run: the comparison does."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    write_dataset(tmp_path / "data" / "fld", {"train": 16, "val": 9})
    options = Options("fld", TINY, ("local:width=8",), root=str(tmp_path), name="lost", cpus_per_worker=1)
    killed: list[int] = []
    begun = tmp_path / "runs" / "lost" / "local-width-8-seed0" / "run.json"
    watcher = threading.Thread(target=kill_the_child, args=(begun, killed))
    watcher.start()
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        run(options)
    watcher.join()
    assert killed
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-fld"]
    assert [r.info.status for r in client.search_runs([experiment.experiment_id])] == ["FAILED", "FAILED"]


def test_the_documented_comparison_needs_no_weights_but_those_on_board() -> None:
    (line,) = (
        line
        for line in Path("docs/training.md").read_text().splitlines()
        if line.startswith("glefld compare --dataset fld")
    )
    options = tyro.cli(Options, args=line.split()[2:])
    for text in options.models:
        entry = parse_entry(text, options)
        comparison = Comparison("fld", "", "", "val", None, {}, False, False, 1, None)
        assert make_job(comparison, entry, 0, {}).weights == weights.ON_BOARD, text


@pytest.mark.parametrize("asked", ["pretrained", "random_weights"])
def test_weights_on_board_go_before_what_is_asked_for_the_others(asked: str) -> None:
    entries = [parse_entry(text, Options("fld")) for text in ("fpn", "fpn:backbone=resnet18")]
    comparison = Comparison(
        "fld", "", "", "val", None, {}, asked == "pretrained", asked == "random_weights", 1, None
    )
    sources = [make_job(comparison, entry, 0, {}).weights for entry in entries]
    assert sources == [weights.ON_BOARD, weights.HUB if asked == "pretrained" else None]


def test_an_entry_sets_its_own_options_and_the_recipes() -> None:
    options = Options("deepfashion-fine", backbone="resnet18")
    entry = parse_entry("sanl:attention=none,refine=false,landmarks=annotated,epochs=3", options)
    assert (entry.config.attention, entry.config.refine, entry.config.backbone) == ("none", False, "resnet18")
    assert (entry.recipe.landmarks, entry.recipe.epochs) == ("annotated", 3)
    assert options.recipe.epochs != 3
    assert parse_entry("gle:modules=0", options).config.modules == 0


WRONG = {
    "unknown system": ("gel", "'gel' is not one of fpn"),
    "classifier": ("resnet", "'resnet' is not one of fpn"),
    "unknown option": ("gle:module=1", "'module=1' is not OPTION=VALUE"),
    "no value": ("gle:modules", "'modules' is not OPTION=VALUE"),
    "not a number": ("gle:modules=x", "modules cannot be 'x'"),
    "not a choice": ("sanl:attention=some", "attention cannot be 'some'"),
    "not a switch": ("sanl:refine=perhaps", "refine cannot be 'perhaps'"),
    "the seed, which is counted": ("gle:seed=1", "'seed=1' is not OPTION=VALUE"),
    "a method": ("gle:from_json=1", "'from_json=1' is not OPTION=VALUE"),
    "out of range": ("gle:modules=-1", "must be between 0 and 100"),
}


MISTAKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a size that the backbone does not take": (
        {"models": ("baseline:backbone=test_convnext",), "random_weights": True},
        "multiple of 32",
    ),
    "no weights for the paper's networks": (
        {"models": ("liu2018",), "preset": "paper"},
        "liu2018: there are no weights of vgg16 on board: give --weights FILE_OR_URL (in a comparison vgg16=",
    ),
    "weights of no backbone here": (
        {"weights": ("vgg19=/x.pth",), "random_weights": True},
        "no system of the comparison has",
    ),
    "weights without a backbone": ({"weights": ("/x.pth",)}, "must be BACKBONE=FILE_OR_URL"),
    "weights that are not there": (
        {"weights": ("tf_efficientnet_lite0=/nope.pth",)},
        "--weights /nope.pth: there is no such",
    ),
    "weights that are a text": (
        {"weights": ("tf_efficientnet_lite0={root}/notes.txt",)},
        "--weights {root}/notes.txt is no checkpoint of a backbone",
    ),
    "labels that are not there": ({"models": ("liu2018-full",)}, "use liu2018"),
    "no workers": ({"num_workers": 0}, "--num-workers must be at least 1, not 0"),
    "no GPU": ({"device": "gpu"}, "--device gpu: this machine has no GPU"),
    "more workers than there are CPUs": (
        {"num_workers": 3, "cpus_per_worker": 9},
        "3 workers of 9 CPUs need more",
    ),
    "fewer rows in a batch than workers": (
        {"num_workers": 5},
        "--num-workers 5 needs batches of at least 5 rows",
    ),
    "fewer rows in one system's batch": (
        {"models": ("gle:batch_size=1",), "num_workers": 2},
        "--num-workers 2 needs batches of at least 2 rows, but --batch-size 1",
    ),
    "a split without rows": (
        {"split": "test"},
        "--split test: the data set {root}/data/fld has no rows in it",
    ),
    "weights that are a text, of a guide to train": (
        {"models": ("sanl:guide=resnet18,width=16",), "weights": ("resnet18={root}/notes.txt",)},
        "classifier:backbone=resnet18,label=garment_type: --weights {root}/notes.txt is no checkpoint of a backbone",
    ),
    "weights that are not there, of a guide to train": (
        {"models": ("sanl:guide=resnet18,width=16",), "weights": ("resnet18=/nope.pth",)},
        "--weights /nope.pth: there is no such file",
    ),
    "weights that nothing uses": (
        {"weights": ("resnet18=/nope.pth",)},
        "--weights resnet18=...: no system of the comparison has the backbone 'resnet18'",
    ),
    "no weights": ({"weights": ("resnet18=",)}, "--weights resnet18=: must be BACKBONE=FILE_OR_URL"),
    "a classifier of landmarks": (
        {"models": ("sanl:width=16",), "classifier": "{root}/landmarks"},
        "sanl:width=16: --classifier must name a checkpoint of --task classify",
    ),
    "a classifier that nothing uses": (
        {"classifier": "{root}/landmarks"},
        "--classifier: no system of the comparison is guided",
    ),
    "a name outside of the runs": ({"name": "../../x"}, "--name ../../x: give a name without slashes"),
    "failures below zero": ({"max_failures": -1}, "--max-failures must be at least 0, not -1"),
    "a classifier that is none": ({"classifier": "/nope"}, "--classifier: /nope is neither"),
}


@pytest.fixture
def mistaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """A small comparison that must not come to start Ray."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    forbid_ray(monkeypatch, "compare")
    write_dataset(tmp_path / "data" / "fld", {"train": 4, "val": 2})
    write_wrong_files(tmp_path)
    recipe = dataclasses.replace(TINY, input_size=48)
    return Options("fld", recipe, ("gle:modules=0",), root=str(tmp_path), name="wrong")


@pytest.mark.parametrize("case", MISTAKEN)
def test_a_mistake_shows_before_anything_starts(
    case: str, mistaken: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, and no run is made: not after the hours that the first systems take."""
    changes, message = MISTAKEN[case]
    changes = dict(changes)
    if "classifier" in changes:
        changes["classifier"] = changes["classifier"].format(root=tmp_path)
        dots.write_checkpoint(str(tmp_path / "landmarks"))
    if "weights" in changes:
        changes["weights"] = tuple(text.format(root=tmp_path) for text in changes["weights"])
    before = everything(tmp_path)
    told = one_line(lambda: run(dataclasses.replace(mistaken, **changes)), capsys)
    assert message.format(root=tmp_path) in told
    assert everything(tmp_path) == before


def test_a_comparison_without_its_tracking_server_does_not_start(
    mistaken: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_SERVER)
    before = everything(tmp_path)
    assert f"MLflow at {NO_SERVER} cannot be used" in one_line(lambda: run(mistaken), capsys)
    assert everything(tmp_path) == before


def test_a_comparison_that_another_process_has_is_refused(
    mistaken: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One name is one folder and one MLflow run, whatever process asks for it."""
    with hold(str(tmp_path / "runs" / "wrong")):
        told = one_line(lambda: run(mistaken), capsys)
    assert f"runs/wrong is being trained by process {os.getpid()} on " in told


def test_all_systems_that_the_labels_suit_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default; without categories and attributes one is left out, and that is said. DAFE is there in both forms."""
    manifest = open_dataset(write_dataset(tmp_path / "data", {"train": 4, "val": 2}))
    other = "dafe:pixel=elementwise,channel=se"
    assert trainable_systems(Options("fld"), manifest.labels) == [
        "fpn",
        "gle",
        "liu2018",
        "sanl",
        "dafe",
        other,
        "baseline",
    ]
    assert "left out: liu2018-full" in capsys.readouterr().out
    config = parse_entry(other, Options("fld")).config
    assert (config.pixel, config.channel) == ("elementwise", "se")


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_entry_ends_in_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = WRONG[case]
    options = Options("fld")
    assert message in one_line(lambda: parse_entry(text, options) and None, capsys)
