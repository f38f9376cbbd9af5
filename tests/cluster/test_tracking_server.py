"""The jobs against MLflow's server with authentication, PostgreSQL behind it and artifacts on object storage."""

import json
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from glefld import storage
from glefld.models import checkpoint
from jobs import train
from tests.cluster.forks import Forks, job
from tests.cluster.mlflow_server import TrackingServer
from tests.cluster.object_store import ObjectStore, upload
from tests.cluster.servers import command_lines, wait_until
from tests.ingested import write_dataset

TINY = (
    "--input-size 32 --batch-size 8 --model.backbone test_resnet --model.width 8 --random-weights --precision fp32 "
    "--log-steps 1 --cpus-per-worker 1"
)


def done(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout + finished.stderr


def the_run(client: MlflowClient, name: str) -> Any:
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-fld"]
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_on_servers_tells_no_secret(
    tracking: TrackingServer, store: ObjectStore, forks: Forks
) -> None:
    """`make demo`'s jobs, smaller, with everything on object storage, and the model used by its alias and its run.

    No secret is in what they print, in the list of processes, in MLflow or in the store. Training is started as a user
    does, imports and all.
    """
    root = storage.join(store.bucket(), "demo")
    source, model = storage.join(root, "raw/fld"), "models:/demo-gle@champion"
    printed = done(forks.job("synthesize", "--layout=fld", "--count=40", f"--output={source}"))
    named = ("--register=demo-gle", "--alias=champion")
    line = (*TINY.split(), "--epochs=2", "--name=demo", "--num-workers=2", *named)
    with command_lines() as lines:
        printed += done(forks.job("ingest", "--dataset=fld", f"--source={source}", f"--root={root}"))
        printed += done(job("train", "--dataset=fld", f"--root={root}", *line))
    photos, output = storage.join(source, "img.zip"), storage.join(root, "predictions")
    inputs = (f"--input={photos}", f"--output={output}", f"--root={root}", "--overlays=2", "--threads=1")
    printed += done(forks.job("infer", f"--checkpoint={model}", *inputs))
    client = MlflowClient(tracking.uri)
    trained = the_run(client, "demo")
    scores = storage.join(root, "evaluation.json")
    by_run = (f"--checkpoint=runs:/{trained.info.run_id}", f"--output={scores}", "--split=val")
    printed += done(forks.job("evaluate", "--dataset=fld", f"--root={root}", *by_run))

    assert trained.info.status == "FINISHED"
    assert trained.info.artifact_uri.startswith("mlflow-artifacts:/")
    metrics = client.get_metric_history(trained.info.run_id, "loss")
    assert {m.step for m in metrics} == set(range(max(m.step for m in metrics) + 1))
    best = checkpoint.resolve(storage.join(root, "runs/demo"))
    # The fetched model is the checkpoint, and evaluated by its run it scores what it scored in training.
    (fetched,) = (entry.url for entry in storage.entries(storage.join(root, "models")) if entry.is_folder)
    for file in ("model.safetensors", "model.json"):
        assert storage.read_bytes(storage.join(fetched, file)) == storage.read_bytes(storage.join(best, file))
    assert storage.read_json(scores)["ne"]["average"] == pytest.approx(
        trained.data.metrics["val_error_best"], abs=1e-6
    )
    manifest = storage.read_json(storage.join(output, "_manifest.json"))
    assert (manifest["photos"], manifest["ok"]) == (40, 40)
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
    "no alias": ("models:/nothing@champion", {}, "there is no models:/nothing@champion"),
    "no run": ("runs:/0123456789abcdef", {}, "there is no runs:/0123456789abcdef"),
    "wrong password": ("models:/demo-gle@champion", {"MLFLOW_TRACKING_PASSWORD": "wrong"}, "cannot be used"),
    "no server": (
        "models:/demo-gle@champion",
        {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"},
        "cannot be used",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_model_that_cannot_be_fetched_is_one_line(
    tracking: TrackingServer, forks: Forks, case: str, tmp_path: Path
) -> None:
    """Exit status 1, one line, no traceback and no password in it."""
    uri, environment, message = MISTAKES[case]
    run = job if case == "wrong password" else forks.job  # one as a user starts it, imports and all
    ended = run("infer", f"--checkpoint={uri}", f"--input={tmp_path}", f"--root={tmp_path}", **environment)
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
@pytest.mark.timeout(600)
def test_training_does_not_wait_for_a_server_that_is_frozen_or_killed(
    tracking: TrackingServer,
    store: ObjectStore,
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frozen, and later killed, the server comes back after more epochs: their checkpoints were written meanwhile.

    In the end it has every step once.
    """
    monkeypatch.setattr("glefld.tracking.log.END_SECONDS", 200.0)  # a busy machine starts the server slowly
    epochs = 80
    write_dataset(tmp_path / "data" / "fld", {"train": 45, "val": 23})
    folder = tmp_path / "runs" / "away"
    failed: list[BaseException] = []

    def take_away(how: Callable[[TrackingServer], Callable[[], None]]) -> None:
        back = how(tracking)
        seen = {checkpoint.pointed(str(folder), "last")}

        def moved() -> bool:
            seen.add(checkpoint.pointed(str(folder), "last"))
            return len(seen) >= 3

        try:
            wait_until(moved, "two more checkpoints without the tracking server", 400)
            wait_until((folder / "unsent.jsonl").exists, "what could not be sent, beside them", 60)
        finally:
            back()

    def interrupt() -> None:
        try:
            wait_until((folder / "last.json").exists, "the first checkpoint", 400)
            take_away(pause)
            wait_until(lambda: not (folder / "unsent.jsonl").exists(), "all is sent", 300)
            take_away(end)
        except BaseException as error:
            failed.append(error)

    interruption = threading.Thread(target=interrupt)
    interruption.start()
    train.run(train.parse(f"--dataset fld --root {tmp_path} --name away --epochs {epochs} {TINY}".split()))
    interruption.join()
    assert not failed, failed
    client = MlflowClient(tracking.uri)
    run = the_run(client, "away")
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(m.step for m in history) == list(range(epochs * 6))
    scored = client.get_metric_history(run.info.run_id, "val_ne")
    assert {m.step for m in scored} == set(range(6, epochs * 6 + 1, 6))
    assert {f.path for f in client.list_artifacts(run.info.run_id, "val")} >= {"val/table.txt"}
    assert not list(folder.glob("unsent*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
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
    upload(local, storage.join(root, "data/fld"))
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
        kinds = {json.loads(text)["kind"] for text in unsent.splitlines()}
        assert kinds == {"metrics", "artifact", "model", "status"}
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
