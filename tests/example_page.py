"""A page with one of each part, and with names that would be markup if they were not escaped."""

import matplotlib.figure
import numpy as np
from PIL import Image

from glefld.pages import (
    Bar,
    Chart,
    Facts,
    Fold,
    Number,
    Numbers,
    Page,
    Picture,
    Pictures,
    Point,
    Points,
    Section,
    Table,
    Text,
)

HOSTILE = "<script>alert('&\"')</script><img src=http://127.0.0.1/x.png>"
LONG = "deepfashion-fine/" + "img/WOMEN/Dresses/id_00000002/" * 6 + "02_1_front.jpg#0"


def chart(marks: int = 10, *, coloured: bool = False) -> Chart:
    """A scatter plot of so many marks."""
    figure = matplotlib.figure.Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*np.random.default_rng(0).random((2, marks)), label="clip paths have names")
    axes.legend()
    return Chart(figure, f"{marks} marks", coloured)


def pictures(number: int) -> Pictures:
    """Pictures of one colour each."""
    return Pictures(
        [
            Picture(Image.new("RGB", (240, 320), (40 * i % 256, 90, 160)), f"garment {i}", LONG)
            for i in range(number)
        ]
    )


def example_page() -> Page:
    """The page."""
    return Page(
        f"Data {HOSTILE}",
        LONG,
        [
            Numbers([Number("garments", "5,962", "4,964 train, 998 val"), Number("NE", ".0601")]),
            Points([Point("some are wrong:", "Label mistakes"), Point(HOSTILE)]),
            Facts({"data": LONG, "command": HOSTILE}),
        ],
        [
            Section(
                "What is in it",
                [
                    Text("A paragraph."),
                    Table(
                        ["type", "garments", "share"],
                        [["upper", 1234, Bar(0.4, "40 %")], [HOSTILE, None, Bar(0, "0 %")]],
                        "By type.",
                    ),
                    chart(),
                    chart(),
                    chart(4_000, coloured=True),
                ],
            ),
            Section(
                "Label mistakes",
                [
                    pictures(7),
                    Fold("All", [Table([f"column {i}" for i in range(20)], [[0.5] * 20]), pictures(2)]),
                ],
            ),
        ],
    )
