"""The scores against hand-computed cases, and that they do not depend on how rows are split up."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from glefld.data.truth import Truth
from glefld.errors import UserError
from glefld.schema import (
    FASHION8,
    VIEWS,
    Attribute,
    Labels,
    LandmarkSet,
    Visibility,
)
from glefld.scoring.baselines import Baselines, MeanPosition, fit_and_score
from glefld.scoring.evaluation import evaluation_json
from glefld.scoring.metrics import Counters, Report
from glefld.tracking.notes import METRICS
from tests.conftest import SHARED_DATA

K = len(FASHION8)
LABELS = Labels(
    FASHION8,
    categories=("Blouse", "Jeans", "Robe", "Skirt", "Tee", "Top"),
    attributes=tuple(
        Attribute(name, type_) for name, type_ in (("dots", 1), ("lace", 2), ("red", 1), ("wool", 2))
    ),
    attribute_types=("texture", "fabric"),
)
ANNO_FINE = SHARED_DATA / "deepfashion-fine" / "Anno_fine"


def garment(
    offsets: dict[str, tuple[float, float]],
    states: dict[str, Visibility] | None = None,
    box: tuple[float, float, float, float] = (10, 20, 110, 220),
    garment_type: int = 3,
    view: int = -1,
) -> tuple[Tensor, Truth]:
    """One row whose named landmarks are visible (or in the given state), predicted off by so many pixels."""
    points = torch.full((1, K, 2), math.nan, dtype=torch.float64)
    predicted = torch.full((1, K, 2), 55.0)
    visibility = torch.full((1, K), int(Visibility.ABSENT))
    for number, (name, offset) in enumerate(offsets.items()):
        i = FASHION8.landmarks.index(name)
        points[0, i] = torch.tensor([30.0 + 20 * number, 40.0 + 20 * number])
        predicted[0, i] = points[0, i] + torch.tensor(offset)
        visibility[0, i] = int((states or {}).get(name, Visibility.VISIBLE))
    kinds = torch.tensor([garment_type]), torch.tensor([view]), torch.tensor([-1])
    return predicted, Truth(points, visibility, torch.tensor([box]), *kinds, torch.zeros(1, 4))


def report_of(*rows: tuple[Tensor, Truth]) -> Report:
    counters = Counters(LABELS)
    for predicted, truth in rows:
        add(counters, predicted, truth)
    return counters.report()


def add(counters: Counters, predicted: Tensor, truth: Truth) -> None:
    counters.add_rows(len(predicted))
    # Any numbers are as good as scores and logits, if they are the row's own.
    counters.add_landmarks(predicted, truth, predicted[..., 0].nan_to_num().remainder(1))
    # What the landmarks are is as good as any logits.
    counters.add_classes(predicted[:, : len(LABELS.categories), 0].nan_to_num(), truth.category)
    if truth.attributes.shape[1]:
        counters.add_attributes(predicted[:, :4, 1].nan_to_num(), truth.attributes)


def add_all(counters: Counters, predicted: Tensor, truth: Truth) -> None:
    """Visibility and garment types too, of which any numbers are as good as logits."""
    add(counters, predicted, truth)
    logits = torch.stack(
        [predicted[..., 0], predicted[..., 1], predicted.mean(dim=-1).roll(1, dims=1)], dim=-1
    )
    counters.add_visibility(logits, truth)
    counters.add_garment_types(predicted[:, :3, 1].nan_to_num(), truth.label("garment_type", LABELS))


def random_rows(seed: int, rows: int) -> tuple[Tensor, Truth]:
    """Garments of every type, view and visibility, predictions some pixels off; the seed is printed."""
    print(f"seed {seed}")
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(rows, 2, generator=g) * 50
    size = 60 + torch.rand(rows, 2, generator=g) * 200
    box = torch.cat([corner, corner + size], dim=1)
    points = corner[:, None] + torch.rand(rows, K, 2, generator=g) * size[:, None]
    visibility = torch.randint(0, 4, (rows, K), generator=g)
    predicted = points + 8 * torch.randn(rows, K, 2, generator=g)
    points[visibility >= Visibility.CUT_OFF] = math.nan
    garment_type = torch.tensor([-1, 1, 2, 3])[torch.randint(0, 4, (rows,), generator=g)]
    view = torch.randint(-1, len(VIEWS), (rows,), generator=g)
    category = torch.randint(-1, len(LABELS.categories), (rows,), generator=g)
    attributes = torch.randint(0, 2, (rows, len(LABELS.attributes)), generator=g).float()
    return predicted, Truth(points, visibility, box, garment_type, view, category, attributes)


def take(predicted: Tensor, truth: Truth, index: Tensor) -> tuple[Tensor, Truth]:
    return predicted[index], Truth(*(column[index] for column in truth))


# The box is 100 wide and 200 high: 30 px aside and 80 px down are NE (.3, .4), together .5.
NE_CASES = {
    "dx by the width, dy by the height": ({"left_hem": (30, 80)}, {"left_hem": 0.5}, 0.5),
    "a mean over landmarks": ({"left_hem": (30, 80), "right_hem": (10, 0)}, {"right_hem": 0.1}, 0.3),
    "the sign does not matter": (
        {"left_collar": (-30, -80)},
        {"left_collar": 0.5, "right_collar": None},
        0.5,
    ),
    "perfect": ({"left_collar": (0, 0), "right_hem": (0, 0)}, {"left_collar": 0.0, "right_hem": 0.0}, 0.0),
}


@pytest.mark.parametrize(("offsets", "by_landmark", "average"), NE_CASES.values(), ids=NE_CASES)
def test_ne_by_hand(offsets, by_landmark, average):
    """Protects the definition: square root of the sum of (dx / w)^2 and (dy / h)^2."""
    report = report_of(garment(offsets))
    for name, expected in by_landmark.items():
        assert report.ne_by_landmark[name] == (
            None if expected is None else pytest.approx(expected, abs=1e-7)
        )
    assert report.ne == pytest.approx(average, abs=1e-7)


def test_average_is_over_landmarks_not_over_points():
    """Three collars at .1 and one hem at .5 average .3, not .2: each landmark weighs the same."""
    rows = [garment({"left_collar": (10, 0)})] * 3 + [garment({"left_hem": (30, 80)})]
    report = report_of(*rows)
    assert report.ne == pytest.approx(0.3)
    assert report.counted["left_collar"] == 3
    assert report.counted["left_hem"] == 1
    assert report.rows == 4


def test_the_only_score_with_a_unit_names_it():
    """In MLflow, where a name is all that a chart shows; the experiment's page explains the same name."""
    numbers = report_of(garment({"left_hem": (3.0, 4.0)})).numbers()
    assert numbers["epe_px"] == pytest.approx(5)
    assert "epe" not in numbers
    assert ("val_epe_px", "pixels of the photo") in [(names, unit) for names, unit, _ in METRICS]


