"""Pictures of landmarks: overlays, contact sheets and the chart of NE by landmark.

Landmarks on the garment's right side are red, those on the left yellow, those in the middle blue. Ground truth is a
ring (broken if occluded), a prediction a filled dot, and a thin line joins the two. Every mark has a dark rim, so that
it is visible on any cloth.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from glefld.schema import LandmarkSet, Visibility
from glefld.scoring.baselines import Baselines
from glefld.scoring.confidence import Confidence
from glefld.scoring.metrics import Report
from glefld.scoring.published import note, published
from glefld.scoring.tables import MOST_COLUMNS, short_name

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

#: A picture of a contact sheet, and its caption.
Tile = tuple[Image.Image, str]
Side = Literal["left", "right", "middle"]
COLOURS: dict[Side, tuple[int, int, int]] = {
    "left": (255, 212, 0),
    "right": (235, 30, 45),
    "middle": (40, 150, 255),
}
RIM = (20, 20, 20)
PAPER = (250, 250, 250)
INK = (30, 30, 30)
MARKERS = "v^<>Dsp"
SMOOTH = 4  # supersampling factor of marks, since Pillow does not antialias


def sides(landmark_set: LandmarkSet) -> list[Side]:
    """Return each landmark's side: middle if it is its own mirror, else by its name, else left for a pair's first."""
    result: list[Side] = []
    for i, (name, partner) in enumerate(zip(landmark_set.landmarks, landmark_set.mirror, strict=True)):
        if partner == i:
            result.append("middle")
        elif name.startswith(("left", "right")):
            result.append("left" if name.startswith("left") else "right")
        else:
            result.append("left" if i < partner else "right")
    return result


def overlay(
    image: Image.Image | np.ndarray,
    landmark_set: LandmarkSet,
    *,
    predicted: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    visibility: np.ndarray | None = None,
    score: np.ndarray | None = None,
    box: Sequence[float] | None = None,
    names: bool = False,
    label: str = "",
    long_side: int = 512,
) -> Image.Image:
    """Draw landmarks on a picture scaled to ``long_side`` pixels.

    image: PIL, or [H, W, 3] uint8. predicted, truth: [K, 2] in pixels of the given picture; NaN is not drawn.
    visibility: [K] codes; landmarks that are neither visible nor occluded are not drawn. None draws all as visible.
    score: [K], 0 to 1; predictions with a low score are faded. box: x1 y1 x2 y2. names: write the landmarks' names.
    label: written into the box's top left corner, or the picture's.
    """
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    scale = long_side / max(picture.size)
    # Rounding changes each side by up to half a pixel, so scale the marks to the actual size.
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    to_marks = np.array(size) / picture.size * SMOOTH
    picture = picture.resize(size, Image.Resampling.LANCZOS)

    k = len(landmark_set)
    drawn = np.ones(k, bool) if visibility is None else visibility <= Visibility.OCCLUDED
    broken = np.zeros(k, bool) if visibility is None else visibility == Visibility.OCCLUDED
    opacity = np.ones(k) if score is None else 0.4 + 0.6 * np.clip(score, 0, 1)
    nowhere = np.full((k, 2), math.nan)
    true_at, found_at = (
        nowhere if points is None else np.where(drawn[:, None], points, math.nan) * to_marks
        for points in (truth, predicted)
    )

    marks = Image.new("RGBA", (size[0] * SMOOTH, size[1] * SMOOTH))
    draw = ImageDraw.Draw(marks)
    unit = SMOOTH * max(1.0, long_side / 256)  # marks scale with the picture
    if box is not None:
        corners = [*(np.array(box[:2]) * to_marks), *(np.array(box[2:]) * to_marks)]
        draw.rectangle(corners, outline=(*RIM, 160), width=round(2.5 * unit))
        draw.rectangle(corners, outline=(255, 255, 255, 220), width=round(unit))
    for i, side in enumerate(sides(landmark_set)):
        colour, true, found = COLOURS[side], true_at[i], found_at[i]
        if not np.isnan([*true, *found]).any():
            draw.line([*true, *found], fill=(*RIM, 200), width=round(2.2 * unit))
            draw.line([*true, *found], fill=(255, 255, 255, 255), width=round(unit))
        if not np.isnan(true).any():
            _ring(draw, true, unit, colour, bool(broken[i]))
        if not np.isnan(found).any():
            alpha = round(255 * opacity[i])
            _disc(draw, found, 3.2 * unit, (*RIM, alpha))
            _disc(draw, found, 2.3 * unit, (*colour, alpha))
    marks = marks.resize(size, Image.Resampling.LANCZOS)
    picture.paste(marks, mask=marks)
    if label:
        x, y = np.array(box[:2] if box is not None else (0, 0)) * to_marks / SMOOTH + unit / SMOOTH
        ImageDraw.Draw(picture).text(
            (max(x, 0) + 2, max(y, 0) + 2),
            label,
            PAPER,
            _font(max(12, long_side // 30)),
            "la",
            stroke_width=2,
            stroke_fill=RIM,
        )
    if names:
        at = np.where(np.isnan(found_at), true_at, found_at) / SMOOTH
        font = _font(max(10, long_side // 36))
        text = ImageDraw.Draw(picture)
        for name, (x, y) in zip(landmark_set.landmarks, at, strict=True):
            if not math.isnan(x):
                short = short_name(name)
                fits = x + unit + text.textlength(short, font) <= picture.width
                place, anchor = ((x + unit, y), "lm") if fits else ((x - unit, y), "rm")
                text.text(place, short, PAPER, font, anchor, stroke_width=2, stroke_fill=RIM)
    return picture


def boxes(
    image: Image.Image | np.ndarray,
    found: np.ndarray,
    score: np.ndarray,
    truth: np.ndarray | None = None,
    *,
    long_side: int = 512,
) -> Image.Image:
    """Draw boxes x1 y1 x2 y2 in pixels of the given picture, which is scaled to ``long_side`` pixels.

    found: [n, 4] with scores [n], in yellow with the score as text. truth: [m, 4], in white.
    """
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    scale = long_side / max(picture.size)
    picture = ImageOps.contain(picture, (long_side, long_side), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    line = max(2, long_side // 128)
    font = _font(max(10, long_side // 24))
    for box in () if truth is None else truth * scale:
        draw.rectangle([*box], outline=RIM, width=line + 2)
        draw.rectangle([*box], outline=PAPER, width=line)
    for box, value in zip(found * scale, score, strict=True):
        draw.rectangle([*box], outline=RIM, width=line + 2)
        draw.rectangle([*box], outline=COLOURS["left"], width=line)
        place = (box[0] + 2 * line, box[1] + 2 * line)
        draw.text(place, f"{value:.2f}", COLOURS["left"], font, "la", stroke_width=2, stroke_fill=RIM)
    return picture


def contact_sheet(
    tiles: Sequence[Tile],
    columns: int,
    *,
    tile: int = 256,
    title: str = "",
    legend: Literal["truth", "predictions", "none"] = "truth",
) -> Image.Image:
    """Lay out captioned pictures in rows of square tiles, with a title above and a legend below.

    tile: side of a tile in pixels. legend: explains predictions and ground truth, predictions only, or is left out.
    ValueError without pictures or columns.
    """
    if not tiles or columns < 1:
        raise ValueError("a contact sheet needs at least one picture and one column")
    columns = min(columns, len(tiles))
    font = _font(max(10, tile // 18))
    line, gap = round(font.size * 1.6), max(4, tile // 32)
    head = line + gap if title else gap
    rows = math.ceil(len(tiles) / columns)
    cell = tile + line + gap
    width = gap + columns * (tile + gap)
    sheet = Image.new("RGB", (width, head + rows * cell), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, head / 2), title, INK, font, "lm")
    for number, (picture, caption) in enumerate(tiles):
        x, y = gap + number % columns * (tile + gap), head + number // columns * cell
        fitted = ImageOps.contain(picture, (tile, tile), Image.Resampling.LANCZOS)
        sheet.paste(fitted, (x + (tile - fitted.width) // 2, y + (tile - fitted.height) // 2))
        draw.text((x + tile / 2, y + tile + line / 2), _fitted(caption, font, tile), INK, font, "mm")
    if legend == "none":
        return sheet
    marks = _legend(width, font, truth=legend == "truth")
    whole = Image.new("RGB", (width, sheet.height + marks.height), PAPER)
    whole.paste(sheet, (0, 0))
    whole.paste(marks, (0, sheet.height))
    return whole


def ne_chart(dataset: str, report: Report, baseline: Baselines | None = None) -> "matplotlib.figure.Figure":
    """Return a bar chart of NE by landmark and on average, with the baselines and published figures as marks."""
    names = list(report.ne_by_landmark)
    few = len(names) <= MOST_COLUMNS
    places = np.arange(len(names) + 1)
    import matplotlib.figure  # here, as pictures are drawn without it

    figure = matplotlib.figure.Figure(figsize=(max(8.0, 0.18 * len(places)), 5.0), layout="constrained")
    axes = figure.subplots()
    ours = _column(report)
    bars = axes.bar(places, ours, 0.62, color="#9db8d9", edgecolor="#3b5b83", label="this run", zorder=2)
    handles: list[Any] = [bars]
    if few:
        # At the foot of the bars, where no mark hides them.
        for place, value in zip(places[~np.isnan(ours)], ours[~np.isnan(ours)], strict=True):
            foot = axes.annotate(f"{value:.3f}", (place, 0), (0, 3), textcoords="offset points")
            foot.set(fontsize=8, fontweight="bold", horizontalalignment="center")
    if baseline is not None:
        for scores, label, colour in (
            (baseline.mean_position, "mean position (baseline)", "#999999"),
            (baseline.mean_position_by_type, "mean position by type (baseline)", "#444444"),
        ):
            ends = places - 0.38, places + 0.38
            handles.append(axes.hlines(_column(scores), *ends, colors=colour, lw=2, label=label, zorder=3))
    systems = published(dataset, names)
    for system, marker in zip(systems, MARKERS, strict=False):
        figures = [math.nan if v is None else v for v in (*system.by_landmark, system.average)]
        dots = axes.scatter(places, figures, 34, marker=marker, label=f"{system.system} (published)")
        dots.set(edgecolor="white", linewidth=0.6, zorder=4)
        handles.append(dots)
    axes.set_xticks(places, [*map(short_name, names), "average"], rotation=0 if few else 90)
    axes.get_xticklabels()[-1].set_fontweight("bold")
    axes.axvline(len(names) - 0.5, color="#cccccc", lw=1, zorder=1)
    axes.set_ylabel("normalised error (lower is better)")
    axes.set_title(f"{dataset}: normalised error by landmark, {report.rows:,} garments")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e5e5e5", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
        title=note(dataset) if systems else None,
        title_fontsize=8,
    )
    return figure


def confidence_chart(dataset: str, found: Confidence) -> "matplotlib.figure.Figure":
    """Return two charts: the share of right landmarks by their score, and the error of those with the best scores."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    reliability(left, found)
    sparsification(right, found)
    figure.suptitle(f"scores on {dataset}", fontsize=11)
    return figure


