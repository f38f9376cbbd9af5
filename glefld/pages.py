"""Reports as HTML pages: one file with all of its pictures, to be mailed, logged to MLflow or opened from a disk.

A page has sections, and a section has parts: text, key numbers, tables, charts, pictures. ``html`` makes the file's
text of them. Names and texts may be anything, as they are escaped. The page holds no script, and its policy forbids
the browser to load anything: no request leaves it. Equal pages are equal bytes.
"""

import base64
import dataclasses
import functools
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import jinja2
from PIL import Image

if TYPE_CHECKING:
    import matplotlib.figure

#: Of pictures, as WebP: photos of 256 pixels have some 10 kB.
QUALITY = 80
#: A chart whose drawing has more bytes is stored as pixels instead, so that a page of many marks stays small.
MOST_SVG = 150_000
#: Pixels of a page in an inch of a chart, and of a stored chart in one of the page.
PIXELS_AN_INCH = 96
DENSITY = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclasses.dataclass(frozen=True)
class Number:
    """A key number: what it is, its value as text, and what to compare it with."""

    name: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Key numbers in a row."""

    numbers: Sequence[Number]
    kind: ClassVar[str] = "numbers"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and values in two columns: what was scored or read, and how."""

    facts: Mapping[str, str]
    kind: ClassVar[str] = "facts"


@dataclasses.dataclass(frozen=True)
class Point:
    """One finding, and the title of the section that shows it, which it links to."""

    text: str
    section: str = ""


@dataclasses.dataclass(frozen=True)
class Points:
    """Findings as a list."""

    points: Sequence[Point]
    kind: ClassVar[str] = "points"


@dataclasses.dataclass(frozen=True)
class Bar:
    """A table's cell that is also drawn: as long as its share, 0 to 1."""

    share: float
    text: str


Cell = str | int | float | Bar | None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table. Columns of numbers, also of such as text, are aligned on the right; None is a dash.

    Whole numbers are written with commas, others with three digits: give text for another form.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.head) for row in self.rows), "a row of another length than the head"

    @property
    def numeric(self) -> list[bool]:
        """By column, whether it holds numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else [[""]] * len(self.head)
        return [
            all(map(_is_number, column)) and any(cell not in ("", None) for cell in column)
            for column in columns
        ]


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart. Make it 5 to 6 inches wide: two of them are side by side on a wide screen, and one on a phone.

    coloured: its colours are values, as in a map of counts; then they stay in dark mode, where lines and letters of
    other charts turn light.
    """

    figure: "matplotlib.figure.Figure"
    caption: str = ""
    coloured: bool = False
    kind: ClassVar[str] = "chart"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with a caption, and more about it in small letters: ids, places."""

    image: Image.Image
    caption: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures in rows, as many in each as there is room for.

    width: of each on the page, in pixels. The pictures may have more, for dense screens. On a phone there are two of up
    to 300 pixels in a row.
    """

    pictures: Sequence[Picture]
    width: int = 220
    kind: ClassVar[str] = "pictures"


@dataclasses.dataclass(frozen=True)
class Fold:
    """Parts that are shown when their title is clicked: long tables, and what few look at."""

    title: str
    parts: Sequence["Part"]
    open: bool = False
    kind: ClassVar[str] = "fold"


