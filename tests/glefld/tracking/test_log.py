"""What a run logs is stored, also if the server was away meanwhile.

The store is a real SQLite file; a server that is away is a port where nothing listens.
"""

import dataclasses
import json
import logging
import time
from pathlib import Path

import matplotlib.figure
import mlflow
import PIL.Image
import pytest
from mlflow import MlflowClient

from glefld.errors import UserError
from glefld.tracking import DataKey, Registration, RunHandle, RunLog, logged_run, unsent
from glefld.tracking import log as tracking_log
from glefld.tracking.items import Artifact, LoggedModel, LogItem, Metrics, Scored, Status, Tag, Value
from glefld.tracking.outbox import Unsent
from tests import dots


def history(handle: RunHandle, key: str) -> list[tuple[int, float]]:
    metrics = MlflowClient(handle.tracking_uri).get_metric_history(handle.run_id, key)
    return sorted((m.step, m.value) for m in metrics)


def artifact(handle: RunHandle, file: str) -> str:
    path = mlflow.artifacts.download_artifacts(
        run_id=handle.run_id, artifact_path=file, tracking_uri=handle.tracking_uri
    )
    return Path(path).read_text()


def test_every_logged_value_is_stored(handle: RunHandle) -> None:
    """All values of 2,500 steps are stored once flush says so, those of a repeated step too."""
    log = RunLog(handle)
    for step in range(2500):
        log.log({"loss": step / 7, "learning_rate": 1e-4}, step)
    log.log({"loss": -1.0}, 2499)
    assert log.flush(60)
    steps = [*((step, step / 7) for step in range(2499)), (2499, -1.0), (2499, 2499 / 7)]
    assert history(handle, "loss") == steps


