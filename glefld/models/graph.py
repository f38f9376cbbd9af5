"""One graph from a photo's pixels to landmarks, or to boxes, in the photo: what ``glefld.export`` exports.

It computes what ``glefld.data.host`` and ``glefld.predict`` compute in several steps, by tensor operations alone, so
that a compiler can take all of it. Letters in shapes: n boxes, H and W the photo's sides, S the square input's, K
landmarks, T garment types.
"""

import torch
from torch import Tensor, nn

from glefld.data.truth import SEEN_CODES
from glefld.models.fcos import FCOS
from glefld.models.system import Model
from glefld.schema import Visibility

#: Rows and columns of the shrunk photo that an input may touch beyond its own side.
EDGE = 4
#: PyTorch's filter for pixels of 8 bits computes with whole numbers: their bound, and the most bits of a fraction.
MOST_WEIGHT, MOST_BITS = 2**15 - 0.5, 22


class Graph(nn.Module):
    """A model with the crop before it."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Model, size: int) -> None:
        """size: S."""
        super().__init__()
        self.model = model
        self.size = size
        self.fill = model.normalisation.fill
        self.register_buffer("mean", torch.tensor(model.normalisation.mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(model.normalisation.std)[:, None, None])

    def inputs(self, photo: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
        """[H, W, 3] uint8 and the sides of n regions, each [n] float64 -> the model's inputs [n, 3, S, S]"""
        return (crops(photo, x1, y1, x2, y2, self.size, self.fill) - self.mean) / self.deviation


