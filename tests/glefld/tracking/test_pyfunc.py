"""The models as MLflow loads them: ``mlflow.pyfunc.load_model``, and what ``mlflow models serve`` makes of requests."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.scoring_server import infer_and_parse_data, predictions_to_json
from PIL import Image

from glefld import Landmarks, serving
from glefld.models import build_model, checkpoint
from glefld.tracking import RunHandle, logged_run
from tests import boxed, dots

WIDTH, HEIGHT = 240, 160


def jpeg(seed: int = 0) -> bytes:
    points = dots.random_points(np.random.default_rng(seed), (0, 0, WIDTH, HEIGHT))
    return dots.encoded(dots.photo(points, WIDTH, HEIGHT), "PNG")


def text(photo: bytes) -> str:
    return base64.b64encode(photo).decode()


def log(handle: RunHandle, url: str) -> str:
    """Store the checkpoint as a model of the run; its folder in MLflow."""
    with logged_run(handle) as run_log:
        run_log.log_model(url, name="dots", step=1, metrics={})
    client = MlflowClient(handle.tracking_uri)
    (output,) = client.get_run(handle.run_id).outputs.model_outputs
    return client.get_logged_model(output.model_id).artifact_location


@pytest.fixture
def stored(handle: RunHandle, tmp_path: Path) -> str:
    return log(handle, dots.write_checkpoint(str(tmp_path / "checkpoint")))


@pytest.fixture
def model(stored: str) -> PyFuncModel:
    return mlflow.pyfunc.load_model(stored)


def posted(model: PyFuncModel, rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What ``/invocations`` answers: the garments of each row."""
    request = json.loads(json.dumps({"dataframe_records": rows}))
    answer = io.StringIO()
    predictions_to_json(
        model.predict(infer_and_parse_data(request, model.metadata.get_input_schema())), answer
    )
    return [row["garments"] for row in json.loads(answer.getvalue())["predictions"]]


