"""The page of an evaluation: its words follow from the numbers, its links lead somewhere, its worst come first."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image

from glefld import pages
from glefld.models.calibration import RIGHT_WITHIN
from glefld.schema import Visibility
from glefld.scoring.baselines import fit_and_score
from glefld.scoring.boxes import BoxScores
from glefld.scoring.examples import Example
from glefld.scoring.metrics import Counters
from glefld.scoring.page import findings, listed_rows, page, parts, worst_rows
from glefld.scoring.page.parts import Scored
from glefld.scoring.rows import BoxRows, ClassRows, landmark_rows
from tests.erring import LABELS, garments

FACTS = {"system": "fpn", "checkpoint": "/runs/first/checkpoints/00000010", "command": "glefld evaluate"}


def scored(
    rng: np.random.Generator,
    *,
    number: int = 400,
    exchanged: int = 10_000,
    shift: float = 0.0,
    noise: float = 1.0,
    hidden: int = 0,
) -> Scored:
    """An evaluation of so many garments; shift: of all left hems to the right, in box sides.

    hidden: the first so many of them do not show their left hem.
    """
    predicted, truth, logits = garments(rng, number, exchanged=exchanged, visible=True)
    truth.visibility[1:hidden, 6] = Visibility.OCCLUDED
    predicted = truth.points.nan_to_num() + (predicted - truth.points.nan_to_num()) * noise
    predicted[:, 6, 0] += shift * (truth.box[:, 2] - truth.box[:, 0])
    counters = Counters(LABELS, replicates=60)
    counters.add_rows(number)
    size = truth.box[:, 2:] - truth.box[:, :2]
    right = ((predicted - truth.points) / size[:, None]).norm(dim=-1) <= RIGHT_WITHIN
    counters.add_landmarks(predicted, truth, torch.where(right, 0.97, 0.05))
    kinds = truth.label("garment_type", LABELS)
    counters.add_garment_types(logits, kinds)
    seen = torch.nn.functional.one_hot(truth.visibility.clamp(max=2), 3).double()
    counters.add_visibility(seen, truth)
    rows = landmark_rows(predicted, truth, LABELS, logits)
    baseline = fit_and_score([truth], [truth], LABELS, "category")
    return Scored("fld", "val", LABELS, counters.report(), baseline, rows, None, FACTS)


def built(given: Scored) -> pages.Page:
    """Its page, with pictures of as many as it wants."""
    drawn = [
        Example(Image.new("RGB", (60, 80)), f"fld/{number}#0", "photo", "")
        for number in worst_rows(given.rows)
    ]
    return page(given, drawn, {int(i): f"fld/{i}#0" for i in listed_rows(given.rows)})


def points(made: pages.Page) -> list[pages.Point]:
    (found,) = [part for part in made.parts if isinstance(part, pages.Points)]
    return list(found.points)


def told(made: pages.Page) -> str:
    return "\n".join(point.text for point in points(made))


def test_findings_lead_to_sections_of_the_page() -> None:
    made = built(scored(np.random.default_rng(0), exchanged=8, shift=0.1))
    titles = {section.title for section in made.sections}
    assert {point.section for point in points(made) if point.section} <= titles
    assert {"Beside others", parts.WORST_GARMENTS, parts.SIDES, parts.TYPES, "What was scored"} <= titles
    text = pages.html(made)
    assert text.count("data:image/webp") == 24
    for fact in FACTS.values():
        assert fact in text


def test_exchanged_sides_are_told_and_listed() -> None:
    given = scored(np.random.default_rng(1), exchanged=8)
    made = built(given)
    number = int(re.search(r"(\d+) garments \(\S+\s%\) would be less than half as wrong", told(made))[1])  # type: ignore[index]
    assert 0.8 * 50 < number <= 55
    assert len(listed_rows(given.rows)) == number
    text = pages.html(made)
    assert all(f"fld/{i}#0" in text for i in listed_rows(given.rows))
    assert "exchanged, and have" in told(made)
    assert "would be less than half as wrong" not in told(built(scored(np.random.default_rng(1))))


def test_a_shift_is_told_with_its_direction_and_noise_is_not() -> None:
    made = told(built(scored(np.random.default_rng(2), shift=0.1)))
    assert re.search(r"Always off to the same side: left hem \.(09|10)\d* right, on average", made)
    assert "The hardest landmark is left hem" in made
    plain = told(built(scored(np.random.default_rng(2))))
    assert "Always off" not in plain
    assert "The hardest landmark" not in plain, "all are equal"


def test_small_garments_are_harder_where_errors_are_pixels() -> None:
    """Off by 3 pixels, whatever the size of the box."""
    assert "Small garments are harder" in told(built(scored(np.random.default_rng(3))))


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.7, None), (0.9, "It is hardly better than"), (1.1, "It is worse than"), (5, "It is worse than")],
)
def test_a_model_that_has_learned_nothing_is_told_so(share: float, words: str | None) -> None:
    """share: its error, as a part of the constant answer's. What is worse is not told as a little better."""
    plain = scored(np.random.default_rng(4))
    constant = plain.baseline.mean_position_by_type.ne
    assert constant is not None
    assert plain.report.ne is not None
    found = told(built(scored(np.random.default_rng(4), noise=share * constant / plain.report.ne)))
    assert re.findall(r"It is [a-z ]+ than(?= a constant answer)", found) == ([words] if words else [])


