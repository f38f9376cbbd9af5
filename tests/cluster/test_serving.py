"""A registered model behind ``mlflow models serve``: real requests, and the answers of ``glefld predict``."""

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from mlflow import MlflowClient

from glefld.tracking import Registration, RunHandle, logged_run
from jobs import predict
from tests import dots
from tests.cluster.servers import Server, free_port

ROOT = Path(__file__).parents[2]


class Serving:
    """MLflow's server for ``models:/dots@champion``, and the photos to ask about."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [Path(sys.executable).with_name("mlflow"), "models", "serve", "-m", "models:/dots@champion"]
        self.server = Server(
            [*command, "--env-manager", "local", "--port", self.url.rpartition(":")[2]],
            folder / "serve.log",
            {
                "MLFLOW_TRACKING_URI": uri,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "PYTHONPATH": str(ROOT),
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            },
        )
        self.server.start(self.is_up)

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.url}/ping", timeout=5).ok
        except requests.RequestException:
            return False

    def ask(self, *rows: dict[str, Any]) -> requests.Response:
        return requests.post(f"{self.url}/invocations", json={"dataframe_records": rows}, timeout=60)

    def garments(self, *rows: dict[str, Any]) -> list[list[dict[str, Any]]]:
        answer = self.ask(*rows)
        assert answer.status_code == 200, answer.text
        return [row["garments"] for row in answer.json()["predictions"]]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("test", artifact_location=str(folder / "mlartifacts"))
    handle = RunHandle(client.tracking_uri, experiment, client.create_run(experiment).info.run_id)
    url = dots.write_checkpoint(str(folder / "checkpoint"))
    with logged_run(handle) as log:
        named = Registration("dots", "champion")
        log.log_model(url, name="dots", step=1, metrics={}, registration=named)
    made = Serving(folder, client.tracking_uri)
    yield made
    made.server.stop()


def write_photo(path: Path, seed: int = 0) -> Path:
    points = dots.random_points(np.random.default_rng(seed), (0, 0, 240, 160))
    dots.photo(points, 240, 160).save(path)
    return path


def text(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_a_request_is_answered_as_predict_answers(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that predict fetches from the same registry by its alias."""
    photos = [write_photo(tmp_path / f"{i}.jpg", i) for i in range(3)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", serving.server.environment["MLFLOW_TRACKING_URI"])
    output = tmp_path / "found.json"
    named = {"checkpoint": "models:/dots@champion", "root": str(tmp_path / "root"), "output": str(output)}
    predict.run(predict.Options(tuple(map(str, photos)), device="cpu", **named))  # type: ignore[arg-type]
    expected = json.loads(output.read_text())
    for garment in expected:
        del garment["photo"]
        assert len(garment["landmarks"]) == 2
    answers = serving.garments(*({"photo": text(photo)} for photo in photos))
    assert answers == [[garment] for garment in expected]


def test_bad_rows_are_answers_and_a_bad_request_is_refused(serving: Serving, tmp_path: Path) -> None:
    """A file of the server's and its own address are not opened, and boxes may be whole numbers."""
    good = {"photo": text(write_photo(tmp_path / "photo.png"))}
    boxed = {**good, "boxes": [[0, 0, 240, 160], [9, 9, 9, 9]]}
    path, url = {"photo": str(tmp_path / "photo.png")}, {"photo": f"{serving.url}/ping"}
    first, second, third, fourth = serving.garments(path, good, url, boxed)
    for (answer,) in (first, third):
        assert answer["error"].startswith("not_base64: ")
    assert second == fourth[:1]
    assert len(second[0]["landmarks"]) == 2
    assert fourth[1]["error"].startswith("empty_box: ")
    assert serving.ask({"picture": good["photo"]}).status_code == 400