Part = Text | Numbers | Facts | Points | Table | Chart | Pictures | Fold


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled section. Titles are unique on a page."""

    title: str
    parts: Sequence[Part]


@dataclasses.dataclass(frozen=True)
class Page:
    """A page: its title, a line below it, parts above all sections, and the sections."""

    title: str
    line: str
    parts: Sequence[Part]
    sections: Sequence[Section]


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    plural = noun + ("es" if noun.endswith("x") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def html(page: Page) -> str:
    """Return the page as the text of an HTML file."""
    titles = [section.title for section in page.sections]
    assert len({slug(title) for title in titles}) == len(titles), "two sections of one title"
    return _template().render(page=page)


def slug(title: str) -> str:
    """Return the name of a section within its page's address: ``page.html#slug``."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def picture_url(image: Image.Image) -> str:
    """Return a picture as a ``data:`` URL, in WebP."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "WEBP", quality=QUALITY)
    return _data_url("image/webp", file.getvalue())


def chart_url(chart: Chart) -> str:
    """Return a chart as a ``data:`` URL: SVG, or pixels if that would be large. Its figure is not changed."""
    import matplotlib

    look = {"transparent": not chart.coloured, "bbox_inches": None}
    file = io.BytesIO()
    # Names within the drawing come from its content, not from chance; letters are shapes, as fonts differ.
    with matplotlib.rc_context({"svg.hashsalt": "glefld", "svg.fonttype": "path"}):
        chart.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, **look)
    if file.tell() <= MOST_SVG:
        return _data_url("image/svg+xml", file.getvalue())
    file = io.BytesIO()
    chart.figure.savefig(file, format="webp", dpi=PIXELS_AN_INCH * DENSITY, **look)
    return _data_url("image/webp", file.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _chart_size(chart: Chart) -> list[int]:
    """Width and height on the page."""
    return [round(inches * PIXELS_AN_INCH) for inches in chart.figure.get_size_inches()]


def _is_number(cell: Cell) -> bool:
    return (
        cell is None
        or isinstance(cell, int | float)
        or (isinstance(cell, str) and bool(NUMERIC.fullmatch(cell)))
    )


#: Text that is a number, or nothing: 1,200, -3, .061 (95 %), 0.1 to 0.3, a dash.
NUMERIC = re.compile(r"(?:[\d\s.,%()<>±+−–-]|to|of)*")


def _cell(cell: str | int | float | None) -> str:
    """A cell's text."""
    match cell:
        case None:
            return "–"
        case str():
            return cell
        case int():
            return f"{cell:,}"
        case _:
            return f"{cell:.3g}"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "slug": slug,
        "picture_url": picture_url,
        "chart_url": chart_url,
        "chart_size": _chart_size,
        "cell": _cell,
        "is_bar": lambda cell: isinstance(cell, Bar),
    }
    return environment.from_string(TEMPLATE.replace("STYLE", STYLE))


STYLE = """
:root { color-scheme: light dark; --back: #fff; --card: #f5f6f8; --ink: #1d2025; --soft: #5c6470; --line: #dfe3e8;
  --mark: #2b6cb0; --bar: #bcd3ee; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --card: #20242a; --ink: #e6e9ed; --soft: #9ca5b1;
  --line: #333941; --mark: #82b4ec; --bar: #2f4f74; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 1240px; padding: 0 20px 4rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 2rem 0 .25rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 75ch; }
.line, .note, figcaption, caption { color: var(--soft); }
a { color: var(--mark); }
nav { position: sticky; top: 0; z-index: 1; margin: 1rem -20px; padding: .5rem 20px; background: var(--back);
  border-bottom: 1px solid var(--line); display: flex; gap: .25rem 1.25rem; overflow-x: auto; white-space: nowrap; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(160px, 100%), 1fr)); gap: .75rem;
  margin: 1rem 0; }
.numbers div { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.numbers dt { color: var(--soft); font-size: .85rem; }
.numbers dd { margin: 0; font-size: 1.6rem; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.numbers dd.note { font-size: .8rem; font-weight: 400; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; margin: 1rem 0;
  font-size: .9rem; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; }
.points { padding-left: 1.2rem; max-width: 80ch; }
.points li { margin: .3rem 0; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; padding-bottom: .4rem; font-size: .9rem; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
th.right, td.right { text-align: right; white-space: nowrap; }
td.bar { min-width: 9rem; white-space: nowrap;
  background: linear-gradient(90deg, var(--bar) var(--share), transparent 0); }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
figure { margin: 1rem 0; min-width: 0; }
figcaption { font-size: .85rem; line-height: 1.35; margin-top: .3rem; }
img { display: block; max-width: 100%; height: auto; }
.chart { flex: 0 1 auto; max-width: 100%; }
.chart figcaption { max-width: 60ch; }
.coloured { background: #fff; }
.pictures { display: grid; gap: 1rem; margin: 1rem 0; }
.pictures figure { margin: 0; }
.pictures img { width: 100%; border-radius: 4px; }
.pictures.small img { max-height: 340px; object-fit: contain; object-position: left; }
.pictures .note { display: block; font-size: .72rem; }
details { margin: .75rem 0; border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
@media (prefers-color-scheme: dark) { .chart img:not(.coloured) { filter: invert(.92) hue-rotate(180deg); } }
@media (max-width: 600px) { body { padding: 0 14px 3rem; } nav { margin: 1rem -14px; padding: .5rem 14px; }
  .facts { grid-template-columns: minmax(0, 1fr); } .facts dd { margin-bottom: .4rem; }
  .pictures.small { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; gap: .6rem; }
  th, td { padding: .3rem .5rem; } }
@media print { :root { color-scheme: light; --back: #fff; --card: #f5f6f8; --ink: #000; --soft: #444; --line: #ccc;
  --mark: #000; --bar: #ccd8e6; } nav { display: none; } body { max-width: none; font-size: 10pt; }
  .chart img:not(.coloured) { filter: none; } figure, tr, .numbers div { break-inside: avoid; }
  h2 { break-after: avoid; } * { print-color-adjust: exact; } }
"""