class LandmarkGraph(Graph):
    """A landmark model with its crop before it and its decoding behind it.

    photo [H, W, 3] uint8, upright RGB, and boxes [n, 4] float32 x1 y1 x2 y2 in its pixels, which are clipped to it. A
    box without any area in the photo is answered with NaN, and all landmarks absent. The outputs:

    landmarks           [n, K, 2] float32 x y, photo's pixels; NaN where the garment type has none
    scores              [n, K] float32; NaN with the landmark
    visibility          [n, K] int8, codes of schema.Visibility; with models that tell
    garment_type        [n] int64, index into the garment types; with models that tell, or if there is one type
    garment_type_score  [n] float32; NaN for a box without area, whose type says nothing
    """

    lacks: Tensor
    codes: Tensor

    def __init__(self, model: Model, size: int, mirror: bool = False) -> None:
        """size: S. mirror: average with the answers for the mirror images, at twice the time."""
        super().__init__(model, size)
        self.mirror = mirror
        types = model.labels.landmark_set.garment_types
        has = torch.tensor([[i in type_.landmarks for i in range(model.landmarks)] for type_ in types])
        self.register_buffer("lacks", ~has.view(len(types), model.landmarks).bool())
        self.register_buffer("codes", torch.tensor(SEEN_CODES, dtype=torch.int8))

    def forward(self, photo: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        """[H, W, 3] and [n, 4] -> the outputs that there are"""
        return tuple(self.answer(photo, boxes).values())

    def answer(self, photo: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """[H, W, 3] and [n, 4] -> the outputs by name"""
        height, width = photo.shape[:2]
        x1, x2 = (boxes[:, i].double().clamp(0, width) for i in (0, 2))
        y1, y2 = (boxes[:, i].double().clamp(0, height) for i in (1, 3))
        good = (x2 > x1) & (y2 > y1)
        # Any other box, so that nothing is divided by 0.
        x1, y1 = (torch.where(good, low, 0) for low in (x1, y1))
        x2, y2 = (torch.where(good, high, 1) for high in (x2, y2))
        images = self.inputs(photo, x1, y1, x2, y2)
        output = self.model.both_ways(images) if self.mirror else self.model(images)
        assert output.heatmaps is not None
        landmarks, scores = self.model.codec.decode(output.heatmaps)
        scores = self.model.calibration(scores)
        scale = torch.stack([x2 - x1, y2 - y1], dim=-1)[:, None] / self.size
        landmarks = (landmarks.double() * scale + torch.stack([x1, y1], dim=-1)[:, None]).float()
        found = {
            "landmarks": torch.where(good[:, None, None], landmarks, torch.nan),
            "scores": torch.where(good[:, None], scores, torch.nan),
        }
        if output.visibility is not None:
            seen = self.codes[output.visibility.argmax(dim=-1)]
            found["visibility"] = torch.where(good[:, None], seen, int(Visibility.ABSENT))
        if output.garment_type is not None:
            sure, type_ = output.garment_type.softmax(dim=-1).max(dim=-1)
        elif len(self.lacks) == 1:  # a set of one type needs no answer of the model
            sure, type_ = torch.ones_like(boxes[:, 0]), torch.zeros_like(boxes[:, 0], dtype=torch.int64)
        else:
            return found
        lacks = self.lacks[type_]  # [n, K]
        found["landmarks"] = torch.where(lacks[..., None], torch.nan, found["landmarks"])
        found["scores"] = torch.where(lacks, torch.nan, found["scores"])
        if "visibility" in found:
            found["visibility"] = torch.where(lacks, int(Visibility.ABSENT), found["visibility"])
        return found | {"garment_type": type_, "garment_type_score": torch.where(good, sure, torch.nan)}


class DetectorGraph(Graph):
    """A detector with its crop before it, and with all that chooses among its boxes behind it.

    photo [H, W, 3] uint8, upright RGB.
    """

    model: FCOS

    def __init__(self, model: FCOS, size: int, least_score: float, most: int) -> None:
        """size: S. least_score: of a box, calibrated. most: boxes of the photo."""
        super().__init__(model, size)
        self.least_score = least_score
        self.most = most

    def forward(self, photo: Tensor) -> tuple[Tensor, ...]:
        """[H, W, 3] -> the outputs"""
        return tuple(self.answer(photo).values())

    def answer(self, photo: Tensor) -> dict[str, Tensor]:
        """[H, W, 3] -> boxes [n, 4] float32 x1 y1 x2 y2 in the photo's pixels and scores [n] float32, best first

        A network that has diverged is answered with one box of the score NaN.
        """
        from torchvision.ops import nms  # torchvision is slow to import

        from glefld.models import anchors

        height, width = (torch.scalar_tensor(side, dtype=torch.float64)[None] for side in photo.shape[:2])
        side = torch.maximum(height, width)
        x, y = (width - side) / 2, (height - side) / 2
        output = self.model(self.inputs(photo, x, y, x + side, y + side)).boxes
        assert output is not None
        boxes, scores = self.model.detector.every_box(output, self.size)
        diverged = ~(boxes.isfinite().all() & scores.isfinite().all())
        kept = torch.zeros_like(scores).index_fill(0, nms(boxes, scores, anchors.OVERLAP), 1)
        scores, places = (scores * kept).topk(min(anchors.MOST, len(scores)))
        corners = boxes[places].double().view(-1, 2, 2) * (side / self.size) + torch.cat([x, y])
        corners = torch.minimum(corners.clamp(min=0), torch.cat([width, height]))
        good = (corners[:, 1] > corners[:, 0]).all(dim=1) & (scores > anchors.LEAST_SCORE)
        scores = self.model.calibration(scores)
        good = good & (scores >= self.least_score)
        first = torch.arange(len(scores), device=scores.device) < 1
        chosen = (good & (good.cumsum(dim=0) <= self.most) | diverged & first).nonzero()[:, 0]
        scores = torch.where(diverged, torch.nan, scores)
        return {"boxes": corners.flatten(1)[chosen].float(), "scores": scores[chosen]}


def crops(photo: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, size: int, fill: int) -> Tensor:
    """[H, W, 3] uint8 and the sides of n regions, each [n] float64 -> their pictures [n, 3, S, S] in 0 to 255

    As ``host.render``: the photo is shrunk with a triangular filter to about the region's scale, and the region's
    pixels are interpolated in that, ``fill`` around it; each step rounds to whole levels. Both steps are products with
    a matrix for each axis, and only those rows and columns of the shrunk photo are computed that the region touches.
    """
    height, width = photo.shape[:2]
    pixels = photo.permute(2, 0, 1).float()[None]  # [1, 3, H, W]
    shrink_x, blend_x = along(x1, x2, width, size)
    shrink_y, blend_y = along(y1, y2, height, size)
    pixels = whole(pixels @ shrink_x.transpose(1, 2)[:, None])  # [n, 3, H, S + EDGE]
    pixels = whole(shrink_y[:, None] @ pixels) - fill  # [n, 3, S + EDGE, S + EDGE]
    return (blend_y[:, None] @ pixels @ blend_x.transpose(1, 2)[:, None] + fill).round()


def along(low: Tensor, high: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the matrices that shrink and interpolate along one axis, [n, S + EDGE, count] and [n, S, S + EDGE].

    low, high: ends of the regions, each [n] float64; count: the photo's pixels along the axis. What is outside of it
    counts as 0. The filter is that of PyTorch for pixels of 8 bits, so the levels are the same.
    """
    scale = (high - low) / size  # photo's pixels per pixel of the input
    kept = (count / scale.clamp(min=1)).round().clamp(min=1)  # pixels of the whole photo when shrunk
    step = (count / kept)[:, None]  # photo's pixels per pixel of the shrunk one
    first, stride = (low + 0.5 * scale)[:, None] / step - 0.5, scale[:, None] / step
    # [n, S], in pixels of the shrunk photo and, as OpenCV computes it, with 24 bits
    place = first.float() + stride.float() * torch.arange(size, dtype=torch.float32)
    shrunk = place[:, :1].double().floor() + torch.arange(size + EDGE, dtype=torch.float64)  # [n, S + EDGE]
    inside = (shrunk >= 0) & (shrunk < kept[:, None])
    # Its weights have 15 bits, the largest one of the whole photo. Where it is not here it is at the edge, which cuts
    # the filter.
    some = torch.cat([torch.zeros_like(step), shrunk.clamp(min=0).minimum(kept[:, None] - 1)], dim=1)
    weight = triangle(some, step, count)
    unit = 2 ** ((MOST_WEIGHT / weight.amax(dim=(1, 2), keepdim=True)).log2().ceil() - 1).clamp(max=MOST_BITS)
    shrink = (weight[:, 1:] * unit + 0.5).floor() / unit
    blend = (1 - (place[:, :, None] - shrunk[:, None].float()).abs()).clamp(min=0)
    return shrink.float(), torch.where(inside[:, None], blend, 0)


def triangle(number: Tensor, step: Tensor, count: int) -> Tensor:
    """Return the weights of a photo's ``count`` pixels for pixels [n, m] of the shrunk one: [n, m, count]."""
    centre = (number + 0.5) * step - 0.5
    away = (torch.arange(count, dtype=torch.float64) - centre[..., None]) / step[..., None]
    weight = (1 - away.abs()).clamp(min=0)
    return weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-6)


def whole(levels: Tensor) -> Tensor:
    """Round to whole levels, halves up as PyTorch's filter does; OpenCV's takes the even one."""
    return (levels + 0.5).floor()
