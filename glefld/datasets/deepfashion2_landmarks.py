"""DeepFashion2's 13 categories and 294 landmarks. Each category has its own slots among the 294.

Counts and order are those of the data set (Ge et al., CVPR 2019, https://arxiv.org/abs/1901.07973). The sigmas are
those of its challenge's evaluation code.
"""

from collections.abc import Iterator
from itertools import accumulate

from glefld.schema import GarmentType, LandmarkSet

#: Name and number of landmarks of each category. A category's id is its 1-based position here.
CATEGORIES: tuple[tuple[str, int], ...] = (
    ("short sleeve top", 25),
    ("long sleeve top", 33),
    ("short sleeve outwear", 31),
    ("long sleeve outwear", 39),
    ("vest", 15),
    ("sling", 15),
    ("shorts", 10),
    ("trousers", 14),
    ("skirt", 8),
    ("short sleeve dress", 29),
    ("long sleeve dress", 37),
    ("vest dress", 19),
    ("sling dress", 19),
)
#: Sigmas for object keypoint similarity: annotators' spread at each landmark, relative to the square root of the area.
SIGMAS: tuple[float, ...] = (
    # short sleeve top
    0.012, 0.0158, 0.0169, 0.0165, 0.0169, 0.0158, 0.0298, 0.0329, 0.0321, 0.0323, 0.034, 0.0388, 0.0452,
    0.0574, 0.0492, 0.0352, 0.0492, 0.0574, 0.0452, 0.0388, 0.034, 0.0323, 0.0321, 0.0329, 0.0298,
    # long sleeve top
    0.0194, 0.017, 0.0185, 0.0193, 0.0185, 0.017, 0.0286, 0.0471, 0.0547, 0.0526, 0.043, 0.0392, 0.0513,
    0.0566, 0.0509, 0.0564, 0.0542, 0.0604, 0.0599, 0.052, 0.0599, 0.0604, 0.0542, 0.0564, 0.0509, 0.0566,
    0.0513, 0.0392, 0.043, 0.0526, 0.0547, 0.0471, 0.0286,
    # short sleeve outwear
    0.0074, 0.0085, 0.0165, 0.0248, 0.0165, 0.0085, 0.0156, 0.0231, 0.0296, 0.0137, 0.0195, 0.025, 0.0347,
    0.038, 0.0257, 0.037, 0.0257, 0.038, 0.0347, 0.025, 0.0195, 0.0137, 0.0296, 0.0231, 0.0156, 0.0248,
    0.0469, 0.0632, 0.037, 0.0469, 0.0632,
    # long sleeve outwear
    0.0137, 0.0153, 0.0243, 0.0377, 0.0243, 0.0153, 0.0203, 0.0366, 0.0467, 0.0433, 0.0393, 0.0329, 0.0418,
    0.0477, 0.0399, 0.0331, 0.042, 0.0492, 0.0436, 0.0478, 0.0436, 0.0492, 0.042, 0.0331, 0.0399, 0.0477,
    0.0418, 0.0329, 0.0393, 0.0433, 0.0467, 0.0366, 0.0203, 0.0377, 0.0645, 0.0573, 0.0478, 0.0645, 0.0573,
    # vest
    0.0352, 0.0158, 0.021, 0.0214, 0.021, 0.0158, 0.0196, 0.05, 0.0489, 0.0404, 0.0401, 0.0404, 0.0489,
    0.05, 0.0196,
    # sling
    0.0276, 0.0548, 0.0283, 0.0204, 0.0283, 0.0548, 0.0369, 0.0726, 0.0677, 0.064, 0.0251, 0.064, 0.0677,
    0.0726, 0.0369,
    # shorts
    0.0308, 0.0216, 0.0308, 0.0506, 0.0494, 0.0463, 0.0477, 0.0463, 0.0494, 0.0506,
    # trousers
    0.0275, 0.0202, 0.0275, 0.0651, 0.0451, 0.035, 0.028, 0.0392, 0.0362, 0.0392, 0.028, 0.035, 0.0451,
    0.0651,
    # skirt
    0.0253, 0.0195, 0.0253, 0.0513, 0.0543, 0.0415, 0.0543, 0.0513,
    # short sleeve dress
    0.0153, 0.023, 0.0167, 0.0145, 0.0167, 0.023, 0.0332, 0.0391, 0.0391, 0.0396, 0.044, 0.0452, 0.0498,
    0.0514, 0.0585, 0.0655, 0.0635, 0.0602, 0.0635, 0.0655, 0.0585, 0.0514, 0.0498, 0.0452, 0.044, 0.0396,
    0.0391, 0.0391, 0.0332,
    # long sleeve dress
    0.0121, 0.0134, 0.0158, 0.0162, 0.0158, 0.0134, 0.0246, 0.0406, 0.047, 0.0404, 0.0463, 0.0466, 0.0435,
    0.0499, 0.0455, 0.044, 0.0411, 0.049, 0.0576, 0.0685, 0.0618, 0.0483, 0.0618, 0.0685, 0.0576, 0.049,
    0.0411, 0.044, 0.0486, 0.0499, 0.0435, 0.0466, 0.0463, 0.0404, 0.047, 0.0406, 0.0246,
    # vest dress
    0.0116, 0.0167, 0.016, 0.018, 0.016, 0.0167, 0.0196, 0.0385, 0.0421, 0.0497, 0.0562, 0.0528, 0.0428,
    0.0528, 0.0562, 0.0497, 0.0421, 0.0385, 0.0196,
    # sling dress
    0.0244, 0.0297, 0.0244, 0.0208, 0.0244, 0.0297, 0.0173, 0.0616, 0.0659, 0.0712, 0.0707, 0.0685, 0.0339,
    0.0685, 0.0707, 0.0712, 0.0659, 0.0616, 0.0173,
)  # fmt: skip
NECK = (
    6  # upper and full-body garments start with 6 landmarks around the neck, lower ones with 3 at the waist
)
WAIST = 3
LOWER = ("shorts", "trousers", "skirt")
#: Outwear's two front edges, side by side in the middle: 1-based slots of one edge to those of the other.
FRONT_EDGES = {
    "short sleeve outwear": {4: 26, 16: 29, 27: 30, 28: 31},
    "long sleeve outwear": {4: 34, 20: 37, 35: 38, 36: 39},
}


