"""Photos of a class are grey with a blot of the class's colour: an image folder that a small network learns at once."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"blue": (40, 40, 250), "green": (30, 200, 30), "red": (250, 40, 40)}
WIDTH, HEIGHT = 48, 36


def image_folder(splits: Mapping[str, int], seed: int = 0) -> dict[str, bytes]:
    """So many photos of each colour in each split, by their path, some of them deeper in their class's folder."""
    rng = np.random.default_rng(seed)
    return {
        f"{split}/{name}/{'deeper/' * (i % 2)}{i:03d}.png": blot(colour, rng)
        for split, count in splits.items()
        for name, colour in COLOURS.items()
        for i in range(count)
    }


def blot(colour: tuple[int, int, int], rng: np.random.Generator) -> bytes:
    image = Image.new("RGB", (WIDTH, HEIGHT), (int(rng.integers(90, 160)),) * 3)
    x, y = rng.integers(12, WIDTH - 12), rng.integers(12, HEIGHT - 12)
    ImageDraw.Draw(image).ellipse([int(x) - 9, int(y) - 9, int(x) + 9, int(y) + 9], fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
