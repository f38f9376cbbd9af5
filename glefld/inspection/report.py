"""The page about a data set: what is in it, what training makes of it, and what is probably wrong with it."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glefld.data.augmentation import Augmentation
from glefld.inspection import copies, draws, rejects, shapes
from glefld.inspection.findings import Copy, Inspection
from glefld.inspection.rows import Rows
from glefld.inspection.suspects import Kind, Suspect
from glefld.pages import (
    Bar,
    Cell,
    Chart,
    Facts,
    Fold,
    Number,
    Numbers,
    Page,
    Part,
    Picture,
    Pictures,
    Point,
    Points,
    Section,
    Table,
    Text,
    count,
)
from glefld.redaction import public_url, redacted
from glefld.schema import VIEWS, Visibility
from glefld.scoring.tables import short_name

#: Garments before and after augmentation, and how often each is augmented.
SAMPLES = 12
DRAWS = 3
#: Pictures that are shown of what is probably wrong, of each kind.
SHOWN = 24
#: Fewer garments of a type are told.
FEW = 100
#: Classes that are listed.
MOST_CLASSES = 20
#: Maps are drawn of at most this many garments of a type.
MOST_MAPPED = 200_000

SAMPLES_TITLE, GARMENTS, LANDMARKS = "Augmentation", "Garments", "Landmarks"
REJECTS, COPIES, SIDES, PLACES = "Rejects", "Copies", "Left and right", "Places"

SIDE_KINDS: tuple[Kind, ...] = ("sides_model", "sides", "view")
PLACE_KINDS: tuple[Kind, ...] = ("place_model", "place")
KINDS: dict[Kind, str] = {
    "sides": "pairs that contradict the garment's other pairs",
    "view": "sides that contradict the view",
    "sides_model": "sides that contradict the model",
    "place": "landmarks far from where the garment's others say",
    "place_model": "landmarks far from where the model is sure that they are",
}


def page(found: Inspection, augmentation: Augmentation, facts: Mapping[str, str]) -> Page:
    """Return the page. facts: how it came to be, for its foot."""
    manifest, rows = found.manifest, found.rows
    garments = sum(manifest.splits[split] for split in rows.splits)
    sections = [_samples(found, augmentation), Section(GARMENTS, _garments(found))]
    if len(manifest.landmark_set):
        sections += [
            Section(LANDMARKS, _landmarks(found)),
            Section(SIDES, _suspects(found, SIDE_KINDS)),
            Section(PLACES, _suspects(found, PLACE_KINDS)),
        ]
    sections += [Section(COPIES, _copies(found)), Section(REJECTS, _rejects(found))]
    splits = ", ".join(f"{manifest.splits[split]:,} {split}" for split in rows.splits)
    return Page(
        f"Data set {manifest.title}",
        f"{count(garments, 'garment')} ({splits}) with the landmarks {manifest.landmark_set.name}",
        [
            Numbers(numbers(found)),
            Points(_points(found)),
            Fold("What was read, and how", [Facts({**_read(found, garments), **facts})]),
        ],
        sections,
    )


def numbers(found: Inspection) -> list[Number]:
    """Return the key numbers."""
    manifest, rows = found.manifest, found.rows
    garments = sum(manifest.splits[split] for split in rows.splits)
    photos = len(np.unique(rows.photo))
    visible = (rows.visibility == Visibility.VISIBLE).sum()
    placed = ~np.isnan(rows.points).any(axis=2)
    side_rows, place_rows = found.suspects.garments(*SIDE_KINDS), found.suspects.garments(*PLACE_KINDS)
    return [
        Number(
            "garments",
            f"{garments:,}",
            f"{photos:,} photos" if len(rows) == garments else f"{len(rows):,} read",
        ),
        Number(
            "landmarks a garment",
            f"{placed.sum() / max(1, len(rows)):.1f}",
            f"{_percent(visible, max(1, placed.sum()))} of them visible",
        ),
        Number("rejected rows", f"{sum(manifest.rejects.values()):,}", f"of {manifest.rows_in:,}"),
        Number(
            "left and right doubtful", f"{side_rows:,}", _percent(side_rows, len(rows)) + " of the garments"
        ),
        Number("unusual places", f"{place_rows:,}", _percent(place_rows, len(rows)) + " of the garments"),
        Number(
            "photos in several splits",
            f"{len(found.across) + found.alike:,}",
            f"{len(found.across):,} of the same bytes, {found.alike:,} alike",
        ),
    ]


def _points(found: Inspection) -> list[Point]:
    """What to do next, in the order of what it is worth."""
    points = []
    if found.across:
        points.append(
            Point(
                f"{count(len(found.across), 'photo')} of one split {_are(len(found.across))} also in another one, with "
                "the same bytes, so scores are too good. Ingest with --dedupe, which drops them from train, and take "
                "out of the source what val and test share:",
                COPIES,
            )
        )
    if found.near:
        points.append(
            Point(
                f"{count(found.alike, 'photo')} of one split {'looks' if found.alike == 1 else 'look'} like one of "
                "another split, so scores may be too good. Ingest does not see that: take them out of the source. "
                "--suspects lists them:",
                COPIES,
            )
        )
    for kinds, what, title in (
        (SIDE_KINDS, "probably {} left and right the wrong way round, or some of them", SIDES),
        (
            PLACE_KINDS,
            "{} a landmark in an unusual place: a mistake, another type of garment or a rare pose",
            PLACES,
        ),
    ):
        if number := found.suspects.garments(*kinds):
            told = what.format("has" if number == 1 else "have")
            points.append(Point(f"{count(number, 'garment')} {told}. Look at the worst ones:", title))
    if found.looked.answers is None and len(found.manifest.landmark_set):
        points.append(
            Point(
                "Backs that are annotated as fronts, and the other way round, are found only with a trained model: add "
                "--checkpoint."
            )
        )
    if len(found.rows) == sum(found.manifest.splits[split] for split in found.rows.splits):
        few = [f"{type_} ({number})" for type_, number in _of_types(found).items() if number < FEW]
        if few:
            points.append(
                Point(f"Of some types there are fewer than {FEW} garments: {', '.join(few)}.", GARMENTS)
            )
    if found.manifest.rejects:
        reason, number = max(found.manifest.rejects.items(), key=lambda item: item[1])
        points.append(Point(f"Most rejected rows ({number:,}) are {reason}.", REJECTS))
    return points


def _of_types(found: Inspection) -> dict[str, int]:
    """How many garments of each type were read."""
    types = found.manifest.landmark_set.garment_types
    return {type_.name: int((found.rows.slot == slot).sum()) for slot, type_ in enumerate(types)}


def _read(found: Inspection, garments: int) -> dict[str, str]:
    rows, looked = found.rows, found.looked
    return {
        "data set": public_url(found.data),
        "content hash": found.manifest.content_hash,
        "numbers": f"of {len(rows):,} of {garments:,} rows"
        + ("" if len(rows) == garments else ", from row groups that are evenly spread (--rows)"),
        "pictures": f"of {len(looked.places):,} rows, for copies"
        + (" and the model" if looked.answers is not None else "")
        + ("" if len(looked.places) == garments else ", from row groups that are evenly spread (--pictures)"),
    }


def _samples(found: Inspection, augmentation: Augmentation) -> Section:
    """Rows of all types, as they are and as training sees them."""
    rows, split = found.rows, found.rows.splits[0]
    first = np.flatnonzero(rows.split == 0)
    by_slot = [first[rows.slot[first] == slot] for slot in np.unique(rows.slot[first])][:SAMPLES]
    chosen: list[int] = []
    for i, those in enumerate(by_slot):
        share = SAMPLES // len(by_slot) + (i < SAMPLES % len(by_slot))
        chosen += those[np.unique(np.linspace(0, len(those) - 1, share).astype(int))].tolist()
    chosen.sort()
    taken = rows.number[chosen]
    (table,) = found.readers.of[split].read([taken])
    seeds = [[(0, epoch, int(number)) for number in taken] for epoch in range(DRAWS)]
    pictures = draws.augmented(table, found.manifest.labels, augmentation, seeds)
    told = ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(augmentation).items())
    return Section(
        SAMPLES_TITLE,
        [
            Text(
                f"Garments of {split}: first as validation sees them, then as the first {DRAWS} epochs of a training "
                f"with seed 0 do ({told}; --augmentation changes it). Left is yellow, right is red, the middle blue; "
                "broken rings are occluded landmarks. A landmark that is moved out of the picture does not count."
            ),
            Pictures(
                [
                    Picture(picture, _type_name(found, place), sample)
                    for picture, place, sample in zip(
                        pictures, chosen, table["sample_id"].to_pylist(), strict=True
                    )
                ],
                width=440,
            ),
        ],
    )


def _type_name(found: Inspection, place: int) -> str:
    slot = found.rows.slot[place]
    return "unknown type" if slot < 0 else found.manifest.landmark_set.garment_types[slot].name


def _garments(found: Inspection) -> list[Part]:
    rows, manifest = found.rows, found.manifest
    types = {slot: type_.name for slot, type_ in enumerate(manifest.landmark_set.garment_types)}
    parts: list[Part] = [_by_split("type", rows, rows.slot, {**types, -1: "unknown"})] if types else []
    if (rows.view >= 0).any():
        parts.append(_by_split("view", rows, rows.view, {**dict(enumerate(VIEWS)), -1: "unknown"}))
    if manifest.categories and manifest.categories != tuple(types.values()):
        names = dict(enumerate(manifest.categories, 1))
        parts.append(_by_split("category", rows, rows.category, {**names, 0: "unknown"}))
    sides = rows.box[:, 2:] - rows.box[:, :2]
    photo = rows.photo_size.astype(np.float64)
    parts += [
        _histogram(
            rows, sides.max(axis=1), "longer side of the box, pixels", log=True,
            caption="Boxes smaller than --input-size are blown up, and hold fewer details than the network could see.",
        ),
        _histogram(rows, photo.max(axis=1), "longer side of the photo, pixels", log=True, caption=""),
        _histogram(
            rows, 100 * sides.prod(axis=1) / photo.prod(axis=1), "the box's share of the photo, %", log=False,
            caption="Small shares need a detector, or good boxes, when the model is used.",
        ),
        _histogram(
            rows, sides[:, 1] / sides[:, 0], "height of the box / width", log=True,
            caption="The network sees each box as a square.",
        ),
    ]  # fmt: skip
    return parts


def _by_split(what: str, rows: Rows, value: np.ndarray, names: Mapping[int, str]) -> Part:
    """A table of classes by split."""
    totals = np.array([(rows.split == s).sum() for s in range(len(rows.splits))])
    counts = {
        code: np.array([((value == code) & (rows.split == s)).sum() for s in range(len(rows.splits))])
        for code in np.unique(value).tolist()
    }
    order = sorted(counts, key=lambda code: -counts[code].sum())
    lines: list[list[Cell]] = []
    for code in order[:MOST_CLASSES]:
        share = counts[code] / np.maximum(1, totals)
        lines.append(
            [
                names.get(code, str(code)),
                *counts[code].tolist(),
                *(Bar(float(s), f"{100 * s:.1f} %") for s in share),
            ]
        )
    if len(order) > MOST_CLASSES:
        rest = np.sum([counts[code] for code in order[MOST_CLASSES:]], axis=0)
        lines.append(
            [
                f"{len(order) - MOST_CLASSES} others",
                *rest.tolist(),
                *(Bar(float(s), f"{100 * s:.1f} %") for s in rest / np.maximum(1, totals)),
            ]
        )
    return Table([what, *rows.splits, *(f"share of {split}" for split in rows.splits)], lines)


def _histogram(rows: Rows, value: np.ndarray, what: str, *, log: bool, caption: str) -> Chart:
    import matplotlib.figure
    import matplotlib.ticker

    figure = matplotlib.figure.Figure(figsize=(5.6, 2.9), layout="constrained")
    axes = figure.subplots()
    value = np.maximum(value, 1e-6)
    low, high = np.quantile(value, [0.001, 0.999])
    if log:
        middle = (low * high) ** 0.5
        edges = np.geomspace(min(low, middle / 2), max(high, middle * 2), 41)  # sizes may all be the same
    else:
        edges = np.linspace(0, high, 41)
    for index, split in enumerate(rows.splits):
        here = value[rows.split == index].clip(edges[0], edges[-1])
        weights = np.full(len(here), 100 / max(1, len(here)))
        label = f"{split}, median {_short(float(np.median(here)))}" if len(here) else split
        axes.hist(here, edges.tolist(), weights=weights, histtype="step", linewidth=1.6, label=label)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: _short(x)))
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set_xlabel(what)
    axes.set_ylabel("% of the split")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return Chart(figure, caption)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _landmarks(found: Inspection) -> list[Part]:
    rows, landmark_set = found.rows, found.manifest.landmark_set
    parts: list[Part] = [
        Text(
            "How often a landmark is visible, occluded, cut off (the type has it, but it is nowhere) or absent, among "
            "the garments of its type, and where it lies in the box: the brighter, the more garments. The dotted lines "
            "are the box. Two spots where one is expected are backs, or garments with left and right exchanged."
        )
    ]
    several = len(landmark_set.garment_types) > 3
    for slot, type_ in enumerate(landmark_set.garment_types):
        where, points = rows.of_type(slot, len(type_.landmarks))
        if not len(where):
            continue
        names = [short_name(landmark_set.landmarks[i]) for i in type_.landmarks]
        codes = rows.visibility[where, : len(names)]
        lines: list[list[Cell]] = []
        for i, name in enumerate(names):
            share = [(codes[:, i] == code).mean() for code in Visibility]
            lines.append([name, *(Bar(float(s), f"{100 * s:.1f} %") for s in share)])
        table = Table(["landmark", *(code.name.lower().replace("_", " ") for code in Visibility)], lines)
        maps = Pictures(
            [Picture(draws.position_map(points[:MOST_MAPPED, i]), name) for i, name in enumerate(names)],
            width=130,
        )
        back = (found.suspects.back[where] == -1).mean()
        line = Text(f"{100 * back:.1f} % have left and right as in a back view.")
        parts.append(Fold(f"{type_.name}: {len(where):,} garments", [table, maps, line], open=not several))
    return parts


def _suspects(found: Inspection, kinds: Sequence[Kind]) -> list[Part]:
    parts: list[Part] = []
    if any(found.suspects.found[kind] for kind in kinds):
        model = "" if found.looked.answers is None else ", discs the model's answer, and a line joins the two"
        parts.append(Text(f"Rings are the annotation{model}. Left is yellow, right is red, the middle blue."))
    for kind in kinds:
        some = found.suspects.found[kind]
        if kind.endswith("_model") and found.looked.answers is None:
            continue
        if kind == "view" and not (found.rows.view >= 0).any():
            continue
        parts.append(Text(f"{len(some):,} garments have {KINDS[kind]}." + _shown(len(some))))
        if some:
            parts.append(Pictures(_suspect_pictures(found, some[:SHOWN])))
    few = [name for name, number in _of_types(found).items() if number < shapes.LEAST_GARMENTS]
    if few:
        least = f"fewer than {shapes.LEAST_GARMENTS} garments were read"
        parts.append(Text(f"Types of which {least} have no usual shape to compare with: {', '.join(few)}."))
    return parts


def _shown(number: int) -> str:
    return f" The {SHOWN} worst:" if number > SHOWN else ""


def _suspect_pictures(found: Inspection, some: Sequence[Suspect]) -> list[Picture]:
    fetched = found.readers.fetch(found.rows, [s.place for s in some])
    answer: dict[int, np.ndarray] = {}
    if found.looked.answers is not None:
        answer = dict(zip(found.looked.places.tolist(), found.looked.answers.points, strict=True))
    return [
        Picture(
            draws.garment(
                fetched[s.place],
                found.manifest.landmark_set,
                answer.get(s.place) if s.kind.endswith("_model") else None,
            ),
            f"{_type_name(found, s.place)}: {s.what}",
            _origin(found, s.place, fetched[s.place]),
        )
        for s in some
    ]


def _origin(found: Inspection, place: int, row: Mapping[str, Any]) -> str:
    return (
        f"{found.rows.splits[found.rows.split[place]]}: {row['sample_id']} of {public_url(row['source_uri'])}"
    )


def _copies(found: Inspection) -> list[Part]:
    rows, looked = found.rows, found.looked
    parts: list[Part] = []
    number = [int((rows.split[looked.places] == s).sum()) for s in range(len(rows.splits))]
    compared = " and ".join(f"{n:,} of {split}" for n, split in zip(number, rows.splits, strict=True))
    parts.append(
        Text(
            f"{count(len(found.across), 'photo')} {_are(len(found.across))} in several splits with the same bytes, "
            f"{len(found.within):,} several times in one split, and {count(len(found.near), 'pair')} of photos across "
            f"splits {'looks' if len(found.near) == 1 else 'look'} alike. Alike are pictures whose hashes differ in at "
            f"most {copies.MOST_BITS} of 256 bits; compared were {compared}."
        )
    )
    if len(rows.splits) == 1:
        parts.append(Text("Only one split was read: leave out --split to compare it with the others."))
    pairs = []
    for group in found.across:
        other = group[np.argmax(rows.split[group] != rows.split[group[0]])]
        pairs.append(Copy(int(group[0]), int(other), -1))
    shown = (pairs + found.near)[: SHOWN // 2]
    if shown:
        fetched = found.readers.fetch(rows, [place for copy in shown for place in (copy.first, copy.second)])
        pictures = [
            Picture(
                draws.beside([draws.stored(fetched[place]) for place in (copy.first, copy.second)]),
                "the same bytes" if copy.bits < 0 else f"{copy.bits} bits differ",
                "; ".join(_origin(found, place, fetched[place]) for place in (copy.first, copy.second)),
            )
            for copy in shown
        ]
        parts.append(Pictures(pictures, width=300))
    return parts


def _rejects(found: Inspection) -> list[Part]:
    manifest = found.manifest
    if not manifest.rejects:
        return [Text(f"None of {manifest.rows_in:,} rows was rejected.")]
    total = sum(manifest.rejects.values())
    parts: list[Part] = [
        Table(
            ["reason", "rows", "share of the rejects", "for instance"],
            [
                [
                    reason,
                    number,
                    Bar(number / total, _percent(number, total)),
                    "; ".join(f"{r.sample_id}: {r.detail}" for r in found.rejected.get(reason, [])[:1]),
                ]
                for reason, number in sorted(manifest.rejects.items(), key=lambda item: -item[1])
            ],
            f"{total:,} of {manifest.rows_in:,} rows; docs/data.md says what each reason means.",
        )
    ]
    pictures = []
    refused: Counter[str] = Counter()
    for reason, some in found.rejected.items():
        for reject in some:
            try:
                image = rejects.picture(reject.uri)
            except Exception as error:  # each store's library has its own; the page is made all the same
                refused[_words(error)] += 1
                continue
            if image is not None:
                note = f"{reject.split}: {reject.sample_id} of {public_url(reject.uri)}"
                pictures.append(Picture(image, f"{reason}: {reject.detail}", note))
    if pictures:
        parts.append(Pictures(pictures))
    for cause, number in refused.items():
        parts.append(
            Text(f"{count(number, 'photo')} could not be fetched to be shown here: {redacted(cause)}.")
        )
    return parts


def _words(error: Exception) -> str:
    """Return what went wrong, in one line without file names."""
    told = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return told or type(error).__name__


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
