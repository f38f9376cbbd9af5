"""Runs in a real SQLite store, read back through MLflow's own client."""

import dataclasses
import json
import logging
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from glefld.errors import UserError
from glefld.schema import FASHION8, Manifest
from glefld.tracking import RunHandle, RunLog, finish, start_run, tracking_uri
from glefld.tracking import run as tracking_run
from glefld.tracking.notes import NOTE


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    modules: int = 2


@dataclasses.dataclass(frozen=True)
class Options:
    epochs: int = 3
    weights: str | None = None
    note: str = ""
    system: str = "gle"
    config: ModelOptions = ModelOptions()
    recipe: dict[str, int] = dataclasses.field(default_factory=dict)


MANIFEST = Manifest(
    dataset="fld",
    landmark_set=FASHION8,
    rows_in=7,
    splits={"train": 4, "val": 2},
    rejects={"missing": 1},
    shards=(),
    content_hash="0123456789abcdef" * 4,
    options={},
    source={"uri": "https://user:secret@example.com/fld"},
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    """A store for the module, at the place a user gets by default."""
    root = tmp_path_factory.mktemp("a root")
    shutil.copy(empty_store, root / "mlflow.db")
    return tracking_uri(str(root), on_cluster=False)


@pytest.fixture
def start(uri: str) -> Callable[..., RunHandle]:
    def start_here(options: Options = Options(), **kwargs: Any) -> RunHandle:
        return start_run(uri, options=options, manifest=MANIFEST, data="s3://bucket/fld", **kwargs)

    return start_here


def artifact(handle: RunHandle, file: str) -> str:
    path = mlflow.artifacts.download_artifacts(
        run_id=handle.run_id, artifact_path=file, tracking_uri=handle.tracking_uri
    )
    return Path(path).read_text()


def test_a_run_records_its_options_and_data(uri: str, start: Callable[..., RunHandle]) -> None:
    """The handle survives pickling, by which it reaches a worker."""
    handle = pickle.loads(pickle.dumps(start(Options(epochs=5, recipe={"width": 8}), name="first")))
    client = MlflowClient(uri)
    run = client.get_run(handle.run_id)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "first"
    assert client.get_experiment(handle.experiment_id).name == "glefld-fld"
    assert run.data.params == {
        **{"epochs": "5", "weights": "None", "note": "", "width": "8"},
        **{"model": "gle", "model.modules": "2"},
    }
    assert run.data.tags["dataset_hash"] == MANIFEST.content_hash
    assert Manifest.from_json(json.loads(artifact(handle, "manifest.json"))).splits == MANIFEST.splits
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.source_type) == ("fld", "s3")
    assert MANIFEST.content_hash.startswith(used.dataset.digest)
    root = Path(uri.removeprefix("sqlite:///")).parent
    assert (root / "mlartifacts").is_dir(), "artifacts lie beside the database, not in the working directory"


def test_runs_are_found_by_their_options_as_typed(uri: str, start: Callable[..., RunHandle]) -> None:
    """Without quotes around any name."""
    found = start(Options(system="fpn", recipe={"input_size": 96}), experiment="searched")
    start(Options(system="gle", recipe={"input_size": 96}), experiment="searched")
    wanted = "params.model = 'fpn' and params.input_size = '96' and params.model.modules = '2'"
    runs = MlflowClient(uri).search_runs([found.experiment_id], wanted)
    assert [run.info.run_id for run in runs] == [found.run_id]


