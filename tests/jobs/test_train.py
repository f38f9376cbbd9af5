"""The training job as a user runs it: one MLflow run whatever happens to its workers, and mistakes in one line."""

import contextlib
import dataclasses
import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.util.state import list_actors

from glefld import tracking
from glefld.errors import UserError
from glefld.models import checkpoint, weights
from glefld.models.backbones import EMBEDDED
from glefld.models.checkpoint import FILES
from glefld.tracking import RunHandle
from jobs import evaluate, train
from pipelines import evaluate as evaluation
from pipelines.lease import Lease, hold
from pipelines.train.workers import WorkerGroup
from tests.dots import write_checkpoint
from tests.in_process import train_here, without_ray
from tests.ingested import write_dataset
from tests.killing import MOMENTS, SET_BY_RAY, kill_job, start_job
from tests.meanwhile import meanwhile
from tests.mistakes import NO_SERVER, everything, forbid_ray, one_line, write_wrong_files
from tests.ports import is_loopback, listening

TINY = (
    "--input-size 32 --epochs 3 --batch-size 8 --model.backbone test_resnet --model.width 8 --random-weights "
    "--precision fp32 --log-steps 1 --cpus-per-worker 1"
)


@pytest.fixture
def root(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return new_root(tmp_path, empty_store)


def new_root(folder: Path, empty_store: Path) -> Path:
    """A root with an ingested data set and an MLflow store that holds no run."""
    shutil.copy(empty_store, folder / "mlflow.db")
    write_dataset(folder / "data" / "fld", {"train": 45, "val": 23}, hide=10)
    return folder


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for a job's temporary files with a short path, as those of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="glefld-") as folder:
        yield Path(folder)


def options(root: Path, line: str) -> train.Options[Any]:
    return train.parse(f"--dataset fld --root {root} {line}".split())


def kill_a_worker(when: Callable[[], bool], killed: list[int]) -> None:
    """SIGKILL one training worker once ``when`` says so; its pid goes to ``killed``."""
    deadline = time.monotonic() + 240
    while not when():
        assert time.monotonic() < deadline, "no checkpoint to kill a worker after"
        time.sleep(0.05)
    address = ray.get_runtime_context().gcs_address
    alive = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    workers = list_actors(address=address, filters=alive)
    pid = min(worker.pid for worker in workers)
    os.kill(pid, signal.SIGKILL)
    killed.append(pid)


def only_run(root: Path) -> Run:
    """The one MLflow run that was made."""
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (run,) = client.search_runs(
        [e.experiment_id for e in client.search_experiments() if e.name == "glefld-fld"]
    )
    return run


@dataclasses.dataclass(frozen=True)
class Disturbed:
    """A run of two workers of which one was killed, and what listened, by address, while they were there."""

    root: Path
    killed: list[int]
    listened: dict[str, set[str]]
    run: Run
    printed: str

    @property
    def folder(self) -> Path:
        return self.root / "runs" / "killed"


@pytest.fixture(scope="module")
def disturbed(ray_cluster: None, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """One training for all tests of what it leaves behind: its processes take half a minute to start."""
    root = new_root(tmp_path_factory.mktemp("disturbed"), empty_store)
    killed: list[int] = []
    listened: defaultdict[str, set[str]] = defaultdict(set)

    def look() -> None:
        for address, processes in listening().items():
            listened[address] |= processes

    begun = root / "runs" / "killed" / "last.json"
    watcher = threading.Thread(target=kill_a_worker, args=(begun.exists, killed))
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        meanwhile(look, pause=1),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        watcher.start()
        train.run(options(root, f"{TINY} --name killed --num-workers 2"))
    watcher.join()
    return Disturbed(root, killed, listened, only_run(root), printed.getvalue())


def test_a_killed_worker_costs_neither_the_run_nor_a_step(disturbed: Disturbed) -> None:
    """Two workers, one killed after the first epoch's checkpoint: training ends, in one MLflow run with every step."""
    assert len(disturbed.killed) == 1
    assert not Path(f"/proc/{disturbed.killed[0]}").exists()

    client = MlflowClient(f"sqlite:///{disturbed.root}/mlflow.db")
    run = disturbed.run
    assert run.info.status == "FINISHED"
    steps = {metric.step for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert steps == set(range(3 * 6))
    assert {m.step for m in client.get_metric_history(run.info.run_id, "val_ne")} == {6, 12, 18}
    assert run.data.params["batch_size"] == "8"
    assert run.data.tags["dataset_hash"] == "dots-0"
    artifacts = {f.path for f in client.list_artifacts(run.info.run_id, "val")}
    assert artifacts == {
        f"val/{n}"
        for n in ("table.txt", "ne_by_landmark.png", "confidence.png", "predictions.png", "evaluation.json")
    }
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.name == "fpn"


def test_a_user_sees_epochs_and_the_loss_of_a_worker_and_nothing_of_rays_own(disturbed: Disturbed) -> None:
    """In a log: a plain line an epoch, one on the lost worker, one on the restart, and then the scores."""
    lines = disturbed.printed.splitlines()
    assert lines[0] == "precision  fp32: as asked for"
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line[: len("epoch 1/3")] for line in epochs] == [f"epoch {epoch}/3" for epoch in (1, 2, 3)]
    assert all(re.search(r"  NE \d\.\d{4}, best \d\.\d{4}, [\d,]+ images/s", line) for line in epochs)
    (lost,) = (line for line in lines if "starting the workers again from the last checkpoint" in line)
    assert re.match(r"worker [01]: its process died", lost)
    assert any(re.fullmatch(r"goes on in epoch \d of 3 with 2 workers", line) for line in lines)
    assert not [line for line in lines if re.match(r"\(\w.* pid=\d+", line)]  # as in (TrainController pid=1)
    assert "\x1b" not in disturbed.printed
    assert "Traceback" not in disturbed.printed


def test_training_on_this_machine_listens_on_loopback_only(disturbed: Disturbed) -> None:
    """The store that the workers meet at, and gloo, while two of them train."""
    found = disturbed.listened
    assert any("RayTrainWorker" in process for processes in found.values() for process in processes), found
    assert all(is_loopback(address) for address in found), found


def test_several_tasks_score_a_checkpoint_as_its_training_did(disturbed: Disturbed) -> None:
    best = checkpoint.resolve(str(disturbed.folder))
    data = str(disturbed.root / "data" / "fld")
    report = evaluation.evaluate_checkpoint(best, data, "val", evaluation.Tasks(number=2))
    assert report.ne == pytest.approx(disturbed.run.data.metrics["val_error_best"], abs=1e-6)


def test_a_finished_run_has_nothing_left_to_do(disturbed: Disturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is taken; resumed, with its own options only, it stays one run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="give --resume to continue it"):
        train.run(options(disturbed.root, f"{TINY} --name killed"))
    with pytest.raises(UserError, match="recipe"):
        train.run(options(disturbed.root, f"{TINY} --name killed --resume --learning-rate 0.5"))
    monkeypatch.setattr("pipelines.train.run.train", train_here)
    train.run(options(disturbed.root, f"{TINY} --resume --name killed --register dots --alias best"))
    assert only_run(disturbed.root).info.run_id == disturbed.run.info.run_id
    # What is registered is copied for jobs that may not write there.
    (copy,) = (disturbed.root / "models").iterdir()
    assert checkpoint.digest(str(copy)) == checkpoint.digest(checkpoint.resolve(str(disturbed.folder)))
    assert train.resolve_checkpoint("models:/dots@best", "--checkpoint", str(disturbed.root)) == str(copy)


@pytest.mark.usefixtures("ray_cluster")
def test_a_mistake_that_only_the_workers_see_is_one_line(root: Path) -> None:
    """It comes back as a UserError, at once, and the run is marked as failed."""
    folder = root / "runs" / "wrong"
    write_checkpoint(str(folder / "checkpoints" / "00000001"))
    checkpoint.point(str(folder), "last", "checkpoints/00000001")
    with pytest.raises(UserError, match=r"has changed since .* was started"):
        train.run(options(root, f"{TINY} --name wrong"))
    assert only_run(root).info.status == "FAILED"


@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_find_no_room_are_not_waited_for_for_ever(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More workers than the cluster ever has CPUs for: one line after some tries, and the run is marked as failed."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    monkeypatch.setattr("pipelines.train.run.START_TRIES", 2)
    monkeypatch.setattr("jobs.train.choose_workers", lambda _: WorkerGroup(2, 2, 50, False, 0))
    with pytest.raises(UserError, match="no room for 2 workers of 50 CPUs in 2 tries"):
        train.run(options(root, f"{TINY} --name crowded"))
    assert only_run(root).info.status == "FAILED"


@pytest.mark.usefixtures("ray_cluster")
def test_evaluate_writes_its_json_and_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the numbers of the split, beside the baselines; although nobody reads its tables, as after ``| head``."""
    url = write_checkpoint(str(root / "checkpoint"))
    out, page = root / "evaluation.json", root / "evaluation.html"
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    evaluate.run(
        evaluate.Options("fld", url, "val", root=str(root), output=str(out), report=str(page), num_workers=2)
    )
    scores = json.loads(out.read_text())
    assert scores["rows"] == 23
    assert set(scores["ne"]["by_landmark"]) == {"left_dot", "right_dot"}
    assert scores["counted"] == {"left_dot": 23, "right_dot": 23}
    assert 0 < scores["ne"]["average"] < scores["baseline"]["mean_position"]
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (run,) = client.search_runs(
        [e.experiment_id for e in client.search_experiments() if e.name == "glefld-fld"]
    )
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_ne"] == pytest.approx(scores["ne"]["average"])
    logged = client.download_artifacts(run.info.run_id, "val/report.html", str(root))
    assert Path(logged).read_bytes() == page.read_bytes()
    text = page.read_text()
    assert text.count("data:image/webp") == 23, "the worst garments, of which there are no more"
    assert tracking.command() in html.unescape(text)


def command(root: Path, more: str) -> list[str]:
    return f"--dataset fld --root {root} {TINY} --num-workers 1 {more}".split()


def checkpoints_kept(run: Path, steps: int) -> int:
    """How many checkpoints the run has had, if it makes one every so many steps."""
    last = checkpoint.pointed(str(run), "last")
    return int(last.rpartition("/")[2]) // steps if last is not None else 0


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_training_goes_on_and_leaves_nothing(
    moment: int, root: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever all of its processes were killed, --resume ends it in the same MLflow run, and nothing is left over.

    The first moment is the one after the last checkpoint, while it is scored. At the second, Ray's workers are killed
    and others go on, among Ray Train's own records of the killed run, in a job as a user starts it. At the others the
    job's own process trains.
    """
    before = None if moment == 1 else without_ray
    line = "--name killed --checkpoint-steps 2"
    folder = root / "runs" / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        patch.setenv("RAY_TMPDIR", "/tmp")
        kill_job("train", command(root, line), moment, 9, lambda: checkpoints_kept(folder, 2), root, before)
    # As killed workers leave them: partial files, and a checkpoint that had lost its pointer.
    parts = [folder / f"_part-{n:032x}" for n in range(2)] + [folder / "lease" / f"_part-{2:032x}"]
    for part in parts:
        part.write_bytes(b"x")
    last = folder / str(checkpoint.pointed(str(folder), "last"))
    shutil.copytree(last, last.with_name("00000001"))

    resumed = [*command(root, line), "--resume"]
    if moment == 1:
        check_all_that_is_printed(resumed, {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"})
    else:
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        monkeypatch.setattr("pipelines.train.run.train", train_here)
        monkeypatch.setattr(train, "start_ray", lambda **_: None)
        train.run(train.parse(resumed))
    assert only_run(root).info.status == "FINISHED"
    pointed = {
        f"{checkpoint.pointed(str(folder), name)}/{file}" for name in ("best", "last") for file in FILES
    }
    left = {name for name in everything(folder) if (folder / name).is_file() and not name.startswith("ray/")}
    assert left == {"run.json", "best.json", "last.json", "lease/00000002.json", *pointed}
    # Python's own empty folders for multiprocessing, of Ray's dashboard, and PyTorch's cache are not ours.
    ours = [name for name in everything(temporary) if not name.startswith(("pymp-", "torchinductor"))]
    assert not ours


def check_all_that_is_printed(resumed: list[str], environment: dict[str, str]) -> None:
    """By a training as a user starts it, from first line to scores: nothing of Ray's and nothing of MLflow's."""
    ours = {name: value for name, value in os.environ.items() if name not in SET_BY_RAY}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "train", *resumed],
        env={**ours, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    precision, goes_on, *lines = done.stdout.splitlines()
    assert precision.startswith("precision  fp32: ")
    begun = re.fullmatch(r"goes on in epoch (\d) of 3 with 1 worker", goes_on)
    assert begun is not None
    epochs = [f"epoch {number}/3  NE " for number in range(int(begun[1]), 4)]
    assert [line[: len(epochs[0])] for line in lines[: len(epochs)]] == epochs
    assert lines[len(epochs)].split()[:2] == ["normalised", "error"]
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_of_two_trainings_of_one_name_one_trains(root: Path) -> None:
    """The other ends in one line, and there is one folder and one MLflow run. The name is free again when it ends."""
    printed = [root / "first.txt", root / "second.txt"]
    line = command(root, "--name both --epochs 1")
    both = [start_job("train", line, file, {}, without_ray) for file in printed]
    for process in both:
        process.join(200)
    assert sorted(process.exitcode for process in both if process.exitcode is not None) == [0, 1]
    winner = both[0] if both[0].exitcode == 0 else both[1]
    refused = printed[both.index(winner) - 1].read_text()
    assert refused.count("\n") == 1
    assert f"runs/both is being trained by process {winner.pid} on " in refused
    assert only_run(root).info.status == "FINISHED"
    assert json.loads((root / "runs" / "both" / "lease" / "00000001.json").read_text())["ended"]


def test_a_model_that_mlflow_does_not_have_yet_does_not_fail_its_training(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while the server is away nor while the model waits in the run's folder. One line a time says so."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"sqlite:///{root}/mlflow.db"
    client = MlflowClient(uri)
    made = client.create_run(client.create_experiment("test"))
    for place, why in (("http://127.0.0.1:1", "cannot be used"), (uri, "the run has no such model")):
        caplog.clear()
        train.copy_model(RunHandle(place, made.info.experiment_id, made.info.run_id), str(root))
        (line,) = (record.getMessage() for record in caplog.records if record.name == "jobs.train")
        assert "the registered model was not copied" in line
        assert why in line
    assert not (root / "models").exists()


def test_presets_are_defaults_that_options_override() -> None:
    """--preset chooses the defaults; FLD gets the paper's three modules; what is given wins."""
    paper = train.parse(["--dataset", "fld", "--model", "gle", "--preset", "paper", "--epochs", "7"])
    assert (paper.config.backbone, paper.config.modules, paper.recipe.epochs) == ("vgg16", 3, 7)
    assert (paper.recipe.input_size, paper.recipe.batch_size, paper.recipe.learning_rate) == (224, 50, 1e-4)
    best = train.parse(["--dataset", "deepfashion", "--model", "gle", "--model.modules", "0"])
    assert (best.preset, best.config.backbone, best.config.modules) == ("best", EMBEDDED, 0)
    assert train.parse(["--dataset", "deepfashion", "--model", "gle"]).config.modules == 2
    default = train.parse(["--dataset", "deepfashion"])
    assert (default.system, default.preset, default.config.backbone) == ("fpn", "best", EMBEDDED)


STARTS = {
    "": (weights.ON_BOARD, "ImageNet-1k, package"),
    "--random-weights": (None, "random"),
    "--pretrained": (weights.HUB, "timm's hub"),
    "--model local": (None, "random"),
    "--model gle --preset paper --weights /there/vgg16.pth": ("/there/vgg16.pth", "/there/vgg16.pth"),
    "--model gle --preset paper --random-weights": (None, "random"),
    "--model gle --preset paper --pretrained": (weights.HUB, "timm's hub"),
}


@pytest.mark.parametrize("line", STARTS)
def test_what_a_training_starts_with(line: str, root: Path) -> None:
    """ImageNet's weights, from on board if they are there; and the card will say where they are from."""
    source, words = STARTS[line]
    chosen = options(root, line)
    job = train.make_job(chosen, str(root), str(root / "data" / "fld"), str(root / "runs" / "x"))
    assert job.weights == source
    assert weights.describe(job.weights).startswith(words)


def test_resume_finds_the_newest_run_of_the_model_itself(tmp_path: Path) -> None:
    """sanl's runs are not sanl-resnet's, whose names begin alike and sort behind them."""
    runs = ("fld-sanl-20260101-000000", "fld-sanl-20260102-000000", "fld-sanl-resnet-20260101-000000")
    assert resumed_of(tmp_path, dict.fromkeys(runs)) == "fld-sanl-20260102-000000"


def test_resume_goes_by_when_a_run_was_begun_not_by_the_clock_in_its_name(tmp_path: Path) -> None:
    """A run begun after summer time ended, or on a machine further west, may have the smaller name."""
    runs = {
        "fld-sanl-20261025-025959": "2026-10-25T00:59:59+00:00",
        "fld-sanl-20261025-020100": "2026-10-25T01:01:00+00:00",
        "fld-sanl-20261024-000000": None,  # of before this was recorded
    }
    assert resumed_of(tmp_path, runs) == "fld-sanl-20261025-020100"


def resumed_of(root: Path, runs: dict[str, str | None]) -> str:
    """The run that --resume without a name chooses of these, given by name and when each was begun."""
    for name, begun in runs.items():
        line = f"--dataset fld --model sanl --root {root} --name {name}"
        record = {"options": train._comparable(train.parse(line.split())), "run_id": name}
        (root / "runs" / name).mkdir(parents=True)
        (root / "runs" / name / "run.json").write_text(
            json.dumps(record | ({"begun": begun} if begun else {}))
        )
    resumed = train.parse(f"--dataset fld --model sanl --root {root} --resume".split())
    folder, started = train.find_run(resumed, str(root))
    assert started is not None
    assert folder == f"{root}/runs/{started['run_id']}"
    return started["run_id"]


def test_the_documentation_names_every_option_that_may_differ_on_resume() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    listed = re.search(
        r"Repeat the options that the run\s+was started with\. Only (.*?) may differ", text, re.DOTALL
    )
    assert listed is not None
    named = {name.replace("-", "_") for name in re.findall("`--([a-z-]+)`", listed[1])}
    assert named == train.FREE_ON_RESUME - {"resume"}


def test_a_run_with_checkpoints_does_not_ask_for_what_it_started_with(root: Path) -> None:
    """What it started with may be gone since."""
    chosen = options(root, "--model sanl --classifier /gone")
    job = train.make_job(chosen, str(root), "", "", begun=True)
    assert job.classifier == "/gone"
    job = train.make_job(options(root, "--start-from /gone"), str(root), "", "", begun=True)
    assert job.start_from == "/gone"
    with pytest.raises(UserError, match="/gone is neither"):
        train.make_job(chosen, str(root), "", "")


WRONG = {
    "no weights": ("--model gle --preset paper", "no weights of vgg16 on board: give --weights FILE_OR_URL"),
    "two sources of weights": ("--pretrained --random-weights", "exclude one another"),
    "weights from a file and from nowhere": (
        "--weights {root}/notes.txt --random-weights",
        "exclude one another",
    ),
    "an unknown backbone": (
        "--model.backbone resnet_18",
        "timm has no network of this name. Choose one such as",
    ),
    "a backbone without the strides": (
        "--model.backbone test_vit --random-weights",
        "test_vit has features at the strides 16",
    ),
    "no data": ("--data {root}/nowhere", "not a finished data set"),
    "other data": (
        "--dataset deepfashion --data {root}/data/fld",
        "holds the data set 'fld', not 'deepfashion'",
    ),
    "nothing to resume": ("--resume", "there is no run fld-fpn-"),
    "no such run": ("--resume --name never", "is not a run"),
    "no epochs": ("--epochs 0", "epochs must be at least 1, not 0"),
    "a size that the network does not take": ("--input-size 102", "input-size must be a multiple of 8"),
    "no GPU": ("--device gpu", "--device gpu: this machine has no GPU"),
    "no workers": ("--num-workers 0", "--num-workers 0: MIN must be at least 1"),
    "fewer workers at most than at least": ("--num-workers 4-1", "--num-workers 4-1: MIN must be"),
    "more workers than there are CPUs": (
        "--batch-size 45 --num-workers 40 --cpus-per-worker 1",
        "40 workers of 1 CPUs need more",
    ),
    "fewer rows in a batch than workers": (
        "--batch-size 1 --num-workers 2",
        "--num-workers 2 needs batches of at least 2 rows, but --batch-size 1 makes batches of 1",
    ),
    "fewer rows in a batch than elastic training may have workers": (
        "--batch-size 4 --num-workers 1-5",
        "--num-workers 5 needs batches of at least 5 rows, but --batch-size 4",
    ),
    "fewer rows than workers": ("--rows 1 --num-workers 2", "makes batches of 1 of the 1 rows to train on"),
    "no rows": ("--rows 0", "--rows must be at least 1, not 0"),
    "no CPUs": ("--cpus-per-worker 0", "--cpus-per-worker must be at least 1, not 0"),
    "weights that are not there": (
        "--weights /nowhere/vgg16.pth",
        "--weights /nowhere/vgg16.pth: there is no such",
    ),
    "weights without a name": ("--weights=", "--weights is empty: name a file"),
    "a name outside of the runs": ("--name ../../x", "--name ../../x: give a name without slashes"),
    "failures below zero": ("--max-failures -1", "--max-failures must be at least 0, not -1"),
    "a model's name with a slash": ("--register a/b", "--register: the model cannot be registered"),
    "weights that are a folder": ("--weights /", "--weights / is a folder"),
    "weights that are a text": ("--weights {root}/notes.txt", "notes.txt is no checkpoint of a backbone"),
    "weights that nobody serves": (
        "--weights http://127.0.0.1:1/vgg16.pth",
        "--weights: http://127.0.0.1:1/vgg16.pth cannot be reached",
    ),
    "a classifier that is none": ("--model sanl --classifier /nowhere", "--classifier: /nowhere is neither"),
    "a start that is none": ("--start-from /nowhere", "--start-from: /nowhere is neither"),
    "a start of another system": ("--start-from {root}/checkpoint", "which does not fit this fpn"),
    "a start and weights": ("--start-from {root}/checkpoint --pretrained", "leave --pretrained out"),
    "a file for no backbone": (
        "--model local --weights /net.pth",
        "--weights: local has no backbone that takes",
    ),
    "weights of the hub for no backbone": ("--model local --pretrained", "takes weights: leave it out"),
    "a start without a name": ("--start-from=", "--start-from is empty: name a file"),
    "a classifier of landmarks": (
        "--model sanl --classifier {root}/checkpoint",
        "--classifier must name a checkpoint of --task classify",
    ),
    "no classifier": ("--model sanl", "give --classifier RUN"),
    "another task": ("--model resnet", "--task landmarks does not fit --model resnet"),
    "an output that is a file": ("--output {root}/notes.txt", "--output {root}/notes.txt is a file"),
    "an output where nothing can be made": ("--output /proc/run", "--output /proc/run cannot be written"),
    "a run of a comparison": ("--resume --name compared", "continue it with glefld compare"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_before_ray_starts(
    case: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written: no run that would have to be named again, no run in MLflow."""
    forbid_ray(monkeypatch, "train")
    write_wrong_files(root)
    write_checkpoint(str(root / "checkpoint"))
    (root / "runs" / "compared").mkdir(parents=True)
    (root / "runs" / "compared" / "run.json").write_text('{"job": {}, "run_id": "0"}')
    before = everything(root)
    line, message = (text.format(root=root) for text in WRONG[case])
    assert message in one_line(lambda: train.run(options(root, line)), capsys)
    assert everything(root) == before
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    assert [e.name for e in client.search_experiments()] == ["Default"]


def test_a_tracking_server_that_is_down_is_one_line_before_ray_starts(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forbid_ray(monkeypatch, "train")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_SERVER)
    before = everything(root)
    told = one_line(lambda: train.run(options(root, f"{TINY} --name down")), capsys)
    assert "MLflow at http://127.0.0.1:1 cannot be used: nothing answers there" in told
    assert everything(root) == before


@pytest.mark.parametrize("resume", ["", "--resume"])
def test_a_name_that_another_training_has_is_refused(
    resume: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it runs and how to stop it, before Ray starts; it keeps its folder, and MLflow has no second run."""
    forbid_ray(monkeypatch, "train")
    chosen = options(root, f"{TINY} --name both {resume}")
    folder = root / "runs" / "both"
    with hold(str(folder)):
        if resume:
            (folder / "run.json").write_text(
                json.dumps({"options": train._comparable(chosen), "run_id": "0"})
            )
        told = one_line(lambda: train.run(chosen), capsys)
        assert f"{folder} is being trained by process {os.getpid()} on " in told
        assert f"stop it with `kill -INT {os.getpid()}` on " in told
        assert (folder / "lease" / "00000001.json").exists()
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    assert [e.name for e in client.search_experiments()] == ["Default"]


def test_a_run_that_began_while_its_claim_was_waited_for_is_not_begun_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record is looked for once more when the claim is had."""
    forbid_ray(monkeypatch, "train")
    folder = root / "runs" / "both"

    @contextlib.contextmanager
    def hold_later(claimed: str) -> Iterator[Lease]:
        """The other one begins and ends in between."""
        with hold(claimed) as lease:
            (folder / "run.json").write_text("{}")
            yield lease

    monkeypatch.setattr("pipelines.lease.hold", hold_later)
    told = one_line(lambda: train.run(options(root, f"{TINY} --name both")), capsys)
    assert "already holds a run: give --resume" in told


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model gle --model.modules=-1", "must be between 0 and 100"),
        ("--augmentation.mirror 2", "mirror must be between 0 and 1"),
    ],
)
def test_a_wrong_nested_option_is_told_as_the_parser_tells_it(
    line: str, message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the parser's own box, with exit status 2, like an option that there is not."""
    with pytest.raises(SystemExit) as end:
        options(root, line)
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
