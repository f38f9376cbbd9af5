"""Pictures: marks stand where the points are, in the side's colour, and everything asked for is there."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from glefld.schema import FASHION8, Labels, LandmarkSet, Visibility
from glefld.scoring.baselines import Baselines
from glefld.scoring.draw import COLOURS, contact_sheet, ne_chart, overlay, sides
from glefld.scoring.metrics import Counters, Report
from glefld.scoring.published import FLD

K = len(FASHION8)
NOWHERE = np.full((K, 2), math.nan)
PICTURES = {
    "black": np.zeros((100, 60, 3), np.uint8),
    "white": np.full((100, 60, 3), 255, np.uint8),
    "noise": np.random.default_rng(5).integers(0, 256, (100, 60, 3), dtype=np.uint8),
}


def at(name: str, x: float, y: float) -> np.ndarray:
    points = NOWHERE.copy()
    points[FASHION8.landmarks.index(name)] = x, y
    return points


def close_to(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """[H, W] whether a pixel has about this colour."""
    return np.abs(np.asarray(picture).astype(int) - colour).max(axis=2) < 24


@pytest.mark.parametrize("background", PICTURES)
@pytest.mark.parametrize(("name", "side"), [("left_hem", "left"), ("right_collar", "right")])
@pytest.mark.parametrize("kind", ["truth", "predicted"])
def test_marks_stand_on_their_points(background, name, side, kind):
    """The middle of a mark's coloured pixels is the point, scaled; a rim sets it off from any ground."""
    picture = overlay(PICTURES[background], FASHION8, **{kind: at(name, 20.5, 70.25)}, long_side=400)
    assert picture.size == (240, 400)
    near = np.zeros((400, 240), bool)
    near[281 - 40 : 281 + 40, 82 - 40 : 82 + 40] = True
    rows, columns = np.nonzero(close_to(picture, COLOURS[side]) & near)
    if background == "noise":  # it has a few pixels of any colour
        keep = np.hypot(rows + 0.5 - 281, columns + 0.5 - 82) < 10
        rows, columns = rows[keep], columns[keep]
    assert len(rows) > 20
    assert columns.mean() + 0.5 == pytest.approx(4 * 20.5, abs=0.6)
    assert rows.mean() + 0.5 == pytest.approx(4 * 70.25, abs=0.6)
    centre = np.asarray(picture)[281, 82]
    original = np.asarray(overlay(PICTURES[background], FASHION8, long_side=400))[281, 82]
    if kind == "predicted":
        assert np.abs(centre.astype(int) - COLOURS[side]).max() < 24, "a dot is filled"
    else:
        assert np.array_equal(centre, original), "a ring is open: what it marks stays visible"


@pytest.mark.parametrize("box", [(20.0, 30.0, 50.0, 90.0), (-9.0, -9.0, 50.0, 90.0), None])
def test_a_label_stands_in_the_corner_of_its_box(box):
    """Or of the picture, where the box juts out or is missing."""
    plain, labelled = (
        np.asarray(overlay(PICTURES["black"], FASHION8, box=box, label=label, long_side=400)).astype(int)
        for label in ("", "upper 0.98")
    )
    rows, columns = np.nonzero(np.abs(labelled - plain).sum(axis=2) > 60)
    x, y = (0, 0) if box is None else (max(0, 4 * box[0]), max(0, 4 * box[1]))
    assert len(rows) > 50
    assert x <= columns.min() < x + 16
    assert y <= rows.min() < y + 16
    assert rows.max() < y + 40


@pytest.mark.parametrize("state", list(Visibility))
def test_only_annotated_landmarks_are_drawn(state):
    """Cut-off and absent slots leave the picture as it was, predictions too; occluded rings are broken."""
    points, visibility = at("left_hem", 30, 50), np.full(K, int(Visibility.ABSENT))
    visibility[FASHION8.landmarks.index("left_hem")] = state
    grey = np.full((100, 60, 3), 128, np.uint8)
    plain = overlay(grey, FASHION8)
    picture = overlay(grey, FASHION8, truth=points, predicted=points + 9, visibility=visibility)
    assert (np.asarray(picture) != np.asarray(plain)).any() == (state <= Visibility.OCCLUDED)
    ring = close_to(overlay(grey, FASHION8, truth=points, visibility=visibility), COLOURS["left"]).sum()
    whole = close_to(overlay(grey, FASHION8, truth=points), COLOURS["left"]).sum()
    share = {Visibility.VISIBLE: 1.0, Visibility.OCCLUDED: 0.73}.get(state, 0.0)
    assert ring == pytest.approx(share * whole, rel=0.12)


