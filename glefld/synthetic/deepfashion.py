"""Rendered data sets in the raw layouts of FLD and DeepFashion, byte for byte reproducible from a seed.

Photo i depends only on (seed, i), so a larger data set starts with the photos of a smaller one. Two files are not in
the benchmarks: ``list_view.txt`` (``{split}_view.txt`` in the fine layout) gives the view, front, side or back, and
``planted.json`` names the rows with planted faults.
"""

import dataclasses
import multiprocessing
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from glefld import storage
from glefld.errors import UserError, require_between
from glefld.schema import SPLITS, Split
from glefld.synthetic.faults import KINDS, REJECTED, ListRow, plant
from glefld.synthetic.raw_lists import MARK, write_deepfashion, write_deepfashion_fine, write_fld
from glefld.synthetic.render.photo import Photo, render_photo
from glefld.synthetic.render.wardrobe import Product, sample_product
from glefld.synthetic.vocabulary import CATEGORY_NUMBERS, coarse_attributes, fine_attributes
from glefld.temporary import temporary_folder

SyntheticLayout = Literal["fld", "deepfashion", "deepfashion-fine"]
#: Rows of train, val and test in the benchmarks.
SPLIT_SIZES: dict[SyntheticLayout, tuple[int, int, int]] = {
    "fld": (83033, 19992, 19991),
    "deepfashion": (209222, 40000, 40000),
    "deepfashion-fine": (14000, 2000, 4000),
}
WRITERS: dict[SyntheticLayout, Callable[[str, list[ListRow]], None]] = {
    "fld": write_fld,
    "deepfashion": write_deepfashion,
    "deepfashion-fine": write_deepfashion_fine,
}
Task = TypeVar("Task")
Drawn = TypeVar("Drawn")
#: The random streams of a seed. The number of the photo or product is appended.
PHOTO, PRODUCT, FOLDER, PLANT, OUTFIT = range(5)
WINDOW = 512  # photos held in memory at a time
SMALL = 64  # with fewer photos, starting processes takes longer than drawing
_FOLDER_WORDS = (
    "Amber", "Aspen", "Birch", "Canyon", "Cedar", "Clover", "Coral", "Dune", "Ember", "Fern", "Garden",
    "Harbor", "Hazel", "Indigo", "Ivory", "Juniper", "Linen", "Lunar", "Maple", "Marble", "Meadow", "Misty",
    "Olive", "Opal", "Pebble", "Pine", "Prairie", "Quartz", "Raven", "River", "Saffron", "Sage", "Sierra",
    "Silver", "Slate", "Sol", "Stone", "Summer", "Tide", "Velvet", "Willow", "Winter",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was written: rows by split, view, planted kind and category, and the size of the archives."""

    photos: int
    splits: dict[str, int]
    views: dict[str, int]
    planted: dict[str, int]
    archive_bytes: int
    categories: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Listed:
    """One row of the lists, before its photo is drawn."""

    name: str
    split: Split
    product: int  # number of the product in photo ``drawn``
    drawn: int  # number of the photo to draw: another row's if the photo is in two splits


def write_dataset(
    output: str,
    layout: SyntheticLayout,
    count: int,
    *,
    seed: int = 0,
    irregularities: int = 0,
    processes: int = 1,
    on_photo: Callable[[], object] = lambda: None,
) -> Summary:
    """Write ``count`` photos to a path or URL, with ``irregularities`` rows of each of ``faults.KINDS`` among them.

    The archive is written last, so a data set without ``img.zip`` is incomplete. ``on_photo`` is called after each
    photo. UserError if ``count`` is too small, or if there is an archive already.
    """
    require_between("--count", count, 1)
    require_between("--irregularities", irregularities, 0)
    require_between("--seed", seed, 0)
    require_between("--processes", processes, 1)
    kinds = [kind for kind in KINDS if layout != "fld" or kind != "folder_capitals"] * irregularities
    if count < 4 * len(kinds):
        raise UserError(
            f"{irregularities} irregularities of each kind need a count of at least {4 * len(kinds)}, "
            f"not {count}"
        )
    archive = storage.join(output, "img.zip")
    if storage.exists(archive):
        raise UserError(f"{archive} already exists: choose another --output, or delete it")
    listed = list_photos(layout, count, seed)
    planted = choose_planted(listed, kinds, seed)
    for index, (kind, twin) in planted.items():
        if kind == "two_splits":
            listed[index] = dataclasses.replace(
                listed[index], drawn=listed[twin].drawn, product=listed[twin].product
            )
    rows: list[ListRow] = []
    with temporary_folder() as folder:
        local = Path(folder) / "img.zip"
        with zipfile.ZipFile(local, "w", zipfile.ZIP_STORED) as file:
            for index, (photo, product) in enumerate(draw(listed, seed, processes)):
                row = _row(listed[index], photo, product, layout)
                if index in planted:
                    rng = np.random.default_rng((seed, PLANT, index))
                    plant(planted[index][0], row, rng)
                if row.photo is not None:
                    # A fixed time, so that the archive's bytes depend only on the seed.
                    file.writestr(zipfile.ZipInfo(row.member, (2016, 1, 1, 0, 0, 0)), row.photo)
                row.photo = None
                rows.append(row)
                on_photo()
        rows += [rows[index] for index, (kind, _) in planted.items() if kind == "duplicate_id"]
        WRITERS[layout](output, rows)
        storage.write_json(
            storage.join(output, "planted.json"), _planted_json(layout, seed, count, listed, planted)
        )
        storage.write_json(storage.join(output, MARK), {"layout": layout, "seed": seed, "photos": count})
        storage.put(local, archive)
        size = local.stat().st_size
    return Summary(
        photos=count,
        splits={split: sum(row.split == split for row in rows) for split in SPLITS},
        views=dict(Counter(row.view for row in rows)),
        planted=dict(Counter(kinds)),
        archive_bytes=size,
    )


def list_photos(layout: SyntheticLayout, count: int, seed: int) -> list[_Listed]:
    """Return the name, split and product of each photo; the first n do not depend on ``count``."""
    listed: list[_Listed] = []
    shares = np.array(SPLIT_SIZES[layout]) / sum(SPLIT_SIZES[layout])
    given = np.zeros(3)
    number, product, folder = 0, -1, ""
    for index in range(count):
        chance = np.random.default_rng((seed, FOLDER, index)).random(2)
        # The next photo goes to the split furthest below its share. So every count is proportional, and no split is
        # empty from ten photos on.
        split = int(np.argmax(shares * (index + 1) - given))
        given[split] += 1
        if layout == "fld":
            # The benchmark's ids have gaps: 123,016 photos are numbered up to 123,059.
            number += 1 + int(chance[0] < 0.03) * (1 + int(chance[1] * 2))
            product, name = index, f"img/img_{number:08d}.jpg"
        else:
            if index == 0 or chance[0] < 0.3:
                product, number = product + 1, 0
                folder = _folder(seed, product)
            # The fine layout annotates only some of a product's photos.
            number += 1 + (int(chance[1] * 4) if layout == "deepfashion-fine" else 0)
            name = f"img/{folder}/img_{number:08d}.jpg"
        listed.append(_Listed(name, SPLITS[split], product, index))
    return listed


def _folder(seed: int, product: int) -> str:
    """Return a product's folder name, unique and in the style of ``Sheer_Pleated-Front_Blouse``."""
    item = sample_product(np.random.default_rng((seed, PRODUCT, product)))
    words: list[str] = []
    base, rest = len(_FOLDER_WORDS), product
    while not words or rest:
        words.append(_FOLDER_WORDS[rest % base])
        rest //= base
    style = item.pattern if item.pattern != "solid" else item.fabric
    return "_".join([*words, style.capitalize(), item.garment.category])


def choose_planted(listed: list[_Listed], kinds: list[str], seed: int) -> dict[int, tuple[str, int]]:
    """Choose random rows for the kinds: row number to (kind, twin).

    For a photo in two splits the twin is the row of another split whose photo is repeated; else it is the row itself.
    """
    order = np.random.default_rng((seed, PLANT)).permutation(len(listed)).tolist()
    chosen, free = order[: len(kinds)], order[len(kinds) :]
    planted = {}
    for index, kind in zip(chosen, kinds, strict=True):
        twin = index
        if kind == "two_splits":
            twin = next(i for i in free if listed[i].split != listed[index].split)
            free.remove(twin)
        planted[index] = (kind, twin)
    return dict(sorted(planted.items()))


def _planted_json(
    layout: SyntheticLayout, seed: int, count: int, listed: list[_Listed], planted: dict[int, tuple[str, int]]
) -> dict[str, object]:
    rows = [
        {
            "kind": kind,
            "image_name": listed[index].name,
            "split": listed[index].split,
            "rejected": kind in REJECTED,
            "same_as": listed[twin].name if twin != index else None,
        }
        for index, (kind, twin) in planted.items()
    ]
    return {"layout": layout, "seed": seed, "count": count, "rows": rows}


def draw(listed: list[_Listed], seed: int, processes: int) -> Iterator[tuple[Photo, Product]]:
    """Draw the photos in order, with this many processes; the result does not depend on their number."""
    return in_processes(draw_one, [(seed, row.product, row.drawn) for row in listed], processes)


def in_processes(function: Callable[[Task], Drawn], tasks: list[Task], processes: int) -> Iterator[Drawn]:
    """Yield the function's result for each task, in order, from a process pool; few tasks run in this process."""
    if processes == 1 or len(tasks) < SMALL:
        yield from map(function, tasks)
        return
    # Spawn, not fork: the caller may have threads, and a fork would copy their locks while held.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for start in range(0, len(tasks), WINDOW):
            yield from pool.map(function, tasks[start : start + WINDOW], chunksize=16)


def draw_one(task: tuple[int, int, int]) -> tuple[Photo, Product]:
    """Draw one photo of a product, given (seed, product, drawn), and return it with the product."""
    seed, product, drawn = task
    item = sample_product(np.random.default_rng((seed, PRODUCT, product)))
    return render_photo(np.random.default_rng((seed, PHOTO, drawn)), item), item


def _row(listed: _Listed, photo: Photo, item: Product, layout: SyntheticLayout) -> ListRow:
    attributes = fine_attributes(item) if layout == "deepfashion-fine" else coarse_attributes(item)
    return ListRow(
        name=listed.name,
        member=listed.name,
        split=listed.split,
        number=listed.drawn,
        photo=photo.jpeg,
        width=photo.width,
        height=photo.height,
        box=photo.box,
        landmarks=photo.landmarks,
        visibility=photo.visibility,
        garment_type=item.garment.code,
        category=CATEGORY_NUMBERS[item.garment.category],
        attributes=attributes,
        variation=photo.variation,
        view=photo.view,
    )
