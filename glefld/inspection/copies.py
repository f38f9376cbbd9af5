"""Photos that are there more than once: the same bytes, and pictures that look the same.

A picture's hash is made of its lowest frequencies (pHash): which of 256 are above their median, in 32 x 32 pixels of
grey. Saving a photo again at another size or quality changes few of them.
"""

from collections.abc import Iterator

import numpy as np

from glefld.data.photos import decode_any, decode_jpeg

#: Side of the picture that is hashed, and number of frequencies in each direction.
SIDE = 32
FREQUENCIES = 16
#: Of 256 bits, so many may differ between two pictures that are told as one.
MOST_BITS = 40
#: Pairs are compared in blocks of so many pictures.
BLOCK = 1024


def exact(
    content: np.ndarray, photo: np.ndarray, split: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the groups of rows that show the same photo under several names: across splits, and within one.

    content: [n] hashes of the photos' bytes. photo: [n] hashes of their names. split: [n] int. One row per name.
    """
    # One row for each name: the garments of a photo are no copies.
    _, first = np.unique(np.stack([content, photo, split.astype(np.uint64)]), axis=1, return_index=True)
    first = np.sort(first)
    order = first[np.argsort(content[first], kind="stable")]
    edges = np.flatnonzero(np.diff(content[order])) + 1
    groups = [group for group in np.split(order, edges) if len(group) > 1]
    across = [group for group in groups if len(np.unique(split[group])) > 1]
    within = [group for group in groups if len(np.unique(split[group])) == 1]
    return across, within


def thumbnail(data: bytes) -> np.ndarray:
    """Return a stored picture as SIDE x SIDE pixels of grey, float32."""
    import cv2

    # At an eighth of its size if that is enough: most of the time is saved.
    pixels = decode_jpeg(data, "GRAY", damaged=True, min_width=2 * SIDE, min_height=2 * SIDE)
    grey = pixels[..., 0] if pixels is not None else np.asarray(decode_any(data).convert("L"))
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def perceptual_hash(thumbnail: np.ndarray) -> np.ndarray:
    """Return the hash of a thumbnail: [4] uint64."""
    import cv2

    low = cv2.dct(thumbnail)[:FREQUENCIES, :FREQUENCIES].ravel()
    low[0] = 0  # its brightness
    return np.packbits(low > np.median(low)).view(np.uint64)


def near(first: np.ndarray, second: np.ndarray, most: int = MOST_BITS) -> Iterator[tuple[int, int, int]]:
    """Yield the pairs of hashes [a, 4] and [b, 4] that differ in at most ``most`` bits: their places, and how many."""
    for start in range(0, len(first), BLOCK):
        block = first[start : start + BLOCK]
        bits = np.zeros((len(block), len(second)), np.uint16)
        for word in range(block.shape[1]):
            bits += np.bitwise_count(block[:, word, None] ^ second[None, :, word])
        for a, b in zip(*np.nonzero(bits <= most), strict=True):
            yield start + int(a), int(b), int(bits[a, b])
