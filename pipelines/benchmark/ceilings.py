"""What this machine can do at most: multiplying, convolving, JPEGs, reading bytes."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F

from glefld import storage
from pipelines.benchmark.crop_script import QUALITY, Cropped
from pipelines.benchmark.timing import rate


def matrix_peak(dtype: torch.dtype, seconds: float, device: torch.device) -> float:
    """Return floating-point operations per second of one large matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return rate(lambda: left @ right, 2.0 * side**3, seconds, device)


@torch.no_grad()
def convolution_peak(dtype: torch.dtype, seconds: float, device: torch.device) -> float:
    """Return floating-point operations per second of 3 x 3 convolutions, 256 channels to 256, channels-last."""
    batch, channels, side = (128 if device.type == "cuda" else 8), 256, 28
    # Weights as a training has them, laid out for the kernel.
    images = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    images, weight = (x.contiguous(memory_format=torch.channels_last) for x in (images, weight))
    work = 2.0 * batch * channels * channels * 9 * side * side
    return rate(lambda: F.conv2d(images, weight, padding=1), work, seconds, device)


def decode_rate(pictures: Sequence[bytes], threads: int, seconds: float) -> float:
    """Return pictures per second that libjpeg-turbo decodes in so many threads."""
    return _parallel(lambda data: simplejpeg.decode_jpeg(data, "RGB"), pictures, threads, seconds)


def recode_turbo(photo: Cropped) -> bytes:
    """Decode, crop and encode with libjpeg-turbo: quality 95, 4:4:4."""
    data, (x1, y1, x2, y2) = photo
    crop = np.ascontiguousarray(simplejpeg.decode_jpeg(data, "RGB")[y1:y2, x1:x2])
    return simplejpeg.encode_jpeg(crop, quality=QUALITY, colorsubsampling="444")


def recode_rate(
    recode: Callable[[Cropped], bytes], photos: Sequence[Cropped], threads: int, seconds: float
) -> float:
    """Return photos per second that are decoded, cropped and encoded in so many threads."""
    return _parallel(recode, photos, threads, seconds)


def read_rate(urls: Sequence[str], seconds: float) -> float:
    """Return bytes per second of reading whole files, one after the other."""
    start, total = time.perf_counter(), 0
    for url in itertools.cycle(urls):
        total += len(storage.read_bytes(url))
        if (spent := time.perf_counter() - start) >= seconds:
            return total / spent
    raise AssertionError("no files to read")


def _parallel(work: Callable[[Any], object], items: Sequence[Any], threads: int, seconds: float) -> float:
    """Return items per second of threads that go round the items until the time is up."""
    start = time.perf_counter()

    def loop(own: Iterable[Any]) -> int:
        done = 0
        for item in own:
            work(item)
            done += 1
            if time.perf_counter() - start >= seconds:
                break
        return done

    def from_place(first: int) -> Iterator[Any]:
        return itertools.islice(itertools.cycle(items), first, None)

    places = [i * len(items) // threads for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(loop, map(from_place, places)))
    return done / (time.perf_counter() - start)