def test_doubtful_predictions_fade():
    """A low score shows less colour than a high one, and still shows."""
    white = PICTURES["white"]
    points = at("left_hem", 30, 50)
    ink = [
        (255 - np.asarray(overlay(white, FASHION8, predicted=points, score=np.full(K, s))).astype(int)).sum()
        for s in (0.0, 0.5, 1.0)
    ]
    assert 0 < ink[0] < ink[1] < ink[2]


def test_names_and_box_are_drawn_on_request():
    points = at("left_hem", 30, 50)
    plain = np.asarray(overlay(PICTURES["black"], FASHION8, predicted=points))
    named = np.asarray(overlay(PICTURES["black"], FASHION8, predicted=points, names=True))
    boxed = np.asarray(overlay(PICTURES["black"], FASHION8, predicted=points, box=(10, 20, 50, 90)))
    assert (named != plain).any()
    changed = np.nonzero((boxed != plain).any(axis=2))
    scale = 5.12
    assert changed[1].min() / scale == pytest.approx(10, abs=1)
    assert changed[0].max() / scale == pytest.approx(90, abs=1)


def test_a_name_at_the_right_edge_stands_to_the_left_of_its_mark():
    """Where it would be cut off otherwise."""
    points = at("right_waistline", 58, 50)
    plain = np.asarray(overlay(PICTURES["black"], FASHION8, predicted=points))
    named = np.asarray(overlay(PICTURES["black"], FASHION8, predicted=points, names=True))
    columns = np.nonzero((named != plain).any(axis=(0, 2)))[0]
    assert columns.max() < 58 / 60 * named.shape[1]


def test_sides():
    """By name where it says so, by the order of a mirror pair where it does not."""
    assert sides(FASHION8) == ["left", "right"] * 4
    own = LandmarkSet("own", ("a", "b", "spine", "right_ear", "left_ear"), (1, 0, 2, 4, 3), ())
    assert sides(own) == ["left", "right", "middle", "right", "left"]


@pytest.mark.parametrize(("count", "columns", "across", "down"), [(1, 4, 1, 1), (5, 3, 3, 2), (6, 3, 3, 2)])
def test_contact_sheet_has_a_place_for_each_picture(count, columns, across, down):
    """Pictures of any shape each fill a cell of one size, none is lost and none is stretched."""
    colours = [(40 * i + 20, 0, 200) for i in range(count)]
    shapes = [(30, 90), (90, 30), (50, 50), (400, 300), (7, 8), (64, 64)]
    tiles = [
        (Image.new("RGB", shape, colour), "a caption that is far too long for one tile" * 3)
        for shape, colour in zip(shapes, colours, strict=False)
    ]
    sheet = contact_sheet(tiles, columns, tile=100, title="title")
    middles = []
    for shape, colour in zip(shapes, colours, strict=False):
        found = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
        high, wide = np.ptp(found[0]) + 1, np.ptp(found[1]) + 1
        assert max(high, wide) == 100
        assert wide / high == pytest.approx(shape[0] / shape[1], rel=0.05)
        middles.append((round(found[1].mean() / 10), round(found[0].mean() / 10)))
    assert len({x for x, _ in middles}) == across
    assert len({y for _, y in middles}) == down


def test_a_legend_only_where_there_are_marks():
    """Without the legend a sheet is the same but for its foot, which is gone."""
    tiles = [(Image.new("RGB", (50, 50), (9, 9, 9)), "a tile")]
    marked, plain = (np.asarray(contact_sheet(tiles, 1, legend=legend)) for legend in ("truth", "none"))
    assert len(plain) < len(marked)
    assert np.array_equal(plain, marked[: len(plain)])


def test_an_empty_contact_sheet_is_an_error():
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([], 3)


def report(landmark_set: LandmarkSet, ne: float) -> Report:
    counters = Counters(Labels(landmark_set))
    counters.sums["visible"] += 1
    counters.sums["ne"] += ne
    return counters.report()


def test_ne_chart_shows_what_was_measured_and_published():
    """Bars are the run's figures; every published system and both baselines stand in the legend."""
    scores = [report(FASHION8, ne) for ne in (0.05, 0.2, 0.1)]
    figure = ne_chart("fld", scores[0], Baselines(*scores[1:], scores[0]))
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.05] * 9)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["this run", "mean position (baseline)", "mean position by type (baseline)"]
    assert labels[3:] == [f"{system.system} (published)" for system in FLD]
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("k", [1, 294])
def test_ne_chart_of_other_landmarks(k):
    """A user's own landmarks make a chart without published marks; nothing counted leaves a gap."""
    own = LandmarkSet("own", tuple(f"point_{i}" for i in range(k)), tuple(range(k)), ())
    for scores in (report(own, 0.1), Counters(Labels(own)).report()):
        figure = ne_chart("fld", scores)
        assert len(figure.axes[0].patches) == k + 1
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["this run"]
        figure.savefig(io.BytesIO())
