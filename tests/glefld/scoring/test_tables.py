"""The published tables as data, and that they are never taken for ours."""

import io

import pytest
import rich.console
import torch

from glefld.schema import FASHION8, NO_LANDMARKS, Attribute, ClassLabel, Labels, LandmarkSet
from glefld.scoring.baselines import Baselines
from glefld.scoring.metrics import Counters, Report
from glefld.scoring.published import DEEPFASHION, FLD, Published, published
from glefld.scoring.published import LABELS as PUBLISHED_LABELS
from glefld.scoring.tables import pose_lines, score_tables


def report(landmark_set: LandmarkSet = FASHION8, ne: float = 0.0123) -> Report:
    """What a run reports whose every landmark has this NE."""
    counters = Counters(Labels(landmark_set))
    counters.sums["visible"] += 1
    counters.sums["ne"] += ne
    counters.sums["rows"] += 7
    return counters.report()


def text(*args) -> str:
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(score_tables(*args))
    return console.export_text()


@pytest.mark.parametrize("system", [*FLD, *DEEPFASHION], ids=lambda s: s.system)
def test_averages_agree_with_their_landmarks(system: Published):
    """A mistyped digit shows: each printed average is near its landmarks' mean, DFA's on FLD alone is not."""
    values = [v for v in system.by_landmark if v is not None]
    if values:
        slack = 0.002 if len(values) < len(FASHION8) else 0.0003
        assert system.average == pytest.approx(sum(values) / len(values), abs=slack)


def test_table_tells_published_from_measured():
    """Papers' rows stand under "published", ours and the baselines under "measured here", in 80 columns."""
    printed = text("deepfashion", report(), Baselines(report(ne=0.177), report(ne=0.149), report()))
    above, ours = printed.split("measured here")
    assert "published" in above
    for system in DEEPFASHION:
        line = next(x for x in above.splitlines() if x.startswith(f"  {system.system} "))
        figures = (*system.by_landmark, system.average)
        assert line.removeprefix(f"  {system.system}").split() == [
            "-" if v is None else f"{v:.4f}"[1:] for v in figures
        ]
        assert system.system not in ours
    assert next(x for x in ours.splitlines() if "mean by type" in x).count(".1490") == 9
    assert next(x for x in ours.splitlines() if "this run" in x).count(".0123") == 9
    assert "published: the papers' figures" in ours


def test_table_of_landmarks_that_nobody_published():
    """A user's own landmarks get no published rows; too many for a terminal leave the average."""
    own = LandmarkSet("own", ("tip", "heel"), (0, 1), ())
    printed = text("fld", report(own))
    assert "published" not in printed
    assert "heel" in printed
    many = LandmarkSet("many", tuple(f"point_{i}" for i in range(294)), tuple(range(294)), ())
    assert published("fld", many.landmarks) == ()
    printed = text("fld", report(many))
    assert "point" not in printed
    assert ".0123" in printed


def test_rendered_photos_stand_beside_no_published_figure():
    """And the table says what they are."""
    printed = text("fld (rendered)", report(), Baselines(report(ne=0.177), report(ne=0.149), report()))
    assert "normalised error on fld (rendered)" in printed
    assert "photos made by glefld synthesize: not comparable with any published figure" in printed
    assert not any(system.system in printed for system in FLD)
    assert pose_lines("fld (rendered)") == []


def test_nothing_counted_is_a_dash():
    printed = text("fld", Counters(Labels(FASHION8)).report())
    (ours,) = [line for line in printed.splitlines() if "this run" in line]
    assert ours.split().count("-") == 9


TYPES = ("texture", "fabric", "shape", "part", "style")
LABELS = Labels(
    FASHION8,
    tuple(f"category {i}" for i in range(46)),
    tuple(Attribute(f"a{i}", i % 5 + 1) for i in range(50)),
    TYPES,
)


def labelled(
    labels: Labels = LABELS, label: ClassLabel = "category", first: int = 0, ne: float | None = None
) -> Report:
    """What a run reports that finds ``first`` and 11, 31, 51 of 100 classes, ``first`` and 30, 50 of 100 attributes."""
    counters = Counters(labels, label)
    counters.add_rows(100)
    counters.sums["classified"] += 100
    counters.sums["top"] += torch.tensor([first + 11, first + 31, first + 51])
    if labels.attributes:
        counters.sums["true_attributes"] += 100
        counters.sums["recalled"] += torch.tensor([[first + 30.0], [first + 50]])
    if ne is not None:
        counters.sums["visible"] += 1
        counters.sums["ne"] += ne
    return counters.report()


def lines(printed: str, system: str) -> list[list[str]]:
    """The figures of a system's lines: its own, and those that follow without a name."""
    found = []
    for line in printed.splitlines():
        named = line.startswith(f"  {system} ")
        if named or (found and line.startswith("    ")):
            found.append(line.removeprefix(f"  {system}").split())
        elif found:
            break
    return found


def test_classifiers_get_a_table_of_labels():
    """No NE for a classifier: k, accuracy and recall by type; published ones apart, in the order of the paper."""
    printed = text("deepfashion", labelled(), Baselines(report(), report(), labelled(first=2)))
    assert "normalised error" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    above, ours = printed.split("measured here")
    assert "published" in above
    (header,) = [line.split() for line in above.splitlines() if "texture" in line]
    assert header == ["system", "k", "category", *TYPES, "mean"]
    assert lines(above, "Liu & Lu") == [
        ["3", ".9116", ".5617", ".4320", ".5828", ".4697", ".6882", ".5469"],
        ["5", ".9612", ".6583", ".5352", ".6780", ".5742", ".7413", ".6374"],
    ]
    assert lines(ours, "this run") == [
        ["1", ".1100", *["-"] * 6],
        ["3", ".3100", *[".3000"] * 6],
        ["5", ".5100", *[".5000"] * 6],
    ]
    assert lines(ours, "most frequent")[1] == ["3", ".3300", *[".3200"] * 6]
    assert "published: the papers' figures" in ours
    assert "mean: the plain mean of the types" in ours


def test_a_model_of_landmarks_and_labels_gets_both_tables():
    printed = text("deepfashion", labelled(ne=0.0123))
    assert printed.index("normalised error") < printed.index("top-k accuracy and recall")
    assert printed.count("this run") == 2


def test_classes_that_nobody_published():
    """Garment types are not the published categories, and an image folder's classes are its own."""
    plain = Labels(FASHION8)
    folder = Labels(NO_LANDMARKS, ("blue", "green", "red"))
    for dataset, labels, label in (
        ("deepfashion", plain, "garment_type"),
        ("image-folder", folder, "category"),
    ):
        printed = text(dataset, labelled(labels, label))
        assert "published" not in printed
        assert label.replace("_", " ") in printed
        assert lines(printed, "this run") == [["1", ".1100"], ["3", ".3100"], ["5", ".5100"]]


@pytest.mark.parametrize("k", [3, 5])
def test_the_published_recall_is_the_types_plain_mean(k: int):
    """As ours is; a mistyped digit shows."""
    found = PUBLISHED_LABELS["deepfashion"][0].found[k]
    assert found["mean"] == pytest.approx(sum(found[name] for name in TYPES) / len(TYPES), abs=5e-5)


def test_published_pose_scores_stand_by_type() -> None:
    """FLD's three lines, each marked as not ours; nothing for a data set that has none."""
    lines = pose_lines("fld")
    assert len(lines) == 3
    assert all("not ours" in line for line in lines)
    assert "pck 0.961 auc 0.609 epe 15.1" in lines[0]
    assert pose_lines("deepfashion-fine") == []
