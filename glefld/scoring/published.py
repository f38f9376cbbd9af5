"""Published scores, none of them measured by this project.

Each score is a paper's, on the benchmark's test split. It is comparable only to runs evaluated on the same photos.
"""

import dataclasses
from collections.abc import Sequence

from glefld.schema import FASHION8, RENDERED


@dataclasses.dataclass(frozen=True)
class Published:
    """One system's NE: the average, and by landmark in FASHION8's order (None if the paper does not report it)."""

    system: str
    source: str
    average: float
    by_landmark: tuple[float | None, ...] = (None,) * len(FASHION8)


@dataclasses.dataclass(frozen=True)
class PublishedLabels:
    """One system's label scores: for each reported k, top-k accuracy or recall at k by column."""

    system: str
    source: str
    found: dict[int, dict[str, float]]


_FASHIONNET = "Liu et al., DeepFashion, CVPR 2016"
_DFA = "Liu et al., Fashion Landmark Detection in the Wild, ECCV 2016, https://arxiv.org/abs/1608.03049"
_DLAN = "Yan et al., Unconstrained Fashion Landmark Detection, ACM MM 2017, https://arxiv.org/abs/1708.02044"
_BCRNN = "Wang et al., Attentive Fashion Grammar Network, CVPR 2018"
_LIU_LU = "Liu & Lu, Deep Fashion Analysis, ECCV Workshops 2018, https://doi.org/10.1007/978-3-030-11015-4_4"
_GLE = "Lee et al., A Global-Local Embedding Module, 2019, https://arxiv.org/abs/1908.10548"
_SANL = "Li et al., Spatial-Aware Non-Local Attention, 2019, https://arxiv.org/abs/1903.04104; as later papers cite it"

FLD = (
    Published(
        "FashionNet", _FASHIONNET, 0.0859, (0.0781, 0.0803, 0.0975, 0.0923, 0.0874, 0.0821, 0.0802, 0.0893)
    ),
    Published("DFA", _DFA, 0.0680, (0.0480, 0.0480, 0.0910, 0.0890, None, None, 0.0710, 0.0720)),
    Published("DLAN", _DLAN, 0.0672, (0.0531, 0.0547, 0.0705, 0.0735, 0.0752, 0.0748, 0.0693, 0.0675)),
    Published("BCRNN", _BCRNN, 0.0583, (0.0463, 0.0471, 0.0627, 0.0614, 0.0635, 0.0692, 0.0635, 0.0527)),
    Published("GLE", _GLE, 0.0568, (0.0386, 0.0391, 0.0675, 0.0672, 0.0576, 0.0605, 0.0615, 0.0621)),
    Published("SANL (second hand)", _SANL, 0.0396),
)
DEEPFASHION = (
    Published(
        "FashionNet", _FASHIONNET, 0.0872, (0.0854, 0.0902, 0.0973, 0.0935, 0.0854, 0.0845, 0.0812, 0.0823)
    ),
    Published("DFA", _DFA, 0.0660, (0.0628, 0.0637, 0.0658, 0.0621, 0.0726, 0.0702, 0.0658, 0.0663)),
    Published("DLAN", _DLAN, 0.0643, (0.0570, 0.0611, 0.0672, 0.0647, 0.0703, 0.0694, 0.0624, 0.0627)),
    Published("BCRNN", _BCRNN, 0.0484, (0.0415, 0.0404, 0.0496, 0.0449, 0.0502, 0.0523, 0.0537, 0.0551)),
    Published("Liu & Lu", _LIU_LU, 0.0474, (0.0332, 0.0346, 0.0487, 0.0519, 0.0422, 0.0429, 0.0620, 0.0639)),
    Published("GLE", _GLE, 0.0393, (0.0312, 0.0324, 0.0427, 0.0434, 0.0361, 0.0373, 0.0442, 0.0475)),
    Published("SANL (second hand)", _SANL, 0.0299),
)
_COARSE = ("category", "texture", "fabric", "shape", "part", "style", "mean")
#: By data set: top-k accuracy of the category, and attribute recall at k. "mean" is the paper's "all": its figures are
#: the plain mean of the five types.
LABELS = {
    "deepfashion": (
        PublishedLabels(
            "Liu & Lu",
            _LIU_LU,
            {
                3: dict(zip(_COARSE, (0.9116, 0.5617, 0.4320, 0.5828, 0.4697, 0.6882, 0.5469), strict=True)),
                5: dict(zip(_COARSE, (0.9612, 0.6583, 0.5352, 0.6780, 0.5742, 0.7413, 0.6374), strict=True)),
            },
        ),
    )
}
#: By data set: PCK@0.2, AUC and EPE of HRNet-w48-UDP as reported by mmpose. One model per garment type, input
#: 256 x 192 pixels, ImageNet weights, 210 epochs.
POSE: dict[str, dict[str, tuple[float, float, float]]] = {
    "fld": {"upper": (0.961, 0.609, 15.1), "lower": (0.978, 0.761, 8.9), "full": (0.983, 0.673, 11.7)}
}
_BY_DATASET = {"fld": FLD, "deepfashion": DEEPFASHION, "deepfashion-fine": DEEPFASHION}


def published(dataset: str, landmarks: Sequence[str]) -> tuple[Published, ...]:
    """Return the systems published for a data set; none if its landmarks are not the benchmarks' eight."""
    return _BY_DATASET.get(dataset, ()) if tuple(landmarks) == FASHION8.landmarks else ()


def note(dataset: str) -> str:
    """Return the note to print wherever published figures are shown, or would be: rendered photos have none."""
    if dataset.endswith(RENDERED):
        return "photos made by glefld synthesize: not comparable with any published figure"
    if dataset == "deepfashion-fine":
        # The fine lists re-annotate some of DeepFashion's photos. There are no closer published figures.
        return (
            "published: the papers' figures on DeepFashion's coarse lists (other photos and splits), not ours"
        )
    return "published: the papers' figures on the benchmark's test split, not ours"
