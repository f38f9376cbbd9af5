"""Classifiers as a user trains them: an image folder ingested, a ResNet, and SANL's block guided by it."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from glefld.dataset import open_dataset
from jobs import evaluate, infer, ingest, train
from tests.blots import COLOURS, image_folder
from tests.mistakes import one_line
from tests.raw_layouts import write_archive

TINY = "--input-size 32 --batch-size 12 --precision fp32 --cpus-per-worker 1 --learning-rate 1e-3"
ROWS = {"train": 36, "val": 24, "test": 15}


@pytest.fixture(scope="module")
def root(ray_cluster: None, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the ingested image folder, and the run of a ResNet trained on it."""
    root = tmp_path_factory.mktemp("classify")
    shutil.copy(empty_store, root / "mlflow.db")
    photos = image_folder({split: rows // len(COLOURS) for split, rows in ROWS.items()})
    source = write_archive(root / "blots.zip", photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ingest.run(ingest.Options("image-folder", str(source), root=str(root)))
        train.run(options(root, f"{TINY} --epochs 3 --name guide"))
    return root


def options(root: Path, line: str) -> train.Options:
    return train.parse(f"--dataset image-folder --task classify --root {root} {line}".split())


@pytest.fixture(autouse=True)
def local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_it_is_ingested_whole(root: Path) -> None:
    manifest = open_dataset(str(root / "data" / "image-folder"))
    assert (manifest.splits, manifest.rejects, manifest.rows_in) == (ROWS, {}, sum(ROWS.values()))


def test_a_block_guided_by_a_classifier(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """sanl-resnet trains with the ResNet's attention; accuracy is printed and logged, NE is not."""
    guide = root / "runs" / "guide"
    line = f"{TINY} --epochs 1 --model sanl-resnet --classifier {guide} --name sanl"
    train.run(options(root, line))
    printed = capsys.readouterr().out
    assert "top-k accuracy on image-folder, 24 rows" in printed
    assert "most frequent" in printed
    assert "normalised error" not in printed
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-image-folder"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    for name, epochs in (("guide", 3), ("sanl", 1)):
        run_id = runs[name].info.run_id
        top1 = client.get_metric_history(run_id, "val_accuracy_top1")
        assert [metric.step for metric in top1] == [3 * (epoch + 1) for epoch in range(epochs)]
        assert {f.path for f in client.list_artifacts(run_id, "val")} == {
            f"val/{name}" for name in ("table.txt", "predictions.png", "evaluation.json")
        }
        assert not any(metric.startswith("val_ne") for metric in runs[name].data.metrics)
        assert runs[name].data.metrics["best_accuracy_top3"] <= 1
    # Colours alone tell the classes apart: three epochs from random weights beat the most frequent one.
    assert runs["guide"].data.metrics["best_accuracy_top1"] > 0.5


def test_evaluate_writes_the_accuracy(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the split that training never saw: JSON with accuracy and the most frequent class's, and the table."""
    out = root / "evaluation.json"
    evaluate.run(
        evaluate.Options(
            "image-folder",
            str(root / "runs" / "guide"),
            "test",
            root=str(root),
            output=str(out),
            num_workers=2,
        )
    )
    scores = json.loads(out.read_text())
    assert (scores["dataset"], scores["rows"], scores["label"]) == ("image-folder", ROWS["test"], "category")
    assert 0.5 < scores["accuracy"]["top1"] <= scores["accuracy"]["top3"] == scores["accuracy"]["top5"]
    assert scores["ne"]["average"] is None
    assert scores["baseline"]["most_frequent"]["accuracy"]["top1"] == pytest.approx(1 / 3)
    printed = capsys.readouterr().out
    assert "top-k accuracy on image-folder, 15 rows" in printed
    assert f"{'accuracy_top1':24s} {scores['accuracy']['top1']:.4f}" in printed


def test_mistakes_end_in_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier finds no landmarks, a data set of classes has none, and a guided block wants its guide."""
    guide = str(root / "runs" / "guide")
    photos = infer.Options(guide, str(root / "blots.zip"), output=str(root / "predictions"))
    assert "is a classifier (resnet): give a checkpoint that finds landmarks" in one_line(
        lambda: infer.run(photos), capsys
    )
    assert not (root / "predictions").exists()
    gle = train.parse(["--dataset", "image-folder", "--root", str(root)])
    assert "the data set has none: train a classifier" in one_line(lambda: train.run(gle), capsys)
    unguided = options(root, "--model sanl-resnet")
    assert "give --classifier RUN" in one_line(lambda: train.run(unguided), capsys)
    attributes = options(root, "--model.label attributes")
    assert "no attributes to classify" in one_line(lambda: train.run(attributes), capsys)