@pytest.mark.parametrize("state", [Visibility.OCCLUDED, Visibility.CUT_OFF, Visibility.ABSENT])
def test_only_visible_landmarks_enter_ne(state):
    """An occluded landmark has its own NE and enters the pixel scores; cut-off and absent count nowhere."""
    seen = {"left_hem": (0.0, 0.0)}
    other = garment({"left_sleeve": (0.0, 0.0)})
    alone = report_of(garment(seen), other)
    report = report_of(garment({**seen, "left_sleeve": (30, 80)}, {"left_sleeve": state}), other)
    if state == Visibility.OCCLUDED:
        assert report.ne_occluded == pytest.approx(0.5)
        assert report.epe_px == pytest.approx(math.hypot(30, 80) / 3)
        report = dataclasses.replace(
            report, ne_occluded=None, epe_px=alone.epe_px, pck=alone.pck, auc=alone.auc
        )
    assert report == alone
    assert report.counted["left_sleeve"] == 1


def test_landmark_at_the_origin_of_an_absent_slot_does_not_count():
    """(0, 0) written for an absent landmark, in a box that starts at 0, must not pass for a point."""
    predicted, truth = garment({"left_hem": (0, 0)}, box=(0, 0, 100, 200))
    truth.points[truth.visibility == Visibility.ABSENT] = 0
    assert report_of((predicted, truth)).counted == {n: int(n == "left_hem") for n in FASHION8.landmarks}


