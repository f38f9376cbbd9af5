"""``predict``: photos named in any way to JSON, CSV, COCO and Parquet on stdout, without Ray."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tyro
from PIL import Image
from pycocotools.coco import COCO

from glefld.prediction import prediction_schema
from jobs.predict import Options, run
from tests import dots, typed
from tests.mistakes import answering, everything, one_line, write_wrong_files

WIDTH, HEIGHT = 240, 160
NAMES = ("a.jpg", "b.PNG", "more/c.jpg")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows dots, one that tells types, and a folder of photos, one of them bad."""
    root = tmp_path_factory.mktemp("predict")
    dots.write_checkpoint(str(root / "dots"))
    typed.write_checkpoint(str(root / "typed"), "left")
    (root / "photos" / "more").mkdir(parents=True)
    for name, (_, image) in zip(NAMES, photos(), strict=True):
        kind = "PNG" if name.endswith("PNG") else "JPEG"
        (root / "photos" / name).write_bytes(dots.encoded(image, kind))
    (root / "photos" / "bad.jpg").write_bytes(b"no picture")
    (root / "photos" / "notes.txt").write_text("no picture's name")
    return root


def photos() -> list[tuple[np.ndarray, Image.Image]]:
    rng = np.random.default_rng(0)
    found = [dots.random_points(rng, (0, 0, WIDTH, HEIGHT)) for _ in NAMES]
    return [(points, dots.photo(points, WIDTH, HEIGHT)) for points in found]


def predict(
    capfdbinary: pytest.CaptureFixture[bytes],
    place: Path,
    *arguments: str,
    model: str = "dots",
    status: int = 0,
) -> tuple[bytes, str]:
    """What the command line gives on stdout and stderr."""
    given = [*arguments, "--checkpoint", str(place / model), "--device", "cpu"]
    options = tyro.cli(Options, args=given)
    if status:
        with pytest.raises(SystemExit) as end:
            run(options)
        assert end.value.code == status
    else:
        run(options)
    out, err = capfdbinary.readouterr()
    return out, err.decode()


def check(row: dict[str, Any], number: int) -> None:
    points = photos()[number][0]
    assert row["box"] == [0, 0, WIDTH, HEIGHT]
    assert (row["garment_type"], row["garment_type_score"]) == ("dots", 1)
    for name, (x, y) in zip(dots.DOTS.landmarks, points, strict=True):
        found = row["landmarks"][name]
        assert found.keys() == {"x", "y", "score"}  # this model does not tell visibility
        assert (found["x"], found["y"]) == pytest.approx((x, y), abs=WIDTH / dots.SIZE)
        assert 0.5 < found["score"] <= 1