def test_the_answer_is_that_of_predict(model: PyFuncModel, stored: str) -> None:
    """Of photos as base64 or bytes, of boxes in whole numbers or none."""
    photos, boxes = [jpeg(0), jpeg(1)], [None, [[20, 10, 220, 150], [0, 0, 240, 160]]]
    expected = [result.to_json() for result in Landmarks.load(stored, device="cpu")(photos, boxes)]
    for answers in expected:
        for garment in answers:
            del garment["photo"]
            assert len(garment["landmarks"]) == 2
    rows = [
        {"photo": text(photo)} | ({"boxes": box} if box else {})
        for photo, box in zip(photos, boxes, strict=True)
    ]
    assert posted(model, rows) == expected
    table = pd.DataFrame({"photo": photos, "boxes": boxes})
    assert [row["garments"] for row in model.predict(table)] == expected
    assert posted(model, [{"photo": text(photos[0])}]) == expected[:1]
    assert posted(model, [{"photo": f"data:image/png;base64,{text(photos[0])}"}]) == expected[:1]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a path": (
        {"photo": "/etc/passwd"},
        "not_base64: a photo is its file's content as base64, not a path or URL",
    ),
    "a URL": ({"photo": "http://127.0.0.1/a.jpg"}, "not_base64: "),
    "a file's URL": ({"photo": "file:///etc/passwd"}, "not_base64: "),
    "a path in base64's letters": ({"photo": "etc/passwd00"}, "unreadable_photo: "),
    "no text": ({"photo": 7}, "not_base64: a photo is its file's content as base64, not int"),
    "no photo": ({"photo": None}, "not_base64: "),
    "letters beyond ASCII": ({"photo": "ä" * 8}, "not_base64: "),
    "cut short": ({"photo": text(jpeg()[:200])}, "truncated_photo: "),
    "not a picture": ({"photo": text(b"a text")}, "unreadable_photo: "),
    "too large": ({"photo": "A" * (serving.MOST_BYTES * 4 // 3 + 8)}, "file_too_large: "),
    "three numbers": ({"photo": text(jpeg()), "boxes": [1, 2, 3]}, "not_boxes: "),
    "boxes in words": ({"photo": text(jpeg()), "boxes": "all"}, "not_boxes: "),
    "no box": ({"photo": text(jpeg()), "boxes": []}, "not_boxes: "),
    "too many boxes": ({"photo": text(jpeg()), "boxes": [[0, 0, 9, 9]] * 101}, "not_boxes: "),
    "a huge number": ({"photo": text(jpeg()), "boxes": [[0, 0, 9, 10**400]]}, "not_boxes: "),
    "an empty box": ({"photo": text(jpeg()), "boxes": [[9, 9, 9, 9]]}, "empty_box: "),
}


def test_a_bad_row_is_an_answer_of_its_own(model: PyFuncModel) -> None:
    """Nothing is read for it, and the rows between are answered as if they were alone."""
    good = {"photo": text(jpeg(3))}
    (alone,) = posted(model, [good])
    rows = [row for bad, _ in BAD.values() for row in (bad, good)]
    answers = posted(model, rows)
    assert answers[1::2] == [alone] * len(BAD)
    for (_, error), (answer,) in zip(BAD.values(), answers[::2], strict=True):
        assert answer["error"].startswith(error), (answer, error)


def test_the_example_is_answered(model: PyFuncModel, stored: str) -> None:
    """It is in the model as a request too."""
    request = json.loads(Path(stored, "serving_input_example.json").read_text())
    assert model.input_example is not None
    table = infer_and_parse_data(request, model.metadata.get_input_schema())
    (answer,) = model.predict(table)
    assert "error" not in answer["garments"][0]
    with Image.open(io.BytesIO(base64.b64decode(request["dataframe_split"]["data"][0][0]))) as image:
        assert image.size == (96, 128)


def test_no_code_and_no_pickle_is_stored(stored: str) -> None:
    names = {path.name for path in Path(stored).iterdir()}
    assert names == {
        *("model.safetensors", "model.json", "complete.json", "MLmodel", "requirements.txt"),
        *("python_env.yaml", "input_example.json", "serving_input_example.json"),
    }
    required = Path(stored, "requirements.txt").read_text()
    assert "torch==" in required
    assert not re.search("^glefld", required, re.MULTILINE), "an index may have another package of this name"


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A detector that was not trained, and takes the two best places of any photo for garments."""
    url = str(tmp_path_factory.mktemp("finder") / "checkpoint")
    model = build_model("fcos", boxed.CONFIG, dots.LABELS)
    model.least_score = 0.0
    card = dots.card("fcos", boxed.CONFIG, dots.LABELS, boxed.SIZE)
    checkpoint.save(url, model, card)
    return url


def test_a_detector_answers_with_boxes(handle: RunHandle, finder: str) -> None:
    settings = {"most_garments": 2, "least_score": 0.0}
    model = mlflow.pyfunc.load_model(log(handle, finder), model_config=settings)
    found, bad = posted(model, [{"photo": text(jpeg())}, {"photo": text(b"a text")}])
    assert len(found) == 2
    assert all(set(garment) == {"box", "box_score"} and len(garment["box"]) == 4 for garment in found)
    assert bad[0]["error"].startswith("unreadable_photo")


def test_a_landmark_model_is_served_with_a_detector(stored: str, finder: str) -> None:
    settings = {"detector": finder, "most_garments": 2, "least_score": 0.0}
    model = mlflow.pyfunc.load_model(stored, model_config=settings)
    found, given = posted(
        model, [{"photo": text(jpeg())}, {"photo": text(jpeg()), "boxes": [[0, 0, 240, 160]]}]
    )
    assert len(found) == 2
    assert all("box_score" in garment and len(garment["landmarks"]) == 2 for garment in found)
    assert len(given) == 1
    assert "box_score" not in given[0]