def test_ne_by_type_and_view():
    """A type's average is over its own rows; an unknown type or view counts for the whole alone."""
    report = report_of(
        garment({"left_hem": (10, 0), "left_collar": (30, 0)}, garment_type=1, view=0),
        garment({"left_hem": (50, 0)}, garment_type=2, view=2),
        garment({"left_hem": (90, 0)}, garment_type=-1, view=-1),
    )
    assert report.ne_by_type == {"upper": pytest.approx(0.2), "lower": pytest.approx(0.5), "full": None}
    assert report.ne_by_view == {"front": pytest.approx(0.2), "side": None, "back": pytest.approx(0.5)}
    assert report.ne_by_landmark["left_hem"] == pytest.approx(0.5)


# The longer side is 200: PCK asks for less than 40 px. AUC counts which of 0, 1.5 .. 28.5 px exceed it.
PIXEL_CASES = {
    "no error: above every threshold but 0": ((0.0, 0.0), 1.0, 19 / 20),
    "the threshold itself is a miss": ((40.0, 0.0), 0.0, 0.0),
    "just inside": ((39.9, 0.0), 1.0, 0.0),
    "15 px of 30: nine thresholds are larger": ((0.0, 15.0), 1.0, 9 / 20),
    "28.4 px: under the last threshold": ((28.4, 0.0), 1.0, 1 / 20),
}


@pytest.mark.parametrize(("offset", "pck", "auc"), PIXEL_CASES.values(), ids=PIXEL_CASES)
def test_pixel_scores_by_hand(offset, pck, auc):
    """Protects PCK@0.2 of the box's longer side, AUC up to 30 px and EPE in pixels."""
    report = report_of(garment({"left_hem": offset}))
    assert report.pck == pck
    assert report.auc == pytest.approx(auc)
    assert report.epe_px == pytest.approx(math.hypot(*offset), rel=1e-6)


def test_epe_is_pooled_and_pck_is_a_mean_over_landmarks():
    rows = [garment({"left_collar": (0, 0)})] * 3 + [garment({"left_hem": (0, 60)})]
    report = report_of(*rows)
    assert report.epe_px == pytest.approx(15)
    assert report.pck == pytest.approx(0.5)
    assert report.auc == pytest.approx(0.5 * 19 / 20)


def test_swapped_sides_are_confusion():
    """Every pair predicted on its partner is confusion 1, a perfect prediction is 0."""
    _, truth = random_rows(seed=11, rows=40)
    truth.visibility[:] = Visibility.VISIBLE
    points = truth.points.nan_to_num(5.0) + torch.arange(K)[:, None]
    truth = truth._replace(points=points)
    assert report_of((points, truth)).left_right_confusion == 0
    swapped = points[:, list(FASHION8.mirror)]
    assert report_of((swapped, truth)).left_right_confusion == 1


def test_confusion_asks_for_an_annotated_partner():
    """A lone landmark is not counted, one with an occluded partner is, one that is its own mirror never."""
    lone = garment({"left_hem": (20, 20)})
    assert report_of(lone).left_right_confusion is None
    # The second landmark stands 20 px further on both axes, so the first lands on it.
    pair = garment({"left_hem": (20, 20), "right_hem": (0, 0)}, {"right_hem": Visibility.OCCLUDED})
    assert report_of(pair).left_right_confusion == 1
    counters = Counters(Labels(LandmarkSet("two", ("left", "centre"), (0, 1), ())))
    unknown = torch.tensor([-1])
    box = torch.tensor([[0, 0, 9, 9]])
    truth = Truth(
        torch.ones(1, 2, 2), torch.zeros(1, 2).long(), box, unknown, unknown, unknown, torch.zeros(1, 0)
    )
    add(counters, torch.zeros(1, 2, 2), truth)
    assert counters.report().left_right_confusion is None
    assert counters.report().rows == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_scores_do_not_depend_on_the_split(seed, ranks):
    """The same rows, shuffled, in uneven batches over several ranks, summed as an all-reduce does."""
    predicted, truth = random_rows(seed, rows=101)
    counters = Counters(LABELS)
    add_all(counters, predicted, truth)
    whole = counters.report()
    g = torch.Generator().manual_seed(seed)
    parts = [Counters(LABELS) for _ in range(ranks)]
    for number, index in enumerate(torch.randperm(101, generator=g).split(13)):
        batch, batch_truth = take(predicted, truth, index)
        add_all(parts[number % ranks], batch, batch_truth)
    reduced = Counters(LABELS)
    reduced.load_vector(torch.stack([part.vector() for part in parts]).sum(dim=0))
    for part in parts[1:]:
        parts[0] += part
    for other in (reduced.report(), parts[0].report()):
        assert flat(other) == pytest.approx(flat(whole), abs=1e-12)
    assert whole.rows == 101


