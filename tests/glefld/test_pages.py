"""What is in a page's file. ``tests/cluster/test_pages.py`` looks at one in a browser."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from glefld import pages
from glefld.pages import Page, Section, Table
from tests.example_page import HOSTILE, chart, example_page, pictures

#: Elements without an end.
VOID = {"meta", "link", "img"}


class Parsed(HTMLParser):
    """Elements of a file, and whether each is closed where it belongs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def file() -> str:
    return pages.html(example_page())


def test_names_are_text_whatever_they_are(file: str) -> None:
    parsed = Parsed(file)
    assert parsed.text.count(HOSTILE) == 5  # title twice, a finding, a fact, a cell
    assert "script" not in {tag for tag, _ in parsed.elements}


def test_nothing_is_asked_for_and_the_policy_forbids_it(file: str) -> None:
    elements = Parsed(file).elements
    addresses = [value or "" for _, a in elements for name, value in a.items() if name in ("src", "href")]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in file
    assert "@import" not in file
    policy = [a["content"] for tag, a in elements if "Content-Security-Policy" in (a.get("http-equiv") or "")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_links_lead_to_sections(file: str) -> None:
    elements = Parsed(file).elements
    places = {a["id"] for _, a in elements if "id" in a}
    links = [a["href"] for tag, a in elements if tag == "a"]
    assert links == ["#what-is-in-it", "#label-mistakes", "#label-mistakes"]
    assert {f"#{place}" for place in places} == set(links)


def test_equal_pages_are_equal_bytes(file: str) -> None:
    assert pages.html(example_page()) == file


def test_pictures_come_with_their_size(file: str) -> None:
    found = [a for tag, a in Parsed(file).elements if tag == "img"]
    assert len(found) == 3 + 7 + 2
    for attributes in found[3:]:
        data = base64.b64decode((attributes["src"] or "").partition("base64,")[2])
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "WEBP"
            assert [str(side) for side in image.size] == [attributes["width"], attributes["height"]]


def test_a_chart_of_many_marks_is_stored_as_pixels() -> None:
    few, many = pages.chart_url(chart(10)), pages.chart_url(chart(4_000))
    assert few.startswith("data:image/svg+xml;base64,")
    assert many.startswith("data:image/webp;base64,")
    assert len(many) < 2 * pages.MOST_SVG


def test_columns_of_numbers_are_found() -> None:
    rows = [
        ["upper", 1, ".061", "12 %", "2 to 3", "-1.5", None],
        ["3 landmarks", 2.5, "–", "", "<1", "+2", 1],
    ]
    table = Table(["a", "b", "c", "d", "e", "f", "g"], rows)
    assert table.numeric == [False, True, True, True, True, True, True]
    assert not any(Table(["a", "b"], []).numeric)


def test_cells_have_one_form() -> None:
    page = Page("t", "", [Table(["n"], [[1234567], [0.123456], [None], ["as it is"]])], [])
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", pages.html(page))
    assert cells == ["1,234,567", "0.123", "–", "as it is"]


def test_two_sections_of_one_name_are_refused() -> None:
    with pytest.raises(AssertionError, match="one title"):
        pages.html(Page("t", "", [], [Section("A b", []), Section("a-B", [pictures(1)])]))


@pytest.mark.parametrize(
    ("number", "noun", "words"), [(1, "row", "1 row"), (0, "row", "0 rows"), (2000, "box", "2,000 boxes")]
)
def test_a_noun_agrees_with_its_number(number: int, noun: str, words: str) -> None:
    assert pages.count(number, noun) == words
