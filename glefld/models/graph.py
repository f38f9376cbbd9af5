"""One graph from a photo's pixels and boxes to landmarks in the photo: what ``glefld.export`` exports.

It computes what ``glefld.data.host`` and ``glefld.predict`` compute in several steps, by tensor operations alone, so
that a compiler can take all of it. Letters in shapes: n boxes, H and W the photo's sides, S the square input's, K
landmarks, T garment types.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from glefld.data.truth import SEEN_CODES
from glefld.models.system import Model
from glefld.schema import Visibility

#: Rows and columns of the shrunk photo that an input may touch beyond its own side.
EDGE = 4


class Answer(NamedTuple):
    """What the graph puts out; a model that does not tell visibility or type has no such output."""

    landmarks: Tensor  # [n, K, 2] float32 x y, photo's pixels; NaN where the garment type has none
    scores: Tensor  # [n, K] float32; NaN with the landmark
    visibility: Tensor | None = None  # [n, K] int8, codes of schema.Visibility
    garment_type: Tensor | None = None  # [n] int64, index into the garment types
    garment_type_score: Tensor | None = None  # [n] float32

    @classmethod
    def of(cls, found: tuple[Tensor, ...], names: list[str]) -> "Answer":
        """Rebuild it from the outputs that there are."""
        return cls(**dict(zip(names, found, strict=True)))


class PhotoGraph(nn.Module):
    """A landmark model with its crop before it and its decoding behind it.

    photo [H, W, 3] uint8, upright RGB, and boxes [n, 4] float32 x1 y1 x2 y2 in its pixels, which are clipped to it. A
    box without any area in the photo is answered with NaN.
    """

    lacks: Tensor
    codes: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Model, size: int, mirror: bool = False) -> None:
        """size: S. mirror: average with the answers for the mirror images, at twice the time."""
        super().__init__()
        self.model = model
        self.size = size
        self.mirror = mirror
        self.fill = model.normalisation.fill
        types = model.labels.landmark_set.garment_types
        has = torch.tensor([[i in type_.landmarks for i in range(model.landmarks)] for type_ in types])
        self.register_buffer("lacks", ~has.view(len(types), model.landmarks).bool())
        self.register_buffer("codes", torch.tensor(SEEN_CODES, dtype=torch.int8))
        self.register_buffer("mean", torch.tensor(model.normalisation.mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(model.normalisation.std)[:, None, None])

    def forward(self, photo: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        """[H, W, 3] and [n, 4] -> the outputs that there are, in ``Answer``'s order"""
        return tuple(value for value in self.answer(photo, boxes) if value is not None)

    def answer(self, photo: Tensor, boxes: Tensor) -> Answer:
        """[H, W, 3] and [n, 4] -> all of the answer"""
        height, width = photo.shape[:2]
        x1, x2 = (boxes[:, i].double().clamp(0, width) for i in (0, 2))
        y1, y2 = (boxes[:, i].double().clamp(0, height) for i in (1, 3))
        good = (x2 > x1) & (y2 > y1)
        # Any other box, so that nothing is divided by 0.
        x1, y1 = (torch.where(good, low, 0) for low in (x1, y1))
        x2, y2 = (torch.where(good, high, 1) for high in (x2, y2))
        images = (crops(photo, x1, y1, x2, y2, self.size, self.fill) - self.mean) / self.deviation

        output = self.model.both_ways(images) if self.mirror else self.model(images)
        assert output.heatmaps is not None
        landmarks, scores = self.model.codec.decode(output.heatmaps)
        scores = self.model.calibration(scores)
        scale = torch.stack([x2 - x1, y2 - y1], dim=-1)[:, None] / self.size
        landmarks = (landmarks.double() * scale + torch.stack([x1, y1], dim=-1)[:, None]).float()
        landmarks = torch.where(good[:, None, None], landmarks, torch.nan)
        scores = torch.where(good[:, None], scores, torch.nan)
        seen = None
        if output.visibility is not None:
            seen = self.codes[output.visibility.argmax(dim=-1)]

        if output.garment_type is not None:
            sure, type_ = output.garment_type.softmax(dim=-1).max(dim=-1)
            sure = torch.where(good, sure, torch.nan)
        elif len(self.lacks) == 1:  # a set of one type needs no answer of the model
            sure, type_ = torch.ones_like(scores[:, 0]), torch.zeros_like(scores[:, 0], dtype=torch.int64)
        else:
            return Answer(landmarks, scores, seen)
        lacks = self.lacks[type_]  # [n, K]
        landmarks = torch.where(lacks[..., None], torch.nan, landmarks)
        scores = torch.where(lacks, torch.nan, scores)
        if seen is not None:
            seen = torch.where(lacks, int(Visibility.ABSENT), seen)
        return Answer(landmarks, scores, seen, type_, sure)


def crops(photo: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, size: int, fill: int) -> Tensor:
    """[H, W, 3] uint8 and the sides of n regions, each [n] float64 -> their pictures [n, 3, S, S] in 0 to 255

    As ``host.render``: the photo is shrunk with a triangular filter to about the region's scale, and the region's
    pixels are interpolated in that, ``fill`` around it; each step rounds to whole levels. Both steps are products with
    a matrix for each axis, and only those rows and columns of the shrunk photo are computed that the region touches.
    """
    height, width = photo.shape[:2]
    pixels = (photo.permute(2, 0, 1).float() - fill)[None]  # [1, 3, H, W]; what is outside is 0
    shrink_x, blend_x = along(x1, x2, width, size)
    shrink_y, blend_y = along(y1, y2, height, size)
    pixels = whole(pixels @ shrink_x.transpose(1, 2)[:, None])  # [n, 3, H, S + EDGE]
    pixels = whole(shrink_y[:, None] @ pixels)  # [n, 3, S + EDGE, S + EDGE]
    return whole(blend_y[:, None] @ pixels @ blend_x.transpose(1, 2)[:, None]) + fill


def along(low: Tensor, high: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the matrices that shrink and interpolate along one axis, [n, S + EDGE, count] and [n, S, S + EDGE].

    low, high: ends of the regions, each [n] float64; count: the photo's pixels along the axis.
    """
    scale = (high - low) / size  # photo's pixels per pixel of the input
    kept = (count / scale.clamp(min=1)).round().clamp(min=1)  # pixels of the whole photo when shrunk
    step = (count / kept)[:, None]  # photo's pixels per pixel of the shrunk one
    number = torch.arange(size, dtype=torch.float64)
    place = (
        low[:, None] + (number + 0.5) * scale[:, None]
    ) / step - 0.5  # [n, S], in pixels of the shrunk photo
    shrunk = place[:, :1].floor() + torch.arange(size + EDGE, dtype=torch.float64)  # [n, S + EDGE]
    centre = (shrunk + 0.5) * step - 0.5
    away = (torch.arange(count, dtype=torch.float32) - centre.float()[..., None]) / step.float()[..., None]
    weight = (1 - away.abs()).clamp(min=0)
    weight = weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    inside = (shrunk >= 0) & (shrunk < kept[:, None])
    blend = (1 - (place[:, :, None] - shrunk[:, None]).abs()).clamp(min=0)
    return torch.where(inside[..., None], weight, 0), blend.float()


def whole(levels: Tensor) -> Tensor:
    """Round to whole levels, halves up, as the filters for pixels of 8 bits do."""
    return (levels + 0.5).floor()