def test_a_folder_as_json(place: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """All of its pictures in order, at any depth; a bad one is a row that says so, and is counted on stderr."""
    out, err = predict(capfdbinary, place, str(place / "photos"))
    rows = json.loads(out)
    assert [row["photo"] for row in rows] == [
        str(place / "photos" / name) for name in ("a.jpg", "b.PNG", "bad.jpg", "more/c.jpg")
    ]
    error = rows.pop(2)
    assert error.keys() == {"photo", "error"}
    assert error["error"].startswith("unreadable_photo: ")
    assert err.splitlines() == [f"{error['photo']}: {error['error']}", "4 photos, 3 garments, 1 error"]
    for number, row in enumerate(rows):
        check(row, number)


def test_photos_patterns_urls_and_stdin(
    place: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (place / "photos" / "a.jpg").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    monkeypatch.chdir(place)
    url = f"file://{place}/photos/b.PNG"
    out, _ = predict(capfdbinary, place, "-", "photos/*/*.jpg", url, "photos/[b-z].PNG", "nothing.jpg")
    rows = json.loads(out)
    assert [row["photo"] for row in rows] == [*("-", "photos/more/c.jpg", url, "photos/b.PNG", "nothing.jpg")]
    assert rows.pop()["error"] == "missing_photo: there is no such file"
    for number, row in zip((0, 2, 1, 1), rows, strict=True):
        check(row, number)


def test_a_photo_on_a_web_server(place: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """It is asked for as it is named, whatever links there may be in it; one that is not there is an error row."""
    with answering(200, (place / "photos" / "a.jpg").read_bytes()) as server, answering(404) as other:
        out, _ = predict(capfdbinary, place, f"{server}/a.jpg?size=1", f"{other}/a.jpg")
    found, missing = json.loads(out)
    check(found, 0)
    assert missing["error"].startswith("missing_photo")


def test_csv_has_a_row_for_each_landmark(place: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    photo, bad = str(place / "photos/a.jpg"), str(place / "photos/bad.jpg")
    out, _ = predict(capfdbinary, place, photo, bad, "--format", "csv", model="typed")
    rows = list(csv.DictReader(io.StringIO(out.decode())))
    assert [(row["photo"], row["garment"], row["garment_type"], row["landmark"]) for row in rows] == [
        (photo, "0", "left", "left_dot"),
        (bad, "0", "", ""),
    ]
    assert rows[0]["visibility"] == "visible"
    assert [float(rows[0][f"box_{corner}"]) for corner in ("x1", "y1")] == [0, 0]
    assert float(rows[0]["box_x2"]) == WIDTH
    assert rows[0]["box_score"] == ""
    assert 0 <= float(rows[0]["x"]) <= WIDTH
    assert float(rows[0]["garment_type_score"]) == pytest.approx(0.9)
    assert rows[1]["error"].startswith("unreadable_photo")


def test_what_the_garment_type_lacks_is_left_out_of_json(
    place: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    out, _ = predict(capfdbinary, place, str(place / "photos/a.jpg"), model="typed")
    (row,) = json.loads(out)
    assert (row["garment_type"], list(row["landmarks"])) == ("left", ["left_dot"])
    assert row["landmarks"]["left_dot"]["visibility"] == "visible"


def test_coco_to_a_file(place: Path, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    arguments = (str(place / "photos"), "--format", "coco", "--output", str(tmp_path / "coco.json"))
    out, _ = predict(capfdbinary, place, *arguments)
    assert not out
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "coco.json"))
    assert len(coco.imgs) == len(coco.anns) == 3
    assert coco.dataset["info"]["errors"][0]["photo"] == str(place / "photos/bad.jpg")


@pytest.mark.parametrize("where", ["file", "stdout"])
def test_parquet_has_the_columns_of_infer(
    where: str, place: Path, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    file = tmp_path / "found.parquet"
    given = ("--output", str(file)) if where == "file" else ("--format", "parquet")
    out, _ = predict(capfdbinary, place, str(place / "photos"), *given, model="typed")
    assert bool(out) == (where == "stdout")
    table = pq.read_table(file if where == "file" else io.BytesIO(out))
    expected = prediction_schema(typed.PAIR)
    assert table.schema.equals(expected)
    assert table.schema.metadata == expected.metadata
    rows = table.to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok", "error", "ok"]
    assert rows[0]["model"].startswith(f"{place}/typed@")
    assert (rows[0]["garment_type"], rows[0]["visibility"]) == ("left", [0, 3])
    assert np.isnan(rows[0]["landmarks"]).tolist() == [False, False, True, True]
    assert np.isnan(rows[0]["score"]).tolist() == [False, True]
    assert rows[2]["garment_type"] is rows[2]["landmarks"] is None


def test_landmarks_with_low_scores_are_left_out(
    place: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    photo = str(place / "photos/a.jpg")
    (row,) = json.loads(predict(capfdbinary, place, photo)[0])
    scores = sorted(values["score"] for values in row["landmarks"].values())
    least = sum(scores) / 2
    assert scores[0] < least < scores[1]
    (kept,) = json.loads(predict(capfdbinary, place, photo, "--min-score", str(least))[0])
    assert kept["landmarks"] == {n: v for n, v in row["landmarks"].items() if v["score"] >= least}
    assert len(kept["landmarks"]) == 1


def test_boxes_by_the_photo_as_given_or_its_path_in_the_folder(
    place: Path, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    """A garment for each of its rows, in their order. What has no box is left out, and told."""
    single = str(place / "photos" / "a.jpg")
    (tmp_path / "boxes.csv").write_text(
        f"uri,x1,y1,x2,y2\nmore/c.jpg,10,20,200,150\nmore/c.jpg,,,,\n{single},0,0,9,9\nother.jpg,0,0,9,9\n"
    )
    boxes = ("--boxes", str(tmp_path / "boxes.csv"))
    out, err = predict(
        capfdbinary, place, str(place / "photos" / "more"), str(place / "photos"), single, *boxes
    )
    rows = [(row["photo"].removeprefix(str(place)), row["box"]) for row in json.loads(out)]
    assert rows == [
        ("/photos/a.jpg", [0, 0, 9, 9]),
        ("/photos/more/c.jpg", [10, 20, 200, 150]),
        ("/photos/more/c.jpg", [0, 0, WIDTH, HEIGHT]),
        ("/photos/a.jpg", [0, 0, 9, 9]),
    ]
    assert "1 uris of --boxes are not among the photos" in err
    assert "3 photos have no box in --boxes: they are left out" in err


def test_show_draws_what_is_answered(
    place: Path, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    predict(capfdbinary, place, str(place / "photos"), "--show", str(tmp_path / "drawn"))
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == ["00000-a.jpg", "00001-b.jpg", "00003-c.jpg"]
    picture = Image.open(tmp_path / "drawn" / drawn[0])
    assert picture.width / picture.height == WIDTH / HEIGHT


def test_if_no_photo_can_be_answered_the_status_says_so(
    place: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The rows are written all the same."""
    out, err = predict(capfdbinary, place, str(place / "photos/bad.jpg"), "nothing.jpg", status=1)
    assert [row["error"].partition(":")[0] for row in json.loads(out)] == [
        "unreadable_photo",
        "missing_photo",
    ]
    assert err.endswith("2 photos, 0 garments, 2 errors\n")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no photos": ({"photos": ()}, "no photos: name photos, folders or patterns, or - for stdin"),
    "a folder without pictures": ({"photos": ("{place}/empty",)}, "{place}/empty holds no picture"),
    "a pattern that matches nothing": ({"photos": ("{place}/*.gif",)}, "{place}/*.gif matches no picture"),
    "stdin twice": ({"photos": ("-", "-")}, "- is given more than once"),
    "no such checkpoint": ({"checkpoint": "/nope"}, "--checkpoint: /nope is neither a checkpoint nor a run"),
    "a mistyped run": (
        {"checkpoint": "tutorail", "root": "{place}"},
        "/tutorail is neither a checkpoint nor a run with a best one: it has no complete.json and no best.json; did "
        "you mean {place}/runs/tutorial?",
    ),
    "no such boxes": ({"boxes": "/nope.csv"}, "--boxes /nope.csv: there is no such file"),
    "boxes of other photos": (
        {"boxes": "{place}/boxes.csv"},
        "names none of the 1 photos (its first uri: 'b.jpg'",
    ),
    "a score above 1": ({"min_score": 80}, "--min-score must be between 0 and 1, not 80"),
    "an output that is a folder": ({"output": "{place}/photos"}, "--output {place}/photos is a folder"),
    "a file to show in": ({"show": "{place}/notes.txt"}, "--show {place}/notes.txt is a file"),
    "no runs": (
        {"checkpoint": None, "root": "{place}"},
        "no checkpoint is named, and {place}/runs has no run",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GLEFLD_CHECKPOINT", raising=False)
    write_wrong_files(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "tutorial").mkdir(parents=True)
    (tmp_path / "boxes.csv").write_text("uri,x1,y1,x2,y2\nb.jpg,0,0,9,9\n")
    options = Options((str(tmp_path / "photos" / "a.jpg"),), checkpoint=str(tmp_path / "photos"))
    changes, message = WRONG[case]

    def at(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(at, value))
        return value.format(place=tmp_path) if isinstance(value, str) else value

    before = everything(tmp_path)
    told = one_line(
        lambda: run(dataclasses.replace(options, **{k: at(v) for k, v in changes.items()})), capsys
    )
    assert message.format(place=tmp_path) in told
    assert everything(tmp_path) == before


def test_as_a_user_calls_it(place: Path) -> None:
    """A process of its own, with only JSON on stdout, which loads neither Ray nor MLflow; stderr names the model."""
    url = str(place / "dots")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jobs.predict", "-"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "GLEFLD_CHECKPOINT": url},
        input=(place / "photos" / "a.jpg").read_bytes(),
        capture_output=True,
        check=False,
    )
    told = done.stderr.decode().splitlines()
    loaded = {line.rpartition("|")[2].strip() for line in told if line.startswith("import time:")}
    assert done.returncode == 0, told[-5:]
    check(json.loads(done.stdout)[0], 0)
    assert "torch" in loaded
    assert not {"ray", "mlflow", "matplotlib", "torchvision", "nvidia.dali", "pycocotools"} & loaded
    assert f"checkpoint {url}, $GLEFLD_CHECKPOINT" in told
    assert "1 photo, 1 garment, 0 errors" in told
