"""The job that makes a page about a data set: it finds what was planted, and says what it read."""

import csv
import io
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from mlflow import MlflowClient
from PIL import Image

from glefld import storage
from glefld.models import checkpoint
from glefld.models.calibration import Calibration
from glefld.schema import FASHION8, NO_LANDMARKS
from glefld.tracking import RunHandle
from glefld.tracking.model_registry import create_model
from jobs.inspect import Options, run
from tests import dots, doubtful
from tests.mistakes import one_line


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return doubtful.write_dataset(tmp_path_factory.mktemp("doubtful"))


def inspect(data: str, folder: Path, *arguments: str) -> tuple[str, set[tuple[str, str, str]]]:
    """The page's text, and findings as ids without the data set's name, kind and what."""
    page, listed = folder / "page.html", folder / "suspects.csv"
    given = [
        "--data",
        data,
        "--root",
        str(folder),
        "--output",
        str(page),
        "--suspects",
        str(listed),
        *arguments,
    ]
    run(tyro.cli(Options, args=given))
    rows = list(csv.DictReader(listed.read_text().splitlines()))
    return page.read_text(), {(r["sample_id"][4:-2], r["finding"], r["what"]) for r in rows}


def test_what_was_planted_is_found_and_nothing_else(data: str, tmp_path: Path) -> None:
    page, found = inspect(data, tmp_path)
    assert found == {
        (
            f"train/{doubtful.EXCHANGED:04d}",
            "sides",
            "left_collar and right_collar: the other way round than the rest",
        ),
        (f"train/{doubtful.FAR:04d}", "place", "left_hem"),
        (f"train/{doubtful.WRONG_VIEW:04d}", "view", "back, with the sides of a front"),
        (f"train/{doubtful.TWICE:04d}", "copy", "the same photo 2 times in 2 splits"),
        ("val/0003", "copy", "the same photo 2 times in 2 splits"),
        ("val/0004", "near_copy", f"looks like fld/train/{doubtful.SIMILAR:04d}#0"),
    }
    for sample_id, *_ in found:
        assert f"{sample_id}#0" in page  # each is shown
    backs = re.search(r"([\d.]+) % have left and right as in a back view", page)
    assert backs is not None
    assert float(backs[1]) == pytest.approx(100 * len(doubtful.BACKS) / 160, abs=0.1)
    assert "numbers</dt><dd>of 160 of 160 rows" in page
    assert "1 photo of one split is also in another one, with the same bytes" in page
    assert "Ingest with --dedupe, which drops them from train" in page
    assert "1 photo of one split looks like one of another split" in page
    assert "1 garment has a landmark in an unusual place" in page
    assert "&lt;b&gt;as it is&lt;/b&gt;" in page
    assert "1 photo could not be fetched to be shown here: File name too long." in page
    assert page.count("<img") == 12 + 4 + 6 + 3 + 2 + 1  # samples, charts, maps, suspects, copies, a reject
    assert len(page) < 2_000_000