def _mirror(category: str, count: int) -> Iterator[int]:
    """Yield the mirror slot of each of a category's slots, both 1-based.

    Landmarks are numbered around the outline from one side to the other, so mirroring reverses the order. The pairs of
    the front edges follow from the symmetry of the sigmas. A public table of pairs differs for 2-6 and 4-26 of short
    sleeve outwear and 9-13 of the vest.
    """
    pairs = FRONT_EDGES.get(category, {})
    pairs = pairs | {b: a for a, b in pairs.items()}
    last = pairs[4] - 1 if pairs else count
    for slot in range(1, count + 1):
        if slot in pairs:
            yield pairs[slot]
        elif category in LOWER:
            yield WAIST + 1 - slot if slot <= WAIST else count + WAIST + 1 - slot
        elif slot == 1:
            yield 1
        else:
            yield NECK + 2 - slot if slot <= NECK else last + NECK + 1 - slot


def _landmark_set() -> LandmarkSet:
    counts = [count for _, count in CATEGORIES]
    offsets = [0, *accumulate(counts)][:-1]
    rows = list(zip(offsets, CATEGORIES, strict=True))
    return LandmarkSet(
        name="deepfashion2",
        landmarks=tuple(
            f"{name.replace(' ', '_')}_{i + 1}" for _, (name, count) in rows for i in range(count)
        ),
        mirror=tuple(start + slot - 1 for start, (name, count) in rows for slot in _mirror(name, count)),
        garment_types=tuple(
            GarmentType(code, name, tuple(range(start, start + count)))
            for code, (start, (name, count)) in enumerate(rows, 1)
        ),
    )


DEEPFASHION2 = _landmark_set()
assert len(SIGMAS) == len(DEEPFASHION2)
