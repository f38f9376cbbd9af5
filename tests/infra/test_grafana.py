"""The dashboard: read by Grafana's own classes, and of the metrics that there are.

What its queries give is looked at in tests/cluster/test_metrics.py.
"""

import copy
import json
import re
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.infra.rendered import INFRA, ROOT, render


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((INFRA / "grafana/glefld.json").read_text())


def unknown(mine: Any, theirs: Any, where: str = "") -> set[str]:
    """Where a value is not what Grafana's classes make of it: what they do not know, they leave out."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return {path for key in mine for path in unknown(mine[key], theirs.get(key), f"{where}.{key}")}
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return {path for i, (a, b) in pairs for path in unknown(a, b, f"{where}[{i}]")}
    return set() if mine == theirs else {where}


def read(content: dict[str, Any]) -> set[str]:
    register_default_plugins()
    encoded = json.dumps(Dashboard.from_json(copy.deepcopy(content)), cls=JSONEncoder)
    return unknown(content, json.loads(encoded))


def test_grafanas_classes_know_every_field(dashboard: dict[str, Any]) -> None:
    assert read(dashboard) == set()
    spoiled = copy.deepcopy(dashboard)
    spoiled["panels"][1]["fieldConfigs"] = spoiled["panels"][1].pop("fieldConfig")
    spoiled["panels"][2]["targets"][0]["expression"] = "up"
    assert read(spoiled) == {".panels[1].fieldConfigs", ".panels[2].targets[0].expression"}


def test_panels_lie_beside_one_another(dashboard: dict[str, Any]) -> None:
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, panel["title"]
                taken.add((x, y))
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))


def test_all_our_metrics_are_drawn_and_no_others(dashboard: dict[str, Any]) -> None:
    ours = set(re.findall(r'"(glefld_\w+)"', (ROOT / "pipelines/metrics.py").read_text()))
    drawn = set(re.findall(r"ray_(glefld_[a-z_]+?)(?:_bucket)?\b", json.dumps(dashboard)))
    assert drawn == ours


def test_kubernetes_gives_the_same_dashboard(dashboard: dict[str, Any]) -> None:
    (config,) = [document for document in render("monitoring") if document["kind"] == "ConfigMap"]
    assert json.loads(config["data"]["glefld.json"]) == dashboard
    assert config["metadata"]["labels"] == {"grafana_dashboard": "1"}