def flat(report: Report) -> dict[str, float]:
    fields = dataclasses.asdict(report)
    assert fields.pop("oks") is None, "only DeepFashion2's landmarks have it"
    assert fields.pop("boxes") is None, "only a detector has them"
    fields |= {f"recall.{at}": by_type for at, by_type in fields.pop("recall").items()}
    fields |= {f"seen.{name}": told for name, told in fields.pop("visibility_confusion").items()}
    nested = {f"{a}.{b}": v for a, d in fields.items() if isinstance(d, dict) for b, v in d.items()}
    for name in ("reliability", "sparsified"):
        curve = np.array(nested.pop(f"confidence.{name}")).ravel()
        nested |= {f"{name}.{i}": value for i, value in enumerate(curve)}
    values = {**{a: v for a, v in fields.items() if not isinstance(v, dict)}, **nested}
    assert None not in values.values()
    return values


def test_nothing_counted_is_null_not_a_division_by_zero():
    report = Counters(LABELS).report()
    assert report.rows == 0
    assert report.ne is None
    assert report.epe_px is None
    assert set(report.ne_by_landmark.values()) == {None}
    text = json.dumps(
        evaluation_json(report, dataset="fld", split="val", checkpoint="c", baseline=None), allow_nan=False
    )
    names = ("mean_position", "mean_position_by_type", "most_frequent")
    assert json.loads(text)["baseline"] == dict.fromkeys(names)


def test_prediction_that_is_not_a_number_is_an_error():
    """A diverged model must not be averaged away, nor hide where nothing is annotated: each such point is counted."""
    predicted, truth = garment({"left_hem": (0, 0)})
    assert report_of((predicted, truth)).ne == 0
    predicted[0, FASHION8.landmarks.index("left_collar"), 1] = math.nan
    with pytest.raises(UserError, match=r"1 predictions are not finite.* --learning-rate.* --precision fp32"):
        report_of((predicted, truth))
    predicted[0, FASHION8.landmarks.index("left_hem")] = math.inf
    with pytest.raises(UserError, match="4 predictions are not finite"):
        report_of((predicted, truth), (predicted, truth))


def test_an_annotation_that_is_not_a_number_is_an_error() -> None:
    """The model is not to blame for it."""
    predicted, truth = garment({"left_hem": (0, 0)})
    truth.points[:] = math.nan
    with pytest.raises(UserError, match="annotated landmarks are not finite"):
        report_of((predicted, truth))


def test_mean_position_by_hand():
    """Half-way in one box and a quarter in another mean 3/8; a type's own rows decide by type."""
    quarter = torch.tensor([0.25, 0.25], dtype=torch.float64)
    boxes = torch.tensor([[0, 0, 100, 200], [50, 50, 90, 90]], dtype=torch.float64)
    points = boxes[:, None, :2] + torch.stack([2 * quarter, quarter])[:, None] * torch.tensor(
        [[[100, 200]], [[40, 40]]]
    )
    points = points.repeat(1, K, 1)
    visibility = torch.zeros(2, K).long()
    visibility[:, 1] = Visibility.OCCLUDED
    means = MeanPosition(FASHION8)
    unknown = torch.tensor([-1, -1])
    means.update(Truth(points, visibility, boxes, torch.tensor([3, 1]), unknown, unknown, torch.zeros(2, 0)))
    box = torch.tensor([[0, 0, 80, 80]] * 3, dtype=torch.float64)
    types = torch.tensor([3, 1, 2])
    overall = means.predict(box, types, by_type=False)
    by_type = means.predict(box, types, by_type=True)
    assert torch.equal(overall[:, 0], torch.full((3, 2), 30.0, dtype=torch.float64))
    assert by_type[:, 0, 0].tolist() == [40, 20, 30], "an unseen type falls back to all rows"
    assert overall[0, 1].tolist() == [40, 40], "never seen visible: the box's middle"