def test_artifacts_are_stored_under_their_names(handle: RunHandle) -> None:
    """Text, JSON, picture and chart."""
    with logged_run(handle) as log:
        log.log_text("a table", "evaluation/table.txt")
        log.log_dict({"ne": 0.5}, "results.json")
        log.log_image(PIL.Image.new("RGB", (4, 3), "red"), "pictures/sheet.png")
        log.log_figure(matplotlib.figure.Figure(), "pictures/ne.png")
    assert artifact(handle, "evaluation/table.txt") == "a table"
    assert json.loads(artifact(handle, "results.json")) == {"ne": 0.5}
    client = MlflowClient(handle.tracking_uri)
    assert {a.path for a in client.list_artifacts(handle.run_id, "pictures")} == {
        "pictures/sheet.png",
        "pictures/ne.png",
    }
    assert client.get_run(handle.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_the_run_ends_as_its_block_does(handle: RunHandle, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), logged_run(handle):
        raise error
    assert MlflowClient(handle.tracking_uri).get_run(handle.run_id).info.status == status


def test_a_server_that_is_away_costs_no_time_and_nothing_logged(
    handle: RunHandle,
    away: RunHandle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Metrics, artifact and model are kept in the run's folder, with one warning, and sent by the next process."""
    run = str(tmp_path / "run")
    url = dots.write_checkpoint(f"{run}/checkpoints/00000001")
    waited = 0.0
    with logged_run(away, run) as log:
        for step in range(1500):
            log.log({"loss": float(step)}, step)
            if step % 100 == 0:
                start = time.monotonic()
                assert not log.flush()
                waited += time.monotonic() - start
        assert waited < 10 * tracking_log.FLUSH_SECONDS, "15 epochs, of which only the first waits"
        log.log_text("a table", "val/table.txt")
        log.log_model(url, name="gle", step=1, metrics={"val_ne": 0.5})
    (warning,) = [
        r for r in caplog.records if r.levelno == logging.WARNING and r.name == "glefld.tracking.log"
    ]
    assert "1500 metric values and 3 other items are not in MLflow" in warning.getMessage()
    assert "\n" not in warning.getMessage()
    assert (tmp_path / "run" / "unsent.jsonl").exists()
    assert history(handle, "loss") == []

    monkeypatch.setattr("glefld.tracking.log.END_SECONDS", 60.0)
    with logged_run(handle, run) as log:
        log.log({"loss": -1.0}, 1500)
    assert history(handle, "loss") == [*((step, float(step)) for step in range(1500)), (1500, -1.0)]
    assert artifact(handle, "val/table.txt") == "a table"
    (model,) = MlflowClient(handle.tracking_uri).search_logged_models([handle.experiment_id])
    assert (model.name, model.metrics[0].value) == ("gle", 0.5)
    assert not list((tmp_path / "run").glob("unsent*"))
    # Resuming a finished run logs its model again.
    with logged_run(handle, run) as log:
        log.log_model(url, name="gle", step=1, metrics={"val_ne": 0.5})
    assert len(MlflowClient(handle.tracking_uri).search_logged_models([handle.experiment_id])) == 1


def test_without_a_folder_unsent_values_are_an_error(away: RunHandle) -> None:
    """An evaluation has no run folder to keep them in."""
    with pytest.raises(ConnectionError, match="1 metric values and 1 other items"), logged_run(away) as log:
        log.log({"ne": 0.5}, 0)


def test_a_refused_value_is_kept_and_does_not_block_the_rest(
    handle: RunHandle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The end's warning counts it, its line says why it was refused, and later values are stored."""
    with logged_run(handle, str(tmp_path / "run")) as log:
        log.log({"a key that MLflow refuses: #": 1.0}, 0)
        assert not log.flush(60)
        log.log({"loss": 2.0}, 0)
    assert history(handle, "loss") == [(0, 2.0)]
    assert "1 metric values and 0 other items are not in MLflow" in caplog.text
    (kept,) = (tmp_path / "run" / "unsent.jsonl").read_text().splitlines()
    assert "refuses" in json.loads(kept)["error"]


ITEMS: list[LogItem] = [
    Metrics((Value("loss", 0.5, 1700000000000, 3), Value("val_ne", float("inf"), 1700000000001, 3))),
    Tag("precision", "bf16"),
    Artifact("val/table.txt", "{run}/unsent/val/table.txt"),
    Metrics((Value("test_ne", 0.5, 1700000000000, 0),), Scored("m-1", DataKey("fld", "0123"))),
    LoggedModel(
        "gle",
        "{run}/checkpoints/00000003",
        3,
        {"val_ne": 0.5},
        Registration("fld", "best"),
        DataKey("fld", "0123"),
        "a note",
        "m-1",
    ),
    LoggedModel("gle", "{run}/checkpoints/00000003", 3, {}, None),
    Status("FAILED"),
]


def test_unsent_items_come_back_as_they_were_kept(tmp_path: Path) -> None:
    """In order, each of its own type, and artifacts with their content."""
    (tmp_path / "table.txt").write_text("a table")
    run = str(tmp_path / "run")

    def items(run: str, table: str) -> list[LogItem]:
        return [
            dataclasses.replace(item, file=table)
            if isinstance(item, Artifact)
            else dataclasses.replace(item, checkpoint=item.checkpoint.format(run=run))
            if isinstance(item, LoggedModel)
            else item
            for item in ITEMS
        ]

    assert unsent.read(run) is None
    given = items(run, str(tmp_path / "table.txt"))
    unsent.write(run, [Unsent(item, ValueError("refused")) for item in given])
    table = f"{run}/unsent/val/table.txt"
    assert unsent.read(run) == items(run, table)
    assert Path(table).read_text() == "a table"
    # Also where the run was moved to, and by another name of its folder.
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "linked").symlink_to(tmp_path / "moved")
    linked = str(tmp_path / "linked")
    assert unsent.read(linked) == items(linked, f"{linked}/unsent/val/table.txt")
    unsent.remove(linked)
    assert not list((tmp_path / "moved").iterdir())


WRONG_LINES = {
    "not JSON": '{"kind": "metrics", "val',
    "not an object": "[1]",
    "unknown kind": '{"kind": "picture", "path": "a.png"}',
    "a file in the old format": '{"artifact": "a", "file": "/etc/passwd"}',
    "without a kind": '{"metrics": [["loss", 0.5, 1700000000000, 3]]}',
    "missing field": '{"kind": "model", "name": "gle"}',
    "wrong value": '{"kind": "metrics", "values": [["loss", "0.5", 1700000000000, 3]]}',
    "wrong score": '{"kind": "model", "name": "gle", "checkpoint": "c", "step": 1, "scores": {"ne": "low"}, '
    '"registration": null, "model_id": null}',
    "wrong registration": '{"kind": "model", "name": "gle", "checkpoint": "c", "step": 1, "scores": {}, '
    '"registration": {"name": "a/b", "alias": null}, "model_id": null}',
    "wrong status": '{"kind": "status", "status": "DONE"}',
    "another run's checkpoint": '{"kind": "model", "name": "gle", "checkpoint": "../other/checkpoints/00000003", '
    '"step": 1, "scores": {}, "registration": null, "model_id": null}',
    "a checkpoint elsewhere": '{"kind": "model", "name": "gle", "checkpoint": "/models/00000003", "step": 1, '
    '"scores": {}, "registration": null, "model_id": null}',
    "artifact above the folder": '{"kind": "artifact", "path": "../run.json"}',
    "artifact elsewhere": '{"kind": "artifact", "path": "/etc/passwd"}',
    "nested without an end": "[" * 100_000,
    "a number that is no float": f'{{"kind": "metrics", "values": [["loss", 1{"0" * 400}, 1700000000000, 3]]}}',
    "a score that is no float": '{"kind": "model", "name": "gle", "checkpoint": "c", "step": 1, "scores": {"ne": '
    f'1{"0" * 400}}}, "registration": null, "model_id": null}}',
    "artifact without a name": '{"kind": "artifact", "path": ""}',
}


@pytest.mark.parametrize("line", WRONG_LINES.values(), ids=WRONG_LINES)
def test_an_unusable_unsent_line_is_one_clear_error(line: str, tmp_path: Path) -> None:
    good = '{"kind": "status", "status": "FAILED"}'
    (tmp_path / "unsent.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=r"unsent\.jsonl, line 2, cannot be sent to MLflow") as raised:
        unsent.read(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("link", ["unsent/a.txt", "unsent"])
def test_a_link_out_of_the_run_is_not_followed(link: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a secret")
    run = tmp_path / "run"
    (run / link).parent.mkdir(parents=True)
    (run / link).symlink_to(tmp_path / "a.txt" if link.endswith(".txt") else tmp_path)
    (run / "unsent.jsonl").write_text('{"kind": "artifact", "path": "a.txt"}\n')
    with pytest.raises(UserError, match=r"line 1, cannot be sent to MLflow: the artifact 'a\.txt' is a link"):
        unsent.read(str(run))


def test_an_artifact_is_read_from_the_run_whatever_its_line_says(handle: RunHandle, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("a secret")
    run = tmp_path / "run"
    (run / "unsent").mkdir(parents=True)
    (run / "unsent" / "a.txt").write_text("a table")
    line = {"kind": "artifact", "path": "a.txt", "file": str(tmp_path / "passwd")}
    (run / "unsent.jsonl").write_text(json.dumps(line) + "\n")
    with logged_run(handle, str(run)) as log:
        log.log({"loss": 1.0}, 0)
    assert artifact(handle, "a.txt") == "a table"


@pytest.mark.parametrize("server", ["handle", "away"])
def test_an_unusable_unsent_file_ends_the_job_and_stays(
    server: str, handle: RunHandle, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Before the training, and MLflow is told if it can be. Nothing overwrites or deletes the file."""
    kept = tmp_path / "unsent.jsonl"
    kept.write_text("[1]\n")
    with (
        pytest.raises(UserError, match=r"unsent\.jsonl, line 1"),
        logged_run(request.getfixturevalue(server), str(tmp_path)),
    ):
        pytest.fail("the job started")
    assert kept.read_text() == "[1]\n"
    status = MlflowClient(handle.tracking_uri).get_run(handle.run_id).info.status
    assert status == ("FAILED" if server == "handle" else "RUNNING")
