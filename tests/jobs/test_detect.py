"""Detection as a user does it: a detector trained on whole photos, photos without boxes, and scores in its boxes."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from glefld import storage
from glefld.detect import DETECTOR
from jobs import evaluate, infer, predict, train
from tests import boxed, dots
from tests.in_process import shards_here, train_here
from tests.mistakes import forbid_ray, one_line

LINE = (
    "--dataset fld --task detect --model.backbone test_resnet --model.width 32 --model.layers 1 --random-weights "
    "--input-size 64 --batch-size 8 --precision fp32 --cpus-per-worker 1 --epochs 1 --learning-rate 4e-3"
)


@pytest.fixture(autouse=True)
def local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(DETECTOR, raising=False)


@pytest.fixture(scope="module")
def root(detector: tuple[str, str], empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with whole photos, the run of a detector that was trained on them, and a landmark model."""
    root = tmp_path_factory.mktemp("detect")
    shutil.copy(empty_store, root / "mlflow.db")
    shutil.copytree(detector[0], root / "data" / "fld")
    shutil.copytree(detector[1], root / "runs" / "finder")
    record = {"options": {"task": "detect"}, "begun": "2026-01-02"}
    storage.write_json(str(root / "runs" / "finder" / "run.json"), record)
    dots.write_checkpoint(str(root / "landmarks"))
    boxed.write_dataset(root / "crops", {"train": 2, "val": 2}, margin=0.25)
    rng = np.random.default_rng(7)
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for i in range(6):
            photo, _ = boxed.make_photo(rng, i % 3)
            archive.writestr(f"{i}.jpg", dots.encoded(photo, "JPEG", quality=95))
    return root


def options(root: Path, more: str = "") -> train.Options[Any]:
    return train.parse(f"{LINE} --root {root} {more}".split())


@pytest.mark.usefixtures("ray_cluster")
def test_a_detector_is_trained_and_scored(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table and MLflow have AP and the rest, and examples are drawn; no landmark's score is among them."""
    monkeypatch.setattr("pipelines.train.run.train", train_here)
    train.run(options(root, "--name trained"))
    printed = capsys.readouterr().out
    assert "boxes on fld" in printed
    assert "normalised error" not in printed
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-fld"]
    (run,) = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == "trained"]
    assert run.data.metrics["val_error"] == pytest.approx(1 - run.data.metrics["val_box_ap"])
    assert run.data.metrics["val_box_ap50"] >= run.data.metrics["val_box_ap"]
    assert {f.path for f in client.list_artifacts(run.info.run_id, "val")} == {
        f"val/{name}" for name in ("table.txt", "predictions.png", "evaluation.json")
    }
    shutil.rmtree(root / "runs" / "trained")