def test_evaluation_json_keys():
    """The file's keys are a contract."""
    predicted, truth = random_rows(seed=3, rows=50)
    report = report_of((predicted, truth))
    baseline = fit_and_score([truth], [truth], LABELS, "category")
    assert baseline.mean_position_by_type.rows == 50
    value = evaluation_json(report, dataset="fld", split="val", checkpoint="there", baseline=baseline)
    assert value == json.loads(json.dumps(value, allow_nan=False))
    assert list(value) == [
        *(
            "dataset",
            "split",
            "rows",
            "checkpoint",
            "mirror",
            "ne",
            "counted",
            "ne_occluded",
            "pck",
            "auc",
            "epe",
        ),
        *(
            "left_right_confusion",
            "confidence",
            "visibility_f1",
            "garment_type_accuracy",
            "label",
            "accuracy",
            "attribute_recall",
            "baseline",
        ),
    ]
    assert list(value["ne"]) == [
        "average",
        "by_landmark",
        "by_type",
        "by_view",
        "intervals",
        "landmark_intervals",
    ]
    assert value["ne"]["average"] == report.ne
    assert list(value["counted"]) == list(FASHION8.landmarks)
    assert value["baseline"]["mean_position"] == baseline.mean_position.ne
    assert value["baseline"]["most_frequent"]["accuracy"]["top1"] > 0


def fine_grained(split: str) -> Truth:
    """The annotation lists of the fine-grained benchmark, whose slots are packed in the type's own order."""
    slots = np.loadtxt(ANNO_FINE / f"{split}_landmards.txt").reshape(-1, 8, 2)
    points = np.full(slots.shape, np.nan)
    garment_type = np.full(len(slots), -1)
    for row, used in enumerate(slots.any(axis=2)):
        if used.any():
            garment_type[row] = {0: 2, 1: 2, 2: 1, 3: 3}[int(np.flatnonzero(used).max()) // 2]
            own = FASHION8.garment_type(garment_type[row]).landmarks
            points[row, [own[i] for i in np.flatnonzero(used)]] = slots[row, used] + 0.5
    visibility = np.where(np.isnan(points[..., 0]), Visibility.ABSENT, Visibility.VISIBLE)
    box = np.loadtxt(ANNO_FINE / f"{split}_bbox.txt")
    unknown = np.full(len(slots), -1)
    columns = (points, visibility, box, garment_type, unknown, unknown, np.zeros((len(slots), 0)))
    return Truth(*map(torch.from_numpy, columns))


@pytest.mark.skipif(not ANNO_FINE.exists(), reason="the real photos' lists are not at ../shared/data")
def test_mean_position_of_the_real_annotations():
    """An independent computation of the same baselines on the same lists gave .177 and .149."""
    result = fit_and_score([fine_grained("train")], [fine_grained("val")], Labels(FASHION8), "category")
    assert isinstance(result, Baselines)
    assert result.mean_position.ne == pytest.approx(0.177, abs=5e-4)
    assert result.mean_position_by_type.ne == pytest.approx(0.149, abs=5e-4)
    assert result.mean_position.rows == 1000


def test_what_the_best_checkpoint_has_least_of():
    """NE where landmarks are predicted, else what is missing to the top-1 accuracy, else to the recall."""
    assert report_of(garment({"left_hem": (30, 80)})).error == pytest.approx(0.5)
    counters = Counters(LABELS)
    assert counters.report().error is None
    counters.add_attributes(torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[1.0, 0, 0, 0]]))
    assert counters.report().error == 0
    counters.add_classes(torch.eye(6)[:4], torch.tensor([0, 1, 2, 0]))
    assert counters.report().error == 0.25


