"""The pages that `glefld evaluate --report` writes, in a real browser: of landmarks and of a detector."""

from pathlib import Path

import pytest

from jobs import evaluate
from tests import boxed, dots
from tests.browser import Browser

#: By kind of model, how many charts its page has, and a section of its own.
CHARTS = {"landmarks": (5, "left-and-right"), "detector": (3, "worst-photos")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> dict[str, Path]:
    """The pages of a landmark model, with detected boxes too, and of the detector."""
    root = tmp_path_factory.mktemp("root")
    data = boxed.write_dataset(root / "data" / "fld", {"train": 24, "val": 30})
    boxed.train_detector(data, str(root / "runs" / "finder"))
    models = {
        "landmarks": dots.write_checkpoint(str(root / "landmarks")),
        "detector": str(root / "runs" / "finder"),
    }
    for name, url in models.items():
        boxes = "detect" if name == "landmarks" else "true"
        options = evaluate.Options(
            "fld", url, "val", root=str(root), report=f"{root}/{name}.html", boxes=boxes
        )
        evaluate.run(options)
    return {name: root / f"{name}.html" for name in models}


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("model", CHARTS)
def test_the_page_shows_all_and_fits(
    browser: Browser, written: dict[str, Path], model: str, width: int
) -> None:
    charts, section = CHARTS[model]
    browser.open(written[model], width)
    seen = browser.see()
    assert not seen.errors
    assert not seen.requests
    assert not seen.missing
    assert seen.pictures == charts + 24
    assert seen.overflow == 0
    assert written[model].stat().st_size < 2_000_000
    links = browser.run("return [...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.hash.slice(1))")
    assert section in links
    assert all(browser.run("return !!document.getElementById(arguments[0])", link) for link in links)
