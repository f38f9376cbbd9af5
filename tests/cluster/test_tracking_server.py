"""The jobs against MLflow's server with authentication, PostgreSQL behind it and artifacts on object storage."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from glefld import storage
from glefld.models import checkpoint
from jobs import train
from tests.cluster.conftest import ObjectStore
from tests.cluster.mlflow_server import TrackingServer
from tests.cluster.servers import command_lines, wait_until
from tests.ingested import write_dataset

TINY = "--input-size 32 --batch-size 8 --model.modules 1 --model.width 8 --precision fp32 --cpus-per-worker 1"


def job(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A job as a user runs it, with all of this process's environment but a Ray that runs in it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_GCS_SERVER_PORT")}
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *arguments],
        env={**kept, "RAY_worker_niceness": "0", **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def done(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout + finished.stderr


def the_run(client: MlflowClient, name: str) -> Any:
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-fld"]
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return run


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo(tracking: TrackingServer, store: ObjectStore, tmp_path: Path) -> None:
    """`make demo`'s jobs, smaller, with everything on object storage, and the model used by its alias and its run.

    No secret is in what they print, in the list of processes, in MLflow or in the store.
    """
    root = storage.join(store.bucket(), "demo")
    source, model = storage.join(root, "raw/fld"), "models:/demo-gle@champion"
    printed = done(job("synthesize", "--layout=fld", "--count=60", f"--output={source}"))
    named = ("--register=demo-gle", "--alias=champion")
    line = (*TINY.split(), "--epochs=2", "--name=demo", "--num-workers=2", *named)
    with command_lines() as lines:
        printed += done(job("ingest", "--dataset=fld", f"--source={source}", f"--root={root}"))
        printed += done(job("train", "--dataset=fld", f"--root={root}", *line))
    photos, output = storage.join(source, "img.zip"), storage.join(root, "predictions")
    inputs = (f"--input={photos}", f"--output={output}", f"--root={root}", "--overlays=2", "--threads=1")
    printed += done(job("infer", f"--checkpoint={model}", *inputs))
    client = MlflowClient(tracking.uri)
    trained = the_run(client, "demo")
    scores = storage.join(root, "evaluation.json")
    by_run = (f"--checkpoint=runs:/{trained.info.run_id}", f"--output={scores}", "--split=val")
    printed += done(job("evaluate", "--dataset=fld", f"--root={root}", *by_run))

    assert trained.info.status == "FINISHED"
    assert trained.info.artifact_uri.startswith("mlflow-artifacts:/")
    metrics = client.get_metric_history(trained.info.run_id, "loss")
    assert {m.step for m in metrics} == set(range(max(m.step for m in metrics) + 1))
    best = checkpoint.resolve(storage.join(root, "runs/demo"))
    # The fetched model is the checkpoint, and evaluated by its run it scores what it scored in training.
    (fetched,) = (
        storage.join(root, "models", name) for name in storage.folders(storage.join(root, "models"))
    )
    for file in ("model.safetensors", "model.json"):
        assert storage.read_bytes(storage.join(fetched, file)) == storage.read_bytes(storage.join(best, file))
    assert storage.read_json(scores)["ne"]["average"] == pytest.approx(
        trained.data.metrics["best_ne"], abs=1e-6
    )
    manifest = storage.read_json(storage.join(output, "manifest.json"))
    assert (manifest["photos"], manifest["ok"]) == (60, 60)
    artifacts = {f.path for f in client.list_artifacts(trained.info.run_id, "val")}
    assert "val/predictions.png" in artifacts

    secrets = [tracking.password.encode(), store.keys.secret.encode()]
    buckets = [url.split("/")[2] for url in (root, tracking.artifacts)]
    held = [
        store.read(f"s3://{bucket}/{name}") for bucket in buckets for name in store.names(f"s3://{bucket}")
    ]
    assert len(held) > 20
    assert any("RayTrainWorker" in line for line in lines)
    told = [
        "\n".join(lines).encode(),
        printed.encode(),
        repr((trained.data.params, trained.data.tags)).encode(),
    ]
    for secret in secrets:
        assert not any(secret in text for text in (*held, *told))


MISTAKES = {
    "no alias": ("models:/nothing@champion", {}, "has no models:/nothing@champion"),
    "no run": ("runs:/0123456789abcdef", {}, "has no runs:/0123456789abcdef"),
    "wrong password": ("models:/demo-gle@champion", {"MLFLOW_TRACKING_PASSWORD": "wrong"}, "cannot be used"),
    "no server": (
        "models:/demo-gle@champion",
        {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"},
        "cannot be used",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_in_one_line(tracking: TrackingServer, case: str, tmp_path: Path) -> None:
    """Exit status 1, one line, no traceback and no password in it."""
    uri, environment, message = MISTAKES[case]
    ended = job("infer", f"--checkpoint={uri}", f"--input={tmp_path}", f"--root={tmp_path}", **environment)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert (ended.returncode, len(lines)) == (1, 1), ended.stderr
    assert "Traceback" not in ended.stderr
    assert message in lines[0]
    assert tracking.password not in ended.stderr


def pause(server: TrackingServer) -> Callable[[], None]:
    """Freeze the server; how to thaw it."""
    server.server.send(signal.SIGSTOP)

    def thaw() -> None:
        server.server.send(signal.SIGCONT)

    return thaw


def end(server: TrackingServer) -> Callable[[], None]:
    """Kill the server; how to start it again, on the same port."""
    server.server.kill()
    return server.start


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", [pause, end])
def test_training_does_not_wait_for_the_server(
    tracking: TrackingServer,
    store: ObjectStore,
    ray_cluster: None,
    tmp_path: Path,
    how: Callable[[TrackingServer], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server goes after the first epoch and comes back after three more: all checkpoints were written meanwhile,
    and in the end it has every step."""
    monkeypatch.setattr("glefld.tracking.log.END_SECONDS", 200.0)  # a busy machine starts the server slowly
    name = f"away-{how.__name__}"
    write_dataset(tmp_path / "data" / "fld", {"train": 45, "val": 23})
    folder = tmp_path / "runs" / name
    seen: list[str | None] = []

    def interrupt() -> None:
        wait_until((folder / "last.json").exists, "the first checkpoint", 400)
        back = how(tracking)
        first = checkpoint.pointed(str(folder), "last")
        assert first is not None

        def moved() -> bool:
            seen.append(checkpoint.pointed(str(folder), "last"))
            return len(set(seen)) >= 3

        try:
            wait_until(moved, "two more checkpoints without the tracking server", 400)
            wait_until((folder / "unsent.jsonl").exists, "what could not be sent, beside them", 60)
        finally:
            back()

    interruption = threading.Thread(target=interrupt)
    interruption.start()
    train.run(train.parse(f"--dataset fld --root {tmp_path} --name {name} --epochs 30 {TINY}".split()))
    interruption.join()
    client = MlflowClient(tracking.uri)
    run = the_run(client, name)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(m.step for m in history) == list(range(30 * 6))
    assert {m.step for m in client.get_metric_history(run.info.run_id, "val_ne")} == set(range(6, 181, 6))
    assert {f.path for f in client.list_artifacts(run.info.run_id, "val")} >= {"val/table.txt"}
    assert not list(folder.glob("unsent*"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_server_that_stays_away_does_not_fail_the_training(
    tracking: TrackingServer,
    store: ObjectStore,
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes after the first epoch for good: the training ends, and --resume sends what the run has kept."""
    monkeypatch.setattr("glefld.tracking.log.END_SECONDS", 5.0)
    root = storage.join(store.bucket(), "root")
    local = write_dataset(tmp_path / "fld", {"train": 45, "val": 23})
    fs, path = storage.filesystem(storage.join(root, "data/fld"))
    fs.put(f"{local}/", f"{path}/", recursive=True)
    folder = storage.join(root, "runs/gone")

    def kill() -> None:
        wait_until(lambda: bool(store.names(f"{folder}/last.json")), "the first checkpoint", 400)
        tracking.server.kill()

    line = f"--dataset fld --root {root} --name gone --epochs 4 --register gone --alias best {TINY}"
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        train.run(train.parse(line.split()))
        killer.join()
        assert checkpoint.pointed(folder, "last") == "checkpoints/00000024"
        unsent = storage.read_bytes(storage.join(folder, "unsent.jsonl"))
        assert tracking.password.encode() not in unsent
        kinds = {kind for text in unsent.splitlines() for kind in json.loads(text)}
        assert {"metrics", "artifact", "model", "status"} <= kinds
        assert len([r for r in caplog.records if r.name == "glefld.tracking.log"]) == 1
    finally:
        killer.join()
        tracking.start()
    client = MlflowClient(tracking.uri)
    assert the_run(client, "gone").info.status == "RUNNING"
    monkeypatch.setattr("glefld.tracking.log.END_SECONDS", 200.0)  # a server that has just started is slow
    train.run(train.parse(f"{line} --resume".split()))
    run = the_run(client, "gone")
    assert run.info.status == "FINISHED"
    assert {m.step for m in client.get_metric_history(run.info.run_id, "loss")} == set(range(24))
    assert client.get_model_version_by_alias("gone", "best").run_id == run.info.run_id
    assert len(client.search_model_versions("name = 'gone'")) == 1
    assert len(client.get_run(run.info.run_id).outputs.model_outputs) == 1
    assert not [name for name in store.names(folder) if "unsent" in name]