@pytest.mark.parametrize("of", ["classes", "attributes"])
def test_answers_that_tell_nothing_score_nothing(of: str) -> None:
    """Equal answers find none of the k likeliest; answers that are no numbers are an error, and not all right."""
    four = tuple(Attribute(name, 1) for name in "abcd")
    counters = Counters(Labels(FASHION8, ("A", "B", "C", "D"), four, ("texture",)))

    def answer(value: float) -> None:
        if of == "classes":
            counters.add_classes(torch.full((2, 4), value), torch.tensor([0, 3]))
        else:
            counters.add_attributes(torch.full((2, 4), value), torch.eye(4)[:2])

    answer(0.5)
    assert counters.report().error == 1
    answer(math.nan)
    with pytest.raises(ValueError, match="diverged"):
        counters.report()


def test_most_frequent_labels_by_hand():
    """The train split's commonest class is right as often as the scored split has it; ties go to the first."""
    kinds = torch.full((6,), -1), torch.full((6,), -1)
    points, box = torch.full((6, K, 2), math.nan), torch.tensor([[0.0, 0, 9, 9]] * 6)
    visibility = torch.full((6, K), int(Visibility.ABSENT))

    def truth(category: list[int], attributes: list[list[float]]) -> Truth:
        return Truth(points, visibility, box, *kinds, torch.tensor(category), torch.tensor(attributes))

    # Of type 1, attributes 0 and 2: half of the rows have 2, none has 0.
    train = truth([4, 4, 4, 1, 1, -1], [[0, 0, 1, 0]] * 3 + [[0, 0, 0, 0]] * 2 + [[math.nan] * 4])
    val = truth([4, 1, 1, 0, 5, -1], [[0, 0, 1, 0]] * 6)
    result = fit_and_score([train], [val], LABELS, "category").most_frequent
    assert (result.rows, result.label, result.ne) == (6, "category", None)
    # In order: 4, 1, and then 0, 2, 3, 5, which nobody has.
    assert result.accuracy == {"top1": 0.2, "top3": 0.8, "top5": 0.8}
    assert result.recall["at3"] == {"texture": 1, "fabric": None, "mean": 1}


def test_visibility_is_scored_by_its_classes() -> None:
    """F1 by hand: of 3 visible ones 2 are found, one absent one is taken for visible, both occluded ones are found.

    Cut off and absent are one class. What is nowhere in the data has no score.
    """
    codes = torch.tensor([[0, 0, 0, 3, 2, 1, 1]])
    answers = torch.tensor([[0, 0, 1, 0, 2, 1, 1]])
    landmarks = tuple(f"p{i}" for i in range(7))
    labels = Labels(LandmarkSet("seven", landmarks, tuple(range(7)), ()))
    truth = Truth(*(torch.zeros(1) for _ in Truth._fields))._replace(visibility=codes)
    counters = Counters(labels)
    counters.add_visibility(torch.nn.functional.one_hot(answers, 3).float(), truth)
    found = counters.report().visibility_f1
    assert found["visible"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["occluded"] == pytest.approx(2 * 2 / (2 + 3))
    assert found["absent"] == pytest.approx(2 * 1 / (2 + 1))
    assert found["mean"] == pytest.approx((4 / 6 + 4 / 5 + 2 / 3) / 3)
    one = Counters(labels)
    one.add_visibility(torch.zeros(1, 7, 3), truth._replace(visibility=torch.zeros(1, 7, dtype=torch.int64)))
    assert one.report().visibility_f1 == {"visible": 1, "occluded": None, "absent": None, "mean": 1}


def test_garment_types_are_scored_where_they_are_annotated() -> None:
    """Of four, one of them unknown, two are right; a network that gives NaN has diverged."""
    counters = Counters(LABELS)
    logits = torch.eye(3)[[0, 1, 2, 2]]
    counters.add_garment_types(logits, torch.tensor([0, 0, 2, -1]))
    report = counters.report()
    assert report.garment_type_accuracy == report.numbers()["garment_type_accuracy"] == pytest.approx(2 / 3)
    assert Counters(LABELS).report().garment_type_accuracy is None
    counters.add_garment_types(torch.full((1, 3), math.nan), torch.tensor([-1]))
    with pytest.raises(UserError, match="3 predictions are not finite"):
        counters.report()