def reliability(axes: "matplotlib.axes.Axes", found: Confidence) -> None:
    """Draw the share of right landmarks by their score."""
    told, share, number = (np.array(values) for values in zip(*found.reliability, strict=True))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="a perfect score")
    axes.plot(told, share, color="tab:blue", linewidth=1)
    axes.scatter(
        told, share, 8 + 150 * number / number.max(), color="tab:blue", label="found; area: how many"
    )
    axes.set(xlabel="score", ylabel="share within 0.1 of the box", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"calibration error {found.calibration_error:.3f}", fontsize=10)
    axes.legend(frameon=False, loc="upper left")


def sparsification(axes: "matplotlib.axes.Axes", found: Confidence) -> None:
    """Draw the error of the landmarks with the best scores."""
    kept, error = zip(*found.sparsified, strict=True)
    axes.plot([0, 1], [1, 1], color="0.7", linewidth=1, label="scores without meaning")
    axes.plot(kept, error, color="tab:blue", label="best scores first")
    axes.set(
        xlabel="share of the landmarks that are kept",
        ylabel="their NE, relative to all",
        xlim=(0, 1),
        ylim=(0, None),
    )
    axes.set_title(f"area under the curve {found.sparsification:.3f}", fontsize=10)
    axes.legend(frameon=False, loc="lower right")


