"""The input pipeline on a GPU: DALI decodes, shrinks, warps, colours and normalises in one graph.

S is the square input's size.
"""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from glefld.data.augmentation import compose
from glefld.data.decoding import decode
from glefld.data.host import Loaded
from glefld.data.photos import is_decodable_jpeg
from glefld.data.picture import Normalisation, Picture
from glefld.errors import BadPhoto

Item = TypeVar("Item")

#: Batches that DALI has been given but not yet asked for.
DEPTH = 2
#: A picture of one grey pixel, to fill the pipeline with before its first batch.
BLANK = Picture(np.frombuffer(b"P6\n1 1\n255\n\x80\x80\x80", np.uint8), 1, 1, np.eye(2, 3))


@dataclass
class _Entry(Generic[Item]):
    """A batch in the pipeline: its pictures as DALI gets them, those that are bad left out."""

    item: Item
    pictures: list[Picture]
    good: list[int]  # the position of each of the pictures in the batch
    bad: dict[int, BadPhoto]


class DaliEngine:
    """Loads lists of pictures on the GPU ``device_id``: the next list is fed before the one before is taken.

    Without a device the same graph runs on the CPU, slower than ``HostEngine``: to compare the two.
    """

    def __init__(
        self, size: int, normalisation: Normalisation, batch_size: int, device_id: int | None, threads: int
    ) -> None:
        self.size = size
        self._normalisation = normalisation
        self._device_id = device_id
        self._settings = {"batch_size": batch_size, "num_threads": threads, "device_id": device_id}
        self._pool = ThreadPoolExecutor(threads, "pictures")
        self._stream = torch.cuda.Stream(device_id) if device_id is not None else None
        self._build()

    def load(self, batches: Iterable[tuple[Item, list[Picture]]]) -> Iterator[tuple[Item, Loaded]]:
        """Yield each item with its pictures, in order."""
        pending: deque[_Entry[Item]] = deque()
        try:
            for entry in self._checked(batches):
                pending.append(entry)
                try:
                    self._start(entry)
                    if len(pending) < DEPTH:
                        continue
                    images = self._take(pending[0])
                except RuntimeError:
                    yield from self._recovered(pending)
                    continue
                yield self._finished(pending.popleft(), images)
            while pending:
                try:
                    images = self._take(pending[0])
                except RuntimeError:
                    yield from self._recovered(pending)
                    continue
                yield self._finished(pending.popleft(), images)
        finally:
            # Whoever stops early leaves batches in the pipeline, which would come out as the next ones'.
            with contextlib.suppress(RuntimeError):
                while pending:
                    self._take(pending.popleft())
            if pending:
                self._build()

    def _checked(self, batches: Iterable[tuple[Item, list[Picture]]]) -> Iterator[_Entry[Item]]:
        """Yield the batches without the pictures that cannot be decoded: one of them would break the pipeline."""
        for item, pictures in batches:
            whole = all(p.encoded.ndim == 1 and p.decoding == "stored" for p in pictures)
            answers: list[Picture | BadPhoto] = (
                [*pictures] if whole else list(self._pool.map(_readable, pictures))
            )
            good = [i for i, answer in enumerate(answers) if isinstance(answer, Picture)]
            bad = {i: answer for i, answer in enumerate(answers) if isinstance(answer, BadPhoto)}
            yield _Entry(item, [p for p in answers if isinstance(p, Picture)], good, bad)

    def _finished(self, entry: _Entry[Item], images: Tensor) -> tuple[Item, Loaded]:
        return entry.item, Loaded(images, entry.bad)

    def _recovered(self, pending: "deque[_Entry[Item]]") -> Iterator[tuple[Item, Loaded]]:
        """Load what was in a pipeline that a picture has broken: on a new one, batch by batch."""
        self._build()
        while pending:
            entry = pending.popleft()
            try:
                self._start(entry)
                images = self._take(entry)
            except RuntimeError:
                self._build()
                images = self._one_by_one(entry)
            yield self._finished(entry, images)

    def _one_by_one(self, entry: _Entry[Item]) -> Tensor:
        """Load a batch picture by picture. What DALI refuses is decoded here, or told."""
        found = []
        for position, picture in zip(entry.good, entry.pictures, strict=True):
            single = _Entry(None, [picture], [position], {})
            try:
                self._start(single)
                found.append(self._take(single))
                continue
            except RuntimeError:
                self._build()
            answer = _decoded_here(picture)
            if isinstance(answer, BadPhoto):
                entry.bad[position] = answer
                continue
            single.pictures = [answer]
            self._start(single)
            found.append(self._take(single))
        return torch.cat(found) if found else self._nothing()

    def _nothing(self) -> Tensor:
        device = "cpu" if self._device_id is None else f"cuda:{self._device_id}"
        return torch.empty(0, 3, self.size, self.size, device=device)

    def _on_device(self) -> contextlib.AbstractContextManager[object]:
        # Each thread starts with device 0 as its own, whichever the training's is.
        return torch.cuda.device(self._device_id) if self._device_id is not None else contextlib.nullcontext()

    def _build(self) -> None:
        with self._on_device():
            self._pipeline: Pipeline = _graph(
                size=self.size,
                normalisation=self._normalisation,
                gpu=self._device_id is not None,
                prefetch_queue_depth=DEPTH,
                exec_async=True,
                exec_pipelined=True,
                **self._settings,
            )
            self._pipeline.build()
            # The first run fills the whole queue. It is done with blanks, so that from then on each run is one batch.
            for _ in range(DEPTH):
                self._feed([BLANK])
            self._pipeline.schedule_run()
            for _ in range(DEPTH):
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()

    def _start(self, entry: _Entry[Item]) -> None:
        if entry.pictures:
            with self._on_device():
                self._feed(entry.pictures)
                self._pipeline.schedule_run()

    def _take(self, entry: _Entry[Item]) -> Tensor:
        """Return the images of the oldest batch in the pipeline, which is the entry's."""
        if not entry.pictures:
            return self._nothing()
        with self._on_device():
            (output,) = self._pipeline.share_outputs()
            images = torch.from_dlpack(output.as_tensor())
            # The next run reuses the pipeline's buffer, so copy the batch out of it.
            if self._stream is None:
                copy = images.clone()
            else:
                # On its own stream the copy does not wait for the training step. Synchronise before the buffer is
                # reused.
                with torch.cuda.stream(self._stream):
                    copy = images.clone()
                self._stream.synchronize()
                copy.record_stream(torch.cuda.current_stream(copy.device))
            del images, output
            self._pipeline.release_outputs()
            return copy

    def _feed(self, pictures: list[Picture]) -> None:
        sizes, matrices = [], []
        for picture in pictures:
            # Shrink with an antialiased resize first, so that the affine map works near scale 1 and does not alias.
            scale = np.minimum(1, np.linalg.norm(picture.to_input[:, :2], axis=0))
            width = max(1, round(picture.width * scale[0]))
            height = max(1, round(picture.height * scale[1]))
            stretch = np.array([[picture.width / width, 0, 0], [0, picture.height / height, 0]])
            sizes.append(np.array([height, width], np.float32))
            matrices.append(compose(picture.to_input, stretch).astype(np.float32))
        self._pipeline.feed_input("encoded", [picture.encoded for picture in pictures])
        self._pipeline.feed_input("resized", sizes)
        self._pipeline.feed_input("matrix", matrices)
        self._pipeline.feed_input("colour", [np.array(picture.colour, np.float32) for picture in pictures])