@pytest.mark.parametrize("number", [2, 3, 99])
def test_of_a_handful_of_garments_nothing_is_told_but_that(number: int) -> None:
    """A bootstrap of one or two garments has hardly any width, so that all differences would be told as clear."""
    found = points(built(scored(np.random.default_rng(8), number=number, shift=0.3)))
    counted = "1 garment" if number == 2 else f"{number - 1} garments"  # the first shows no landmark
    assert [p.text for p in found if p.section not in (parts.TYPES, parts.SIDES)] == [
        f"This split has only {counted} to score. Fewer than 100 do not tell where the error lies."
    ]


def test_a_landmark_that_few_garments_show_is_not_the_hardest() -> None:
    """Of 200, 19 or 20 show the left hem, which is far off in all of them."""
    for shown, is_told in ((19, False), (20, True)):
        made = built(scored(np.random.default_rng(9), number=200, shift=0.3, hidden=200 - shown))
        assert ("The hardest landmark is left hem" in told(made)) == is_told


def test_a_type_or_view_of_few_garments_is_not_the_hardest() -> None:
    values = {"upper": 0.5, "lower": 0.1, "full": 0.05}
    intervals = {name: (value, value) for name, value in values.items()}
    counted = {"upper": 19, "lower": 20, "full": 20}
    (point,) = findings.extremes(values, intervals, counted, "garment type")
    assert "hardest garment type is lower" in point.text
    assert "easiest is full" in point.text


@pytest.mark.parametrize(("score", "words"), [(0.99, "promise more"), (0.5, "promise less")])
def test_scores_that_mislead(score: float, words: str) -> None:
    """Seven of ten are right; told .99, or .5."""
    given = scored(np.random.default_rng(5))
    predicted, truth, _ = garments(np.random.default_rng(5), 400, visible=True)
    predicted[:280] = truth.points[:280].nan_to_num()
    predicted[280:] += 400
    counters = Counters(LABELS, replicates=20)
    counters.add_landmarks(predicted, truth, torch.full(truth.visibility.shape, score))
    changed = dataclasses.replace(given.report, confidence=counters.report().confidence)
    assert words in told(built(dataclasses.replace(given, report=changed)))
    assert "Scores are honest" in told(built(given))


def test_a_split_without_a_visible_landmark_has_a_page() -> None:
    predicted, truth, _ = garments(np.random.default_rng(6), 3, visible=True)
    truth = truth._replace(visibility=torch.full_like(truth.visibility, int(Visibility.ABSENT)))
    counters = Counters(LABELS, replicates=5)
    counters.add_rows(3)
    counters.add_landmarks(predicted, truth)
    baseline = fit_and_score([truth], [truth], LABELS, "category")
    rows = landmark_rows(predicted, truth, LABELS)
    made = built(Scored("fld", "val", LABELS, counters.report(), baseline, rows, None, FACTS))
    assert "nothing to score" in pages.html(made)


def test_a_detectors_worst_photos_have_most_mistakes() -> None:
    """Missed and wrong boxes first, the surest of them before others, then loose ones."""
    rows = BoxRows(
        row=np.array([0, 2, 3, 5, 6, 7]),
        garments=np.array([2, 1, 2, 1, 1, 1], np.int16),
        boxes=np.array([2, 1, 3, 1, 2, 2], np.int16),
        surest=np.array([0, 0, 0.3, 0, 0.5, 0.9], np.float32),
        overlap=np.array([0.9, 0.95, 0.55, 0.0, 0.0, 0.9, 0.8, 0.8], np.float32),
        size=np.linspace(0.2, 0.9, 8, dtype=np.float32),
    )
    assert worst_rows(rows).tolist() == [3, 7, 6, 2, 5, 0]
    scores = BoxScores(
        0.4, 0.8, 0.4, 0.5, 0.3, 0.7, 0.57, 0.67, 8, [0.8] * 10, [[0.1, 1, 0.9], [0.67, 0.57, 0.3]]
    )
    given = scored(np.random.default_rng(7))
    report = dataclasses.replace(given.report, ne=None, boxes=scores)
    made = built(dataclasses.replace(given, report=report, rows=rows))
    assert "2 garments (25\N{NO-BREAK SPACE}%) are missed, and 5 boxes are no annotated garment's" in told(
        made
    )
    assert "their boxes are loose" in told(made)
    assert "of the photos (6) are answered without a mistake" in told(made)
    assert "This split has only 8 garments to score" in told(made)
    assert "2 missed, 3 wrong boxes" in pages.html(made)


def test_a_classifiers_worst_are_wrong_and_sure() -> None:
    rows = ClassRows(
        true=np.array([0, 1, -1, 1, 0], np.int16),
        told=np.array([1, 1, 0, 0, 1], np.int16),
        probability=np.array([0.6, 0.99, 0.9, 0.8, 0.7], np.float32),
    )
    assert worst_rows(rows).tolist() == [3, 4, 0]
    assert worst_rows(None).tolist() == []


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5, "50 %"), (0.031, "3.1 %"), (0.0, "0 %"), (1.0, "100 %"), (0.0004, "below 0.1 %")],
)
def test_shares_in_words(share: float, text: str) -> None:
    assert parts.percent(share) == text.replace(" %", "\N{NO-BREAK SPACE}%")


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [(0.02, 0.001, ".0200 right"), (-0.02, 0.015, ".0200 left and .0150 down"), (0, -0.5, ".5000 up")],
)
def test_offsets_in_words(x: float, y: float, words: str) -> None:
    assert findings.towards(x, y) == words
