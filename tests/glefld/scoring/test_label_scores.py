"""Scores of classes and attributes against hand-computed cases."""

import json
import math

import pyarrow as pa
import pytest
import torch

from glefld.data.truth import Truth
from glefld.schema import FASHION8, NO_LANDMARKS, VIEWS, Attribute, Labels, sample_schema
from glefld.scoring.baselines import fit_and_score
from glefld.scoring.evaluation import evaluation_json
from glefld.scoring.metrics import Counters

LABELS = Labels(FASHION8, categories=("Blouse", "Jeans", "Robe", "Skirt", "Tee", "Top"))


def test_class_ranks_by_hand():
    """The true class counts within the top k; among equal logits it comes last; an unknown class is not counted."""
    counters = Counters(LABELS)
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]])
    for target in (0, 2, 4, 5, -1):
        counters.add_classes(logits, torch.tensor([target]))
    assert counters.report().accuracy == {"top1": 0.25, "top3": 0.5, "top5": 0.75}
    ties = Counters(LABELS)
    ties.add_classes(torch.zeros(1, 6), torch.tensor([0]))
    assert ties.report().accuracy == {"top1": 0, "top3": 0, "top5": 0}


def test_attribute_recall_by_hand():
    """By type among its own k highest logits, and the mean of the types that occur; unknown rows are left out."""
    types = (1, 1, 1, 1, 1, 2, 3)
    labels = Labels(FASHION8, attributes=tuple(Attribute(f"a{i}", t) for i, t in enumerate(types)))
    counters = Counters(labels)
    logits = torch.tensor([[5.0, 4, 3, 2, 1, -9, 0]])
    counters.add_attributes(logits, torch.tensor([[1.0, 0, 0, 1, 1, 0, 0]]))
    counters.add_attributes(logits, torch.tensor([[0.0, 0, 0, 0, 0, 1, 0]]))
    counters.add_attributes(logits, torch.full((1, 7), math.nan))
    recall = counters.report().recall
    # Two of four attributes are found, but by type a third and all of them.
    third = pytest.approx(1 / 3)
    assert recall["at3"] == {"type 1": third, "type 2": 1, "type 3": None, "mean": pytest.approx(2 / 3)}
    assert recall["at5"] == {"type 1": 1, "type 2": 1, "type 3": None, "mean": 1}


def test_a_data_set_of_classes_alone():
    """No landmarks: counters, baselines and the JSON have nothing to say of them and all to say of classes."""
    labels = Labels(NO_LANDMARKS, ("blue", "red"))
    row = {
        **{"sample_id": "a", "source_uri": "a", "source_width": 30, "source_height": 20},
        **{"photo_hash": bytes(16), "image": b"", "image_width": 30, "image_height": 20},
        **{"box": [0, 0, 30, 20], "crop_box": [0, 0, 30, 20], "landmarks": [], "visibility": []},
    }
    rows = [row | {"category": category} for category in (2, 2, 1)]
    truth = Truth.from_arrow(pa.Table.from_pylist(rows, sample_schema(NO_LANDMARKS)), labels)
    assert (truth.points.shape, truth.visibility.shape) == ((3, 0, 2), (3, 0))
    counters = Counters(labels)
    counters.add_rows(3)
    counters.add_landmarks(torch.zeros(3, 0, 2), truth)
    counters.add_classes(torch.eye(2)[[1, 0, 0]], truth.category)
    report = counters.report()
    assert report.ne is None
    assert report.error == pytest.approx(1 / 3)
    baseline = fit_and_score([truth], [truth], labels, "category")
    assert baseline.most_frequent.accuracy["top1"] == pytest.approx(2 / 3)
    value = evaluation_json(report, dataset="image-folder", split="val", checkpoint="c", baseline=baseline)
    assert value == json.loads(json.dumps(value, allow_nan=False))
    nothing = {"average": None, "intervals": {}, "landmark_intervals": {}, "by_landmark": {}, "by_type": {}}
    assert value["ne"] == nothing | {"by_view": dict.fromkeys(VIEWS)}
    assert value["baseline"]["most_frequent"]["accuracy"]["top1"] == pytest.approx(2 / 3)
    assert report.numbers().keys() == {f"accuracy_top{k}" for k in (1, 3, 5)}
