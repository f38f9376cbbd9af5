"""The input pipeline on the CPU: each picture is decoded, shrunk, warped and coloured by one thread of a pool.

It gives what DALI's graph in ``glefld.data.gpu`` gives, to a few of 255 levels. libjpeg-turbo decodes, PyTorch
shrinks, OpenCV warps; all of them release the GIL. S is the square input's size.
"""

import math
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from glefld.data.augmentation import compose, invert
from glefld.data.decoding import SCRATCH, decode, turn
from glefld.data.picture import PLAIN_COLOUR, Normalisation, Picture
from glefld.errors import BadPhoto

Item = TypeVar("Item")

#: Batches that are being decoded beyond the one that is waited for.
AHEAD = 1
#: NTSC's luma and chroma: the space in which DALI's ``color_twist`` turns the hue and scales the saturation.
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)


@dataclass
class Loaded:
    """The inputs of the pictures that could be decoded, and what is wrong with the others by their position."""

    images: Tensor  # [b, 3, S, S], normalised
    bad: dict[int, BadPhoto]


class HostEngine:
    """Loads lists of pictures in a pool of threads, the next list while the one before is finished."""

    def __init__(self, size: int, normalisation: Normalisation, threads: int) -> None:
        self.size = size
        self._normalisation = normalisation
        self._pool = ThreadPoolExecutor(threads, "pictures")
        self._buffers = Buffers()
        # OpenCV would run a pool of its own for each picture. The setting is the process's, and we alone use OpenCV.
        cv2.setNumThreads(1)

    def load(self, batches: Iterable[tuple[Item, list[Picture]]]) -> Iterator[tuple[Item, Loaded]]:
        """Yield each item with its pictures, in order."""
        pending: deque[tuple[Item, np.ndarray, list[Future[BadPhoto | None]]]] = deque()
        try:
            for item, pictures in batches:
                # The memory is channels last, which is what convolutions are fast on.
                images = self._buffers.get((len(pictures), self.size, self.size, 3))
                rows = zip(pictures, images, strict=True)
                futures = [self._pool.submit(render_or_tell, p, self._normalisation, out) for p, out in rows]
                pending.append((item, images, futures))
                if len(pending) > AHEAD:
                    yield self._finished(*pending.popleft())
            while pending:
                yield self._finished(*pending.popleft())
        finally:
            # Whoever stops early gives the memory back, so nobody may still be writing to it.
            for _, _, futures in pending:
                wait([future for future in futures if not future.cancel()])

    def _finished(
        self, item: Item, images: np.ndarray, futures: list[Future[BadPhoto | None]]
    ) -> tuple[Item, Loaded]:
        answers = [future.result() for future in futures]
        bad = {i: answer for i, answer in enumerate(answers) if answer is not None}
        if bad:
            images = images[[i for i in range(len(answers)) if i not in bad]]
        return item, Loaded(torch.from_numpy(images).permute(0, 3, 1, 2), bad)


class Buffers:
    """Float arrays that are used again once nobody holds them: the system takes long to hand out new memory."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def get(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of this shape with any content."""
        count = math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.float32)
        if memory.size < count:
            memory = torch.empty(count).numpy()  # aligned as convolutions like it, which NumPy's own is not
        # A tensor of the array keeps the array alive, not the memory's owner.
        array = memory[:count].reshape(shape)
        weakref.finalize(array, self._free.append, memory)
        return array


def render_or_tell(picture: Picture, normalisation: Normalisation, out: np.ndarray) -> BadPhoto | None:
    """Like ``render``, but returns a BadPhoto."""
    try:
        render(picture, normalisation, out)
    except BadPhoto as bad:
        return bad
    return None


def render(picture: Picture, normalisation: Normalisation, out: np.ndarray) -> None:
    """Write the normalised input to ``out``, [S, S, 3] float32. BadPhoto if the picture cannot be decoded."""
    size = len(out)
    canvas = paint(picture, size, normalisation.fill)
    cv2.subtract(canvas, (*normalisation.mean, 0), dst=out, dtype=cv2.CV_32F)  # type: ignore[call-overload]  # the stubs know no scalars
    # In one loop a row: numpy is slow on a last dimension of three.
    out.reshape(size, -1)[...] *= np.tile(1 / np.array(normalisation.std, np.float32), size)


def paint(picture: Picture, size: int, fill: int) -> np.ndarray:
    """Return the input before it is normalised, [S, S, 3] uint8, valid until the thread paints again.

    fill: the level outside the picture. BadPhoto if the picture cannot be decoded.
    """
    (a, b, _), (c, d, _) = picture.to_input.tolist()
    # How much the input shrinks the picture along its own axes.
    pixels, reduced = decode(picture, (min(1, math.hypot(a, c)), min(1, math.hypot(b, d))), SCRATCH)
    to_input = picture.to_input * (reduced, reduced, 1)
    if (b == c == 0 and min(a, d) < 0) or a == d == 0:
        pixels, turned = turn(pixels, to_input[:, :2])
        to_input = compose(to_input, invert(turned))
    (a, b, x), (c, d, y) = to_input.tolist()
    height, width = pixels.shape[:2]
    # Shrink with an antialiased resize first, so that the affine map works near scale 1 and does not alias.
    new_width = max(1, round(width * min(1, math.hypot(a, c))))
    new_height = max(1, round(height * min(1, math.hypot(b, d))))
    if (new_width, new_height) != (width, height):
        pixels = resize(pixels, new_width, new_height)
        a, c = a * width / new_width, c * width / new_width
        b, d = b * height / new_height, d * height / new_height
    # OpenCV counts from pixels' centres, we from their corners.
    affine = np.array([[a, b, x + (a + b - 1) / 2], [c, d, y + (c + d - 1) / 2]])
    # It warps four channels in less than half the time of three.
    four = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA, dst=SCRATCH.get("four", *pixels.shape[:2], 4))
    warped = cv2.warpAffine(
        four,
        affine,
        (size, size),
        dst=SCRATCH.get("warped", size, size, 4),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(fill, fill, fill, 0),
    )
    canvas = cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, dst=SCRATCH.get("canvas", size, size, 3))
    if picture.colour != PLAIN_COLOUR:
        cv2.transform(canvas, colour_matrix(*picture.colour), dst=canvas)
    return canvas


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize [H, W, 3] uint8 with a triangular filter as wide as the scale asks for, as DALI and Pillow do."""
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # channels last also by its strides
    resized = functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def colour_matrix(brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """Return the affine map [3, 4] of RGB in 0 to 255 that DALI's ``color_twist`` applies; hue in degrees."""
    cosine, sine = math.cos(math.radians(hue)), math.sin(math.radians(hue))
    turn = saturation * np.array([[cosine, sine], [-sine, cosine]])
    chroma = np.eye(3)
    chroma[1:, 1:] = turn
    linear = brightness * contrast * (YIQ_TO_RGB @ chroma @ RGB_TO_YIQ)
    return np.concatenate([linear, np.full((3, 1), brightness * 128 * (1 - contrast))], axis=1)