TEMPLATE = """\
{% macro show(parts) %}
{% for part in parts %}
{% if part.kind == "text" %}
<p>{{ part.text }}</p>
{% elif part.kind == "numbers" %}
<dl class="numbers">
{% for number in part.numbers %}
<div><dt>{{ number.name }}</dt><dd>{{ number.value }}</dd>
{% if number.note %}
<dd class="note">{{ number.note }}</dd>
{% endif %}
</div>
{% endfor %}
</dl>
{% elif part.kind == "facts" %}
<dl class="facts">
{% for name, value in part.facts.items() %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% elif part.kind == "points" %}
<ul class="points">
{% for point in part.points %}
<li>{{ point.text }}{% if point.section %} <a href="#{{ point.section|slug }}">{{ point.section }}</a>{% endif %}</li>
{% endfor %}
</ul>
{% elif part.kind == "table" %}
{% set numeric = part.numeric %}
<div class="scroll"><table>
{% if part.caption %}
<caption>{{ part.caption }}</caption>
{% endif %}
<thead><tr>
{% for name in part.head %}
<th scope="col" class="{{ "right" if numeric[loop.index0] }}">{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in part.rows %}
<tr>
{% for cell in row %}
{% if cell|is_bar %}
<td class="bar" style="--share: {{ "%.1f"|format(100 * cell.share) }}%">{{ cell.text }}</td>
{% else %}
<td class="{{ "right" if numeric[loop.index0] }}">{{ cell|cell }}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% elif part.kind == "chart" %}
{% if loop.first or parts[loop.index0 - 1].kind != "chart" %}
<div class="charts">
{% endif %}
{% set size = part|chart_size %}
<figure class="chart">
<img class="{{ "coloured" if part.coloured }}" src="{{ part|chart_url }}" width="{{ size[0] }}" height="{{ size[1] }}"
alt="{{ part.caption or "chart" }}">
{% if part.caption %}
<figcaption>{{ part.caption }}</figcaption>
{% endif %}
</figure>
{% if loop.last or parts[loop.index0 + 1].kind != "chart" %}
</div>
{% endif %}
{% elif part.kind == "pictures" %}
<div class="pictures{{ " small" if part.width <= 300 }}"
style="grid-template-columns: repeat(auto-fill, minmax(min({{ part.width }}px, 100%), 1fr))">
{% for picture in part.pictures %}
<figure><img src="{{ picture.image|picture_url }}" width="{{ picture.image.width }}" height="{{ picture.image.height }}"
alt="{{ picture.caption or picture.note or "picture" }}">
<figcaption>{{ picture.caption }}
{% if picture.note %}
<span class="note">{{ picture.note }}</span>
{% endif %}
</figcaption></figure>
{% endfor %}
</div>
{% elif part.kind == "fold" %}
<details{% if part.open %} open{% endif %}><summary>{{ part.title }}</summary>
{{ show(part.parts) }}
</details>
{% endif %}
{% endfor %}
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="glefld">
<link rel="icon" href="data:,">
<title>{{ page.title }}</title>
<style>STYLE</style>
</head>
<body>
<header>
<h1>{{ page.title }}</h1>
<p class="line">{{ page.line }}</p>
</header>
{% if page.sections|length > 1 %}
<nav aria-label="Sections">
{% for section in page.sections %}
<a href="#{{ section.title|slug }}">{{ section.title }}</a>
{% endfor %}
</nav>
{% endif %}
<main>
{{ show(page.parts) }}
{% for section in page.sections %}
<section id="{{ section.title|slug }}">
<h2>{{ section.title }}</h2>
{{ show(section.parts) }}
</section>
{% endfor %}
</main>
</body>
</html>
"""