def _column(report: Report) -> np.ndarray:
    """Return NE by landmark and the average, [K + 1]; NaN where nothing was counted."""
    return np.array([math.nan if v is None else v for v in (*report.ne_by_landmark.values(), report.ne)])


def _disc(draw: ImageDraw.ImageDraw, at: np.ndarray, radius: float, colour: tuple[int, ...]) -> None:
    draw.ellipse([*(at - radius), *(at + radius)], fill=colour)


def _ring(
    draw: ImageDraw.ImageDraw, at: np.ndarray, unit: float, colour: tuple[int, ...], broken: bool
) -> None:
    """Draw a coloured ring with dark edges, or four arcs of it if broken."""
    pieces = [(start + 12, start + 78) for start in range(0, 360, 90)] if broken else [(0, 360)]
    for radius, width, ink in ((6.0, 3.2, RIM), (5.2, 1.6, colour)):
        for start, end in pieces:
            corners = [*(at - radius * unit), *(at + radius * unit)]
            draw.arc(corners, start, end, fill=(*ink, 255), width=round(width * unit))


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _fitted(caption: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return the caption, shortened with an ellipsis if it is wider than the tile."""
    if font.getlength(caption) <= width:
        return caption
    while caption and font.getlength(caption + "…") > width:
        caption = caption[:-1]
    return caption + "…"


def _legend(width: int, font: ImageFont.FreeTypeFont, truth: bool) -> Image.Image:
    """Return the legend, wrapped to a sheet of this width."""
    grey = (150, 150, 150)
    entries = [("left", COLOURS["left"], "disc"), ("right", COLOURS["right"], "disc")]
    if truth:
        entries += [
            ("prediction", grey, "disc"),
            ("truth", grey, "ring"),
            ("truth, occluded", grey, "broken"),
        ]
    mark = round(font.size * 1.5)
    x, y = mark, mark
    places: list[tuple[int, int]] = []
    for text, _, _ in entries:
        length = round(mark + font.getlength(text))
        if x + length > width and places:
            x, y = mark, y + mark
        places.append((x, y))
        x += length + mark
    legend = Image.new("RGB", (width, y + mark), PAPER)
    marks = Image.new("RGBA", (legend.width * SMOOTH, legend.height * SMOOTH))
    draw, lettering = ImageDraw.Draw(marks), ImageDraw.Draw(legend)
    unit = SMOOTH * font.size / 16
    for (text, colour, kind), place in zip(entries, places, strict=True):
        at = np.array(place) * SMOOTH
        if kind == "disc":
            _disc(draw, at, 5 * unit, RIM)
            _disc(draw, at, 4 * unit, colour)
        else:
            _ring(draw, at, unit, colour, kind == "broken")
        lettering.text((place[0] + mark * 0.6, place[1]), text, INK, font, "lm")
    marks = marks.resize(legend.size, Image.Resampling.LANCZOS)
    legend.paste(marks, mask=marks)
    return legend
