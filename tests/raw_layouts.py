"""Tiny raw data sets in the benchmarks' layouts, for the tests of everything that reads them."""

import dataclasses
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SLOTS = {1: 6, 2: 4, 3: 8}


def jpeg(seed: int, width: int = 60, height: int = 80) -> bytes:
    """A photo of noise: its bytes differ from every other seed's."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Row:
    """One garment as the lists have it; points are (visibility, x, y) in the type's own order."""

    photo: str
    split: str = "train"
    box: tuple[int, int, int, int] = (5, 10, 45, 70)
    garment_type: int = 1
    points: Sequence[tuple[int, int, int]] = ((0, 10, 15), (1, 20, 20), (0, 30, 60)) * 2 + ((2, 0, 0),) * 2

    @property
    def slots(self) -> Sequence[tuple[int, int, int]]:
        return self.points[: SLOTS[self.garment_type]]


def rows(count: int) -> list[Row]:
    """Good rows of all types: of each ten photos seven train, two val, one test."""
    splits = ("train",) * 7 + ("val",) * 2 + ("test",)
    return [
        Row(f"img/img_{i + 1:08d}.jpg", split=splits[i % 10], garment_type=i % 3 + 1) for i in range(count)
    ]


def photos(listed: Sequence[Row], **size: int) -> dict[str, bytes]:
    """A photo for each row, in the order of their names."""
    return {name: jpeg(seed, **size) for seed, name in enumerate(sorted({row.photo for row in listed}))}


#: The header of ``list_landmarks.txt``, which names the first landmark's columns only.
LANDMARK_COLUMNS = (
    "image_name clothes_type variation_type landmark_visibility_1 landmark_location_x_1 landmark_location_y_1"
)


def listing(header: str, lines: Sequence[str]) -> str:
    return "\n".join([str(len(lines)), header, *lines]) + "\n"


def fld_lists(listed: Sequence[Row]) -> dict[str, str]:
    """The three lists of the Fashion Landmark Detection benchmark, by their path."""

    def landmarks(row: Row) -> str:
        points = " ".join(f"{v} {x:03d} {y:03d}" for v, x, y in row.slots)
        return f"{row.photo} {row.garment_type} 1 {points}"

    boxes = [f"{row.photo} " + " ".join(f"{value:03d}" for value in row.box) for row in listed]
    return {
        "Anno/list_landmarks.txt": listing(LANDMARK_COLUMNS, [landmarks(row) for row in listed]),
        "Anno/list_bbox.txt": listing("image_name x_1 y_1 x_2 y_2", boxes),
        "Eval/list_eval_partition.txt": listing(
            "image_name evaluation_status", [f"{row.photo} {row.split}" for row in listed]
        ),
    }


def fine_lists(listed: Sequence[Row]) -> dict[str, str]:
    """The row-aligned files of DeepFashion's fine-grained annotation, but for the optional ones."""
    files = {}
    for split in dict.fromkeys(row.split for row in listed):
        chosen = [row for row in listed if row.split == split]
        packed = [[f"{x} {y}" for _, x, y in row.slots] for row in chosen]
        columns = {
            "": [row.photo for row in chosen],
            "_bbox": [" ".join(map(str, row.box)) for row in chosen],
            "_landmards": [" ".join(points + ["0 0"] * (8 - len(points))) for points in packed],
        }
        for suffix, lines in columns.items():
            files[f"Anno_fine/{split}{suffix}.txt"] = "".join(f"{line}\n" for line in lines)
    return files


def deepfashion2_item(category: int, count: int, **changes: object) -> dict[str, object]:
    """A garment as DeepFashion2's JSON has it, its ``count`` landmarks on a diagonal, 2, 1 and 0 by turns visible."""
    landmarks = [v for i in range(count) for v in (10 + i, 20 + i, (2, 1, 0)[i % 3])]
    item = {
        **{"segmentation": [[10, 10, 40, 10, 40, 60, 10, 60]], "scale": 2, "viewpoint": 2, "zoom_in": 1},
        **{"landmarks": landmarks, "style": 0, "bounding_box": [5, 10, 55, 70], "category_id": category},
        "occlusion": 1,
    }
    return {**item, **changes}


def deepfashion2_files(photos: Mapping[str, Sequence[Mapping[str, object]]], **size: int) -> dict[str, bytes]:
    """Photos named ``train/000001`` and their items as DeepFashion2's files, each photo with its JSON."""
    files = {}
    for seed, (name, items) in enumerate(photos.items()):
        split, stem = name.split("/")
        content = {f"item{i}": item for i, item in enumerate(items, 1)} | {"source": "user", "pair_id": seed}
        files[f"{split}/image/{stem}.jpg"] = jpeg(seed, **size)
        files[f"{split}/annos/{stem}.json"] = json.dumps(content).encode()
    return files


def write_files(root: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_archive(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The members, in their order, as a zip, tar or tar.gz (told by the name) or as files below a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    elif path.name.endswith((".tar", ".tar.gz")):
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        write_files(path, members)
    return path


def write_fld(
    root: Path, listed: Sequence[Row], images: Mapping[str, bytes], archive: str = "img.zip"
) -> Path:
    """A whole source in the layout of the Fashion Landmark Detection benchmark."""
    write_files(root, fld_lists(listed))
    below_img = {name.removeprefix("img/"): data for name, data in images.items()}
    write_archive(root / archive, images if "." in archive else below_img)
    return root
