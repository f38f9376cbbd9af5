"""A real browser without a window: Debian's Chromium, driven by Selenium. It says what a page did and how it looks."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

#: What Chromium would otherwise do by itself: ask for updates, translate, offer to store passwords.
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
)
#: Schemes of requests that do not leave the page.
WITHIN = ("data:", "blob:", "about:", "chrome:")


@dataclass(frozen=True)
class Seen:
    """What a page did since it was opened, and how it is laid out."""

    errors: list[str]
    """What its console says of level SEVERE: errors of scripts, refused and failed requests."""
    requests: list[str]
    """URLs that were asked for, but for the page's own file and what it holds itself (``data:``)."""
    pictures: int
    missing: list[str]
    """The pictures that do not show: the beginning of their addresses."""
    overflow: int
    """By how many pixels the page is wider than the window."""


class Browser:
    """A browser with one page open."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, page: Path | str, width: int = 1400, height: int = 1000, *, dark: bool = False) -> None:
        """Open a file, or a URL, in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        # A window of its own has at least 500 pixels.
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # and forget what was before
        self.driver.get(page.absolute().as_uri() if isinstance(page, Path) else page)

    def see(self) -> Seen:
        """Return what the page did. All of its pictures are decoded, folded ones too."""
        pictures: list[list[Any]] = self.driver.execute_async_script(
            """
            const done = arguments[0], pictures = [...document.images];
            Promise.allSettled(pictures.map(p => p.decode())).then(() =>
                done(pictures.map(p => [p.naturalWidth, p.src.slice(0, 80)])));
            """
        )
        overflow = self.run(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        asked = [
            message["params"]["request"]["url"]
            for message in self._messages()
            if message["method"] == "Network.requestWillBeSent"
        ]
        page = self.driver.current_url.partition("#")[0]
        return Seen(
            errors=[
                entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"
            ],
            requests=[url for url in asked if not url.startswith(WITHIN) and url.partition("#")[0] != page],
            pictures=len(pictures),
            missing=[source for natural, source in pictures if not natural],
            overflow=overflow,
        )

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, seconds: float = 20) -> Any:
        """Run JavaScript until it returns something that is true, and return that: for pages that build themselves."""
        return WebDriverWait(self.driver, seconds, 0.1).until(lambda _: self.run(script))

    def screenshot(self, file: Path) -> None:
        """Store what the window shows as a PNG."""
        assert self.driver.save_screenshot(str(file))

    def _messages(self) -> Iterator[dict[str, Any]]:
        for entry in self.driver.get_log("performance"):
            yield json.loads(entry["message"])["message"]


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser; the test is skipped where there is none."""
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip(
            "no Chromium: `make test-cluster` installs the system packages chromium and chromium-driver by apt"
        )
    options = ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in ("--headless=new", *QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(str(programs[1])))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
