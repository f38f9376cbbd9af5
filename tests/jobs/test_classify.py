"""Classifiers as a user trains them: an image folder ingested, a ResNet, and SANL's block guided by it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mlflow import MlflowClient

from glefld.data.dataset import open_dataset
from glefld.models import build_model, weights
from glefld.schema import NO_LANDMARKS, Labels
from glefld.training import loop
from glefld.training.start import Job
from jobs import evaluate, infer, ingest, train
from tests.blots import COLOURS, image_folder
from tests.in_process import train_here
from tests.mistakes import one_line
from tests.raw_layouts import write_archive

TINY = (
    "--input-size 32 --batch-size 12 --precision fp32 --cpus-per-worker 1 --learning-rate 1e-3 --backbone-rate 1 "
    "--random-weights"
)
ROWS = {"train": 36, "val": 24, "test": 15}


@pytest.fixture(scope="module")
def root(ray_cluster: None, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the ingested image folder, and the run of a ResNet trained on it, here for the sake of time."""
    root = tmp_path_factory.mktemp("classify")
    shutil.copy(empty_store, root / "mlflow.db")
    photos = image_folder({split: rows // len(COLOURS) for split, rows in ROWS.items()})
    source = write_archive(root / "blots.zip", photos)
    ingest.run(ingest.Options("image-folder", str(source), root=str(root)))
    chosen = options(root, f"{TINY} --epochs 3 --model.backbone resnet18")
    job = Job(
        "image-folder",
        f"{root}/data/image-folder",
        f"{root}/runs/guide",
        "resnet",
        dataclasses.asdict(chosen.config),
        chosen.recipe,
    )
    loop.train(job, torch.device("cpu"), lambda metrics, step: None, lambda epoch: None)
    return root


def options(root: Path, line: str) -> train.Options[Any]:
    return train.parse(f"--dataset image-folder --task classify --root {root} {line}".split())


@pytest.fixture(autouse=True)
def local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_it_is_ingested_whole(root: Path) -> None:
    manifest = open_dataset(str(root / "data" / "image-folder"))
    assert (manifest.splits, manifest.rejects, manifest.rows_in) == (ROWS, {}, sum(ROWS.values()))


def test_a_block_guided_by_a_classifier(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """sanl-resnet trains with the ResNet's attention; accuracy is printed and logged, NE is not.

    test_compare.py trains what it is guided by first.
    """
    monkeypatch.setattr("pipelines.train.run.train", train_here)
    train.run(
        options(
            root,
            f"{TINY} --epochs 2 --model sanl-resnet --model.guide resnet18 --name guided "
            f"--classifier {root / 'runs' / 'guide'}",
        )
    )
    printed = capsys.readouterr().out
    assert "top-k accuracy on image-folder, 24 rows" in printed
    assert "most frequent" in printed
    assert "normalised error" not in printed
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-image-folder"]
    (run,) = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == "guided"]
    top1 = client.get_metric_history(run.info.run_id, "val_accuracy_top1")
    assert {metric.step for metric in top1} == {3, 6}
    assert 1 - run.data.metrics["val_error_best"] == pytest.approx(max(metric.value for metric in top1))
    assert not any(name.startswith("val_ne") for name in run.data.metrics)
    artifacts = {f.path for f in client.list_artifacts(run.info.run_id, "val")}
    assert artifacts == {f"val/{name}" for name in ("table.txt", "predictions.png", "evaluation.json")}


def test_the_documented_classifier_guides_the_documented_block() -> None:
    """As docs/training.md has the commands: the guide's backbone and what the block expects are the same."""
    text = Path("docs/training.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("glefld train --dataset image-folder")]
    guide, block = (train.parse(line.split()[2:]) for line in lines)
    assert (guide.system, block.system) == ("resnet", "sanl-resnet")
    labels = Labels(NO_LANDMARKS, categories=("a", "b"))
    model = build_model("sanl-resnet", block.config, labels)
    model.load_classifier(build_model("resnet", guide.config, labels))
    assert train.make_job(guide, "", "", "").weights == weights.ON_BOARD
    assert train.make_job(block, "/root", "", "", begun=True).weights == weights.HUB


@pytest.mark.usefixtures("evaluate_here")
def test_evaluate_writes_the_accuracy(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the split that training never saw: JSON with accuracy and the most frequent class's, and the table.

    Colours alone tell the classes apart: three epochs from random weights beat the most frequent one.
    """
    out = str(root / "evaluation.json")
    guide = str(root / "runs" / "guide")
    evaluate.run(
        evaluate.Options("image-folder", guide, "test", root=str(root), output=out, cpus_per_worker=1)
    )
    scores = json.loads(Path(out).read_text())
    assert (scores["dataset"], scores["rows"], scores["label"]) == ("image-folder", ROWS["test"], "category")
    assert 0.5 < scores["accuracy"]["top1"] <= scores["accuracy"]["top3"] == scores["accuracy"]["top5"] == 1
    assert scores["ne"]["average"] is None
    assert scores["baseline"]["most_frequent"]["accuracy"]["top1"] == pytest.approx(1 / 3)
    printed = capsys.readouterr().out
    assert "top-k accuracy on image-folder, 15 rows" in printed
    assert f"{'accuracy_top1':24s} {scores['accuracy']['top1']:.4f}" in printed


def test_what_is_not_for_classifiers_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier finds no landmarks, a data set of classes has none, and a guided block wants its guide."""
    guide = str(root / "runs" / "guide")
    photos = infer.Options(guide, str(root / "blots.zip"), output=str(root / "predictions"))
    assert "is a classifier (resnet): give a checkpoint of a landmark model" in one_line(
        lambda: infer.run(photos), capsys
    )
    assert not (root / "predictions").exists()
    gle = train.parse(["--dataset", "image-folder", "--root", str(root)])
    assert "the data set has none: train a classifier" in one_line(lambda: train.run(gle), capsys)
    torch.save(timm.create_model("resnet18").state_dict(), root / "resnet18.pth")
    unguided = options(root, f"--model sanl-resnet --weights {root / 'resnet18.pth'}")
    assert "give --classifier RUN" in one_line(lambda: train.run(unguided), capsys)
    attributes = options(root, "--model.label attributes")
    assert "no attributes to classify" in one_line(lambda: train.run(attributes), capsys)