def test_photos_that_look_alike_are_counted_as_photos_and_dedupe_is_not_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two photos of train are saved again in val. Each has three garments and is stored as a whole: 18 pairs of rows.

    ``--dedupe`` would not drop them, since their bytes differ.
    """
    monkeypatch.setattr("glefld.inspection.findings.MOST_PAIRS", 2)  # as many as there are pairs of photos
    rng = np.random.default_rng(0)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for number in range(10):
        photo = doubtful.garment("train", number, rng)
        with Image.open(io.BytesIO(photo["image"])) as image:
            again = doubtful.jpeg(image.convert("RGB"), quality=50)
        splits["train"] += [{**photo, "sample_id": f"fld/train/{number}#{i}"} for i in range(3)]
        if number in (4, 6):
            other = {"source_uri": f"val/{number}.jpg", "image": again, "photo_hash": bytes([number] * 16)}
            splits["val"] += [{**photo, **other, "sample_id": f"fld/val/{number}#{i}"} for i in range(3)]
    page, found = inspect(doubtful.write(tmp_path / "data", FASHION8, splits, []), tmp_path)
    assert {(name, kind) for name, kind, _ in found} == {("val/4", "near_copy"), ("val/6", "near_copy")}
    assert "2 photos of one split look like one of another split" in page
    assert "0 of the same bytes, 2 alike" in page
    assert "2 pairs of photos across splits look alike" in page
    assert "--dedupe" not in page


def test_a_sample_of_a_data_set_that_is_not_on_this_machine(data: str, tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    for path in filter(Path.is_file, Path(data).rglob("*")):
        storage.put(path, storage.join(url, str(path.relative_to(data))))
    given = ["--data", url, "--root", str(tmp_path), "--output", f"{url}/page.html"]
    run(tyro.cli(Options, args=[*given, "--rows", "32", "--pictures", "16"]))
    page = storage.read_bytes(f"{url}/page.html").decode()
    assert "of 48 of 160 rows, from row groups that are evenly spread" in page
    assert "of 32 rows, for copies, from row groups that are evenly spread" in page
    assert url in page


def test_one_split_alone_and_mlflow_has_the_page(
    data: str,
    tmp_path: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run(Options(data=data, root=str(tmp_path), split="val", mlflow=True))
    file = tmp_path / "inspect" / "fld.html"  # where a user expects it
    assert str(file) in capsys.readouterr().out
    page = file.read_text()
    assert "40 garments (40 val)" in page
    assert "Only one split was read" in page
    assert "Of some types there are fewer than 100 garments: upper (40), lower (0), full (0)." in page
    assert page.count("have no usual shape to compare with: upper, lower, full.") == 2
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'glefld-fld'")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    copy = client.download_artifacts(logged.info.run_id, "inspect.html", str(tmp_path))
    assert Path(copy).read_text() == page
    assert logged.data.params["dataset"] == "fld", "runs are searched by it, and --data alone was given"
    assert contexts(client, logged.info.run_id) == ["val"]


def contexts(client: MlflowClient, run_id: str) -> list[str]:
    """What of its data MLflow says a run has used."""
    used = client.get_run(run_id).inputs.dataset_inputs
    return [tag.value for data in used for tag in data.tags]


def test_mlflow_knows_the_model_that_was_asked(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page lists the inspection among its runs, as it lists evaluations. Nothing was trained on the data."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    trained = client.create_run(client.create_experiment("trained")).info
    url = dots.write_checkpoint(str(tmp_path / "checkpoint"), calibration=Calibration(offset=1.0))
    handle = RunHandle(uri, trained.experiment_id, trained.run_id)
    model_id = create_model(handle, "gle", checkpoint.digest(url))
    data = doubtful.write_dots(tmp_path, exchanged=set(), far=set())
    run(Options(data=data, root=str(tmp_path), checkpoint=url, mlflow=True))
    experiment = client.get_experiment_by_name("glefld-fld")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert contexts(client, logged.info.run_id) == ["all"]
    used = client.get_run(logged.info.run_id).inputs.model_inputs
    assert [model.model_id for model in used] == [model_id]


def test_a_model_contradicts_wrong_annotations(tmp_path: Path) -> None:
    data = doubtful.write_dots(tmp_path, exchanged={4, 8}, far={15})
    url = dots.write_checkpoint(str(tmp_path / "checkpoint"), calibration=Calibration(offset=1.0))
    page, found = inspect(data, tmp_path, "--checkpoint", url)
    by_model = {(name, kind) for name, kind, _ in found if kind.endswith("_model")}
    assert by_model == {("val/0004", "sides_model"), ("val/0008", "sides_model"), ("val/0015", "place_model")}
    assert "checkpoint</dt>" in page


def test_photos_without_landmarks(tmp_path: Path) -> None:
    """As ``image-folder`` ingests them: what is about landmarks is left out."""
    rng = np.random.default_rng(0)
    rows = [doubtful.garment("train", i, rng) for i in range(20)]
    bare = [{**row, "landmarks": [], "visibility": [], "garment_type": None} for row in rows]
    page, found = inspect(doubtful.write(tmp_path / "data", NO_LANDMARKS, {"train": bare}, []), tmp_path)
    assert not found
    sections = re.findall(r'<section id="([^"]*)"', page)
    assert sections == ["augmentation", "garments", "copies", "rejects"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "--dataset NAME"),
        ({"data": "nowhere"}, "--data"),
        ({"rows": 0, "data": "DATA"}, "--rows"),
        ({"pictures": 0, "data": "DATA"}, "--pictures"),
        ({"split": "test", "data": "DATA"}, "--split test"),
        ({"dataset": "deepfashion2", "data": "DATA"}, "deepfashion2"),
        ({"experiment": "mine", "data": "DATA"}, "--mlflow"),
        ({"checkpoint": "DOTS", "data": "DATA"}, "'dots'"),
        ({"output": "/proc/no/page.html", "data": "DATA"}, "--output"),
        ({"suspects": "/proc/no/suspects.csv", "data": "DATA"}, "--suspects"),
    ],
)
def test_a_mistake_is_one_line(
    options: dict[str, object], named: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"DATA": data, "DOTS": str(tmp_path / "dots")}
    dots.write_checkpoint(places["DOTS"])
    given = {name: places.get(str(value), value) for name, value in options.items()}
    line = one_line(lambda: run(Options(root=str(tmp_path), **given)), capsys)  # type: ignore[arg-type]
    assert named in line


def test_a_data_set_without_rows_is_one_line_that_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No split was named, so none is named."""
    names = ("sample_id", "split", "source_uri", "detail")
    rejects = [
        {**dict.fromkeys(names, "x"), "reason": reason, "photo_hash": None}
        for reason in ("missing_photo", "missing_photo", "no_landmarks")
    ]
    (tmp_path / "data").mkdir()
    empty = doubtful.write(tmp_path / "data", FASHION8, {}, rejects)
    line = one_line(lambda: run(Options(data=empty, root=str(tmp_path))), capsys)
    assert line.strip().endswith(
        f"the data set {empty} has no rows: all 3 were rejected (missing_photo 2, no_landmarks 1)"
    )
    assert "--split" not in line