def _readable(picture: Picture) -> Picture | BadPhoto:
    """Return the picture as bytes that DALI can decode, or what is wrong with it."""
    data = picture.encoded
    if data.ndim == 3:
        return replace(picture, encoded=_ppm(data))
    if picture.decoding == "stored":
        return picture
    try:
        if is_decodable_jpeg(data):
            return picture
    except BadPhoto as bad:
        if picture.decoding == "strict":
            return bad
    return _decoded_here(picture)


def _decoded_here(picture: Picture) -> Picture | BadPhoto:
    """Return the picture with its pixels, as the CPU's pipeline decodes it: DALI refuses what is damaged."""
    try:
        pixels, _ = decode(picture)
    except BadPhoto as bad:
        return bad
    return replace(picture, encoded=_ppm(pixels))


def _ppm(pixels: np.ndarray) -> np.ndarray:
    """Encode [H, W, 3] as PPM, a header before raw pixels: DALI decodes it like any other format."""
    header = f"P6\n{pixels.shape[1]} {pixels.shape[0]}\n255\n".encode()
    return np.concatenate([np.frombuffer(header, np.uint8), pixels.ravel()])


@pipeline_def
def _graph(size: int, normalisation: Normalisation, gpu: bool) -> object:
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    resized = fn.external_source(name="resized", dtype=types.FLOAT, ndim=1)
    matrix = fn.external_source(name="matrix", dtype=types.FLOAT, ndim=2)
    colour = fn.external_source(name="colour", dtype=types.FLOAT, ndim=1)
    images = fn.decoders.image(
        encoded,
        device="mixed" if gpu else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,  # as the CPU's decoder does: otherwise the two differ by up to 12 levels
    )
    images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR, antialias=True)
    images = fn.warp_affine(
        images,
        matrix=matrix,
        size=(size, size),
        inverse_map=False,
        interp_type=types.INTERP_LINEAR,
        fill_value=normalisation.fill,
    )
    images = fn.color_twist(
        images, brightness=colour[0], contrast=colour[1], saturation=colour[2], hue=colour[3]
    )
    return fn.crop_mirror_normalize(
        images,
        mean=list(normalisation.mean),
        std=list(normalisation.std),
        output_layout="CHW",
        dtype=types.FLOAT,
    )