@pytest.mark.usefixtures("evaluate_here")
def test_evaluate_scores_a_detector(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AP, AP50, AP75 and AR in the table and the JSON; on two tasks as on one, with the same page."""
    scores, pages = [], []
    for workers in (1, 2):
        output, page = str(root / f"boxes-{workers}.json"), str(root / f"boxes-{workers}.html")
        evaluate.run(
            evaluate.Options(
                "fld",
                str(root / "runs" / "finder"),
                "val",
                root=str(root),
                output=output,
                report=page,
                num_workers=workers,
                cpus_per_worker=1,
            )
        )
        scores.append(json.loads(Path(output).read_text())["boxes"])
        text = Path(page).read_text()
        assert text.count("data:image/webp") > 5
        pages.append([line for line in text.splitlines() if "<dt>command</dt>" not in line])
    assert pages[0] == pages[1]
    assert scores[0] == scores[1]
    assert scores[0]["ap50"] > 0.8
    numbers = {"ap", "ap50", "ap75", "ar", "f1", "precision", "recall", "least_score", "garments"}
    assert numbers | {"by_overlap", "curve"} == set(scores[0])
    printed = capsys.readouterr().out
    for name in ("AP", "AP50", "AP75", "AR"):
        assert name in printed


@pytest.mark.usefixtures("evaluate_here")
def test_landmarks_are_scored_in_detected_boxes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside those in true boxes, in the same unit, of the garments that were found."""
    output = str(root / "end-to-end.json")
    chosen = evaluate.Options(
        "fld",
        str(root / "landmarks"),
        "val",
        root=str(root),
        output=output,
        boxes="detect",
        num_workers=2,
        cpus_per_worker=1,
    )
    evaluate.run(chosen)
    scores = json.loads(Path(output).read_text())
    detected = scores["detected"]
    assert detected["garments"] == scores["rows"]
    assert detected["found"] == round(detected["recall"] * detected["garments"]) > 0.8 * scores["rows"]
    assert sum(detected["counted"].values()) == 2 * detected["found"]
    assert scores["ne"]["average"] < 0.05
    assert scores["ne"]["average"] <= detected["ne"]["average"] < 0.15
    printed = capsys.readouterr().out
    assert "detector" in printed
    assert f"{detected['found']} of {detected['garments']} garments" in printed
    assert "finder (the newest one)" in printed


def test_photos_without_boxes(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest detector is taken and named; the summary counts garments, and photos without any as errors."""
    monkeypatch.setattr("pipelines.infer.run.run_tasks", shards_here)
    monkeypatch.setattr("jobs.infer.start_ray", lambda **_: None)
    older = root / "runs" / "older"
    shutil.copytree(root / "runs" / "finder", older)
    storage.write_json(str(older / "run.json"), {"options": {"task": "detect"}, "begun": "2026-01-01"})
    chosen = infer.Options(
        str(root / "landmarks"), str(root / "photos.zip"), boxes="detect", root=str(root), threads=1
    )
    infer.run(chosen)
    manifest = storage.read_json(str(root / "predictions" / "photos" / "_manifest.json"))
    printed = capsys.readouterr().out
    assert f"detector   {root}/runs/finder (the newest one)" in printed
    assert manifest["errors"].keys() == {"no_garment"}
    assert manifest["photos"] == 6
    assert manifest["ok"] >= 5
    monkeypatch.setenv(DETECTOR, str(older))
    infer.run(dataclasses.replace(chosen, output=str(root / "again")))
    assert f"detector   {older} ($GLEFLD_DETECTOR)" in capsys.readouterr().out
    shutil.rmtree(older)


def test_a_few_photos(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """predict has an object for each garment that was found, with the box's score, and an error for other photos."""
    with zipfile.ZipFile(root / "photos.zip") as archive:
        archive.extractall(root / "folder")
    output = str(root / "found.json")
    predict.run(
        predict.Options(
            (str(root / "folder"),), str(root / "landmarks"), boxes="detect", output=output, root=str(root)
        )
    )
    told = capsys.readouterr().err
    assert f"detector {root}/runs/finder" in told
    found = json.loads(Path(output).read_text())
    garments = [row for row in found if "box" in row]
    assert len(garments) >= 5
    assert all(0 < row["box_score"] <= 1 for row in garments)
    errors = [row["error"].partition(":")[0] for row in found if "error" in row]
    assert set(errors) == {"no_garment"}
    assert len({row["photo"] for row in found}) == 6


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such detector": ({"detector": "/nope"}, "--detector: /nope is neither a checkpoint nor a run"),
    "a landmark model": ({"detector": "{root}/landmarks"}, "{root}/landmarks is no detector (local)"),
    "no detector below the root": (
        {"root": "{root}/data"},
        "--boxes detect: there is no run of a detector in {root}/data/runs: name one",
    ),
    "a detector without boxes of its own": (
        {"boxes": None, "detector": "{root}/runs/finder"},
        "--detector is for detected boxes: add --boxes detect, or leave it out",
    ),
    "a detector for landmarks": (
        {"checkpoint": "{root}/runs/finder"},
        "is a detector (fcos): give a checkpoint of a landmark model",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_of_infer_is_one_line_before_ray_starts(
    case: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forbid_ray(monkeypatch, "infer")
    changes, message = WRONG[case]
    changes = {k: v.format(root=root) if isinstance(v, str) else v for k, v in changes.items()}
    plain = infer.Options(
        str(root / "landmarks"),
        str(root / "photos.zip"),
        boxes="detect",
        root=str(root),
        output=str(root / "none"),
    )
    told = one_line(lambda: infer.run(dataclasses.replace(plain, **changes)), capsys)
    assert message.format(root=root) in told


WRONG_SCORES: dict[str, tuple[dict[str, Any], str]] = {
    "crops": (
        {"data": "{root}/crops"},
        "--boxes detect: the data set {root}/crops holds crops of its garments",
    ),
    "crops for a detector": (
        {"data": "{root}/crops", "boxes": "true", "checkpoint": "{root}/runs/finder"},
        "--data: the data set {root}/crops holds crops",
    ),
    "a detector's own boxes": ({"checkpoint": "{root}/runs/finder"}, "is a detector itself"),
    "mirror images of a detector": (
        {"checkpoint": "{root}/runs/finder", "boxes": "true", "mirror": True},
        "--mirror is for landmarks and classes",
    ),
    "a landmark model as a detector": (
        {"detector": "{root}/landmarks"},
        "--detector: {root}/landmarks is no",
    ),
    "a detector for true boxes": (
        {"boxes": "true", "detector": "{root}/runs/finder"},
        "--detector is for detected boxes",
    ),
}


@pytest.mark.parametrize("case", WRONG_SCORES)
def test_a_mistake_of_evaluate_is_one_line_before_ray_starts(
    case: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forbid_ray(monkeypatch, "evaluate")
    changes, message = WRONG_SCORES[case]
    changes = {k: v.format(root=root) if isinstance(v, str) else v for k, v in changes.items()}
    plain = evaluate.Options("fld", str(root / "landmarks"), "val", root=str(root), boxes="detect")
    told = one_line(lambda: evaluate.run(dataclasses.replace(plain, **changes)), capsys)
    assert message.format(root=root) in told


def test_a_detector_needs_whole_photos(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before Ray starts, that says how to ingest them."""
    forbid_ray(monkeypatch, "train")
    told = one_line(lambda: train.run(options(root, f"--data {root}/crops")), capsys)
    assert told.strip().endswith("a detector needs whole photos: ingest it with --margin full")
    assert "--task detect does not fit --model fpn: choose one of fcos" in one_line(
        lambda: train.run(dataclasses.replace(options(root), system="fpn")), capsys
    )
