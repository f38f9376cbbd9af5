"""What a training and an evaluation leave in MLflow: parameters as typed, and scores and data on the model's page."""

import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs import evaluate, train
from tests.in_process import task_here, train_here
from tests.ingested import write_dataset

LINE = (
    "--dataset fld --model local --input-size 32 --epochs 2 --batch-size 8 --model.width 8 --precision fp32 "
    "--cpus-per-worker 1 --name small --register small --alias best"
)


@pytest.mark.usefixtures("ray_cluster")
def test_a_models_page_has_what_trained_and_scored_it(
    tmp_path: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The evaluation names the model that the training has logged, though it was given the run's folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("pipelines.train.run.train", train_here)
    monkeypatch.setattr("pipelines.evaluate._task", lambda function, _: task_here(function))
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    write_dataset(tmp_path / "data" / "fld", {"train": 24, "val": 16, "test": 16})
    train.run(train.parse(f"{LINE} --root {tmp_path}".split()))
    scored = {"dataset": "fld", "checkpoint": str(tmp_path / "runs" / "small"), "split": "test"}
    evaluate.run(evaluate.Options(root=str(tmp_path), cpus_per_worker=1, **scored))  # type: ignore[arg-type]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("glefld-fld")
    assert experiment is not None
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    # A search leaves out the models of a run.
    trained, tested = (client.get_run(runs[name]) for name in ("small", "evaluate-test"))
    last = capsys.readouterr().out.splitlines()[-1].strip()
    assert last.endswith(
        f"/#/experiments/{experiment.experiment_id}/runs/{tested.info.run_id}?workflowType=machine_learning"
    )

    (output,) = trained.outputs.model_outputs
    assert [used.model_id for used in tested.inputs.model_inputs] == [output.model_id]
    contexts = [
        [tag.value for used in run.inputs.dataset_inputs for tag in used.tags] for run in (trained, tested)
    ]
    assert contexts == [["training"], ["test"]]
    model = client.get_logged_model(output.model_id)
    scores = {(m.key, m.run_id): (m.value, m.dataset_name) for m in model.metrics or ()}
    assert scores["val_ne", trained.info.run_id] == (trained.data.metrics["val_error_best"], "fld")
    assert scores["test_ne", tested.info.run_id] == (tested.data.metrics["test_ne"], "fld")
    assert not [name for name in trained.data.metrics if name.startswith("best_")]
    assert f"NE {trained.data.metrics['val_error_best']:.4f}" in model.tags["mlflow.note.content"]

    with pytest.raises(SystemExit):
        train.parse(["--help", *LINE.split()])
    typed = set(re.findall(r"--(?:no-)?([a-z][a-z.-]*)", capsys.readouterr().out))
    assert {name.replace("_", "-") for name in trained.data.params} <= typed