def test_pages_say_what_was_run_on_which_photos(
    uri: str, start: Callable[..., RunHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command without its secrets, the data, whether it was rendered, and what NE is; a user's words stay."""
    monkeypatch.setattr(
        "sys.argv", ["/bin/glefld", "train", "--data", "s3://key:hunter2@bucket/fld", "--name", "a b"]
    )
    client = MlflowClient(uri)
    real = client.get_run(start(experiment="described").run_id)
    assert "glefld train --data s3://bucket/fld --name 'a b'" in real.data.tags[NOTE]
    assert "none is marked as rendered" in real.data.tags[NOTE]
    assert real.data.tags["rendered"] == "false"
    drawn = dataclasses.replace(MANIFEST, source={"rendered": True})
    handle = start_run(
        uri, options=Options(), manifest=drawn, data="/fld", experiment="described", split="test"
    )
    run = client.get_run(handle.run_id)
    assert "**Rendered photos**" in run.data.tags[NOTE]
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, [tag.value for tag in used.tags]) == ("fld (rendered)", ["test"])
    experiment = client.get_experiment(handle.experiment_id)
    for note in (real.data.tags[NOTE], experiment.tags[NOTE]):
        assert "**NE**, normalised error" in note
    client.set_experiment_tag(handle.experiment_id, NOTE, "ours")
    start(experiment="described")
    assert client.get_experiment(handle.experiment_id).tags[NOTE] == "ours"


def test_an_experiment_that_was_there_before_is_described_unless_someone_has(
    uri: str, start: Callable[..., RunHandle]
) -> None:
    """Also where the words were taken away again, which leaves them empty."""
    client = MlflowClient(uri)
    described = {"bare": None, "theirs": "words of theirs", "emptied": ""}
    for name, words in described.items():
        experiment = client.create_experiment(name, tags={} if words is None else {NOTE: words})
        start(experiment=name)
        found = client.get_experiment(experiment).tags[NOTE]
        assert found == words if words is not None else "**NE**, normalised error" in found


def test_a_run_records_the_commit_or_warns_that_it_is_unknown(
    start: Callable[..., RunHandle],
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The clone's commit; "unknown", and no error, outside a clone and where git fails."""
    root = Path(tracking_run.__file__).parents[2]
    if (root / ".git").exists():
        head = subprocess.check_output(["git", "-C", root, "rev-parse", "HEAD"], text=True).strip()
        assert MlflowClient(uri).get_run(start().run_id).data.tags["git_commit"][:40] == head
    monkeypatch.setattr(tracking_run, "__file__", str(tmp_path / "glefld" / "tracking" / "run.py"))
    for make_git in (lambda: None, (tmp_path / ".git").mkdir):
        caplog.clear()
        make_git()
        assert MlflowClient(uri).get_run(start().run_id).data.tags["git_commit"] == "unknown"
        assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


SECRETS = {
    "s3://AKIAKEY:hunter2@bucket/prefix": "s3://bucket/prefix",
    "https://host/vgg.pth?X-Amz-Signature=hunter2&a=b": "https://host/vgg.pth",
    "https://token-hunter2@host/path": "https://host/path",
    "s3://bucket/a@b.zip": "s3://bucket/a@b.zip",
    "what? a plain text": "what? a plain text",
}


@pytest.mark.parametrize(("given", "kept"), SECRETS.items())
def test_no_credentials_are_kept(start: Callable[..., RunHandle], uri: str, given: str, kept: str) -> None:
    """Passwords and signatures in URLs reach neither params nor artifacts."""
    handle = start(Options(weights=given))
    assert MlflowClient(uri).get_run(handle.run_id).data.params["weights"] == kept
    assert json.loads(artifact(handle, "options.json"))["weights"] == kept
    assert "secret" not in artifact(handle, "manifest.json")


def test_long_and_many_options_are_logged(start: Callable[..., RunHandle], uri: str) -> None:
    """MLflow takes 6,000 characters a parameter and 100 parameters a request; options.json is complete."""
    options = Options(note="x" * 9000, recipe={f"k{i}": i for i in range(250)})
    handle = start(options)
    params = MlflowClient(uri).get_run(handle.run_id).data.params
    assert len(params["note"]) == 6000
    assert params["k249"] == "249"
    assert json.loads(artifact(handle, "options.json")) == dataclasses.asdict(options)


def test_a_resumed_run_is_the_same_run(start: Callable[..., RunHandle], uri: str) -> None:
    """It is open again, and its tags say which options changed."""
    handle = start(Options(epochs=3), experiment="resumed")
    RunLog(handle).flush()
    finish(handle, "FAILED")
    client = MlflowClient(uri)
    assert client.get_run(handle.run_id).info.status == "FAILED"
    again = start(Options(epochs=6), experiment="resumed", resume=handle.run_id)
    assert again == handle
    log = RunLog(again)
    log.log({"loss": 1.0}, 7)
    log.flush(60)
    run = client.get_run(handle.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params["epochs"] == "3"
    assert {k: v for k, v in run.data.tags.items() if k.startswith("resumed.")} == {"resumed.epochs": "6"}
    assert json.loads(artifact(again, "options.json"))["epochs"] == 6
    finish(again, "FINISHED")
    assert len(client.search_runs([handle.experiment_id])) == 1
    assert client.get_run(handle.run_id).info.status == "FINISHED"


def test_a_local_store_is_for_one_machine_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a cluster, and with a root on object storage, the user must name a server."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(str(tmp_path), on_cluster=False) == f"sqlite:///{tmp_path}/mlflow.db"
    for root, on_cluster in ((str(tmp_path), True), ("memory://bucket/root", False)):
        with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
            tracking_uri(root, on_cluster)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri("s3://bucket/root", on_cluster=True) == "http://tracking:5000"


@pytest.mark.parametrize("uri", ["postgresql://mlflow:p@ss@db/mlflow", "mysql+pymysql://me@home:pass@db/a/b"])
def test_a_database_with_an_at_sign_in_its_password_is_not_asked(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy would look for the host ss@db, and the error would show a part of the password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(
        UserError, match=r"MLFLOW_TRACKING_URI=\S+://db/\S+ has an @ .* write it as %40"
    ) as raised:
        tracking_uri("/data", on_cluster=False)
    assert "ss" not in str(raised.value).replace("password", "")
    for fine in (uri.replace("p@ss", "p%40ss").replace("me@home", "me%40home"), "sqlite:////data/a@b@c.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", fine)
        assert tracking_uri("/data", on_cluster=False) == fine


def test_a_users_mistake_is_one_clear_error(
    start: Callable[..., RunHandle], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing run, a deleted experiment, a server that is away."""
    with pytest.raises(UserError, match="no run 0123 to resume"):
        start(resume="0123")
    deleted = start(experiment="deleted")
    MlflowClient(uri).delete_experiment(deleted.experiment_id)
    with pytest.raises(UserError, match="'deleted' is deleted"):
        start(experiment="deleted")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConnectionError, match="cannot be used"):
        start_run("http://127.0.0.1:1", options=Options(), manifest=MANIFEST, data="/data")
