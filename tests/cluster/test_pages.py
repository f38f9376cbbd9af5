"""HTML pages in a real browser: they show all there is, ask for nothing, and fit on a phone."""

import socket
from pathlib import Path

import pytest

from glefld import pages
from jobs.inspect import Options, run
from tests import doubtful
from tests.browser import Browser
from tests.example_page import example_page


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "example.html"
    file.write_text(pages.html(example_page()))
    return file


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``glefld inspect`` makes of a data set with mistakes."""
    folder = tmp_path_factory.mktemp("inspected")
    run(Options(data=doubtful.write_dataset(folder), root=str(folder), output=str(folder / "page.html")))
    return folder / "page.html"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 400])
def test_a_page_shows_all_and_asks_for_nothing(
    browser: Browser, example: Path, width: int, dark: bool
) -> None:
    browser.open(example, width, dark=dark)
    seen = browser.see()
    assert not seen.errors
    assert not seen.requests
    assert not seen.missing
    assert seen.pictures == 12
    assert seen.overflow == 0
    light = browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light != dark


def test_the_browser_sees_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    """A page that loads a picture, lacks another, has a script that fails and is too wide."""
    file = tmp_path / "wrong.html"
    file.write_text(
        '<body style="margin: 0"><img src="http://127.0.0.1:9/a.png"><img src="data:image/png;base64,AAAA">'
        '<div style="width: 700px">wide</div><script>missing()</script>'
    )
    browser.open(file, 400)
    seen = browser.see()
    assert seen.requests == ["http://127.0.0.1:9/a.png"]
    assert seen.pictures == len(seen.missing) == 2
    assert seen.overflow == 300
    assert any("missing is not defined" in error for error in seen.errors)


def test_the_pages_policy_stops_requests(browser: Browser, tmp_path: Path) -> None:
    """Even markup that had slipped in could neither load nor run anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.png"
        slipped = f'<img src="{address}"><script>document.title = "ran"</script>'
        file = tmp_path / "forced.html"
        file.write_text(pages.html(example_page()).replace("<main>", f"<main>{slipped}"))
        browser.open(file)
        seen = browser.see()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has connected
            server.accept()
    assert seen.missing == [address]
    assert len(seen.errors) == 2  # picture and script, refused
    assert browser.driver.title != "ran"


@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_about_a_data_set(browser: Browser, inspected: Path, width: int) -> None:
    browser.open(inspected, width)
    seen = browser.see()
    assert not seen.errors
    assert not seen.requests
    assert not seen.missing
    assert seen.pictures > 20
    assert seen.overflow == 0
    links = browser.run("return [...document.querySelectorAll('nav a')].map(a => a.hash)")
    assert links == [
        "#augmentation",
        "#garments",
        "#landmarks",
        "#left-and-right",
        "#places",
        "#copies",
        "#rejects",
    ]
    assert browser.run("return arguments[0].every(l => document.querySelector(l))", links)
