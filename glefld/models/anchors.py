"""What a detector's output means: torchvision's FCOS without its input and its backbone.

Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019 (https://arxiv.org/abs/1904.01355).
Heads, matching, losses, decoding and non-maximum suppression are torchvision's. Here is what a project with inputs of
its own and several workers needs besides: the loss as a sum, places in the middle of their cells, one class.
Letters in shapes: B batch, A places (all positions of all levels), G garments, S the square input's size.

torchvision's loss waits for the device to count the places on garments, so a step on a GPU is not as far ahead of it as
those of other systems.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, clip_boxes_to_image

from glefld.models.system import Found

#: Boxes of a lower score are not looked at. Scores are calibrated and cut afterwards, on the val split.
LEAST_SCORE = 0.02
#: Of two boxes that overlap by more than this, only the one with the higher score is kept.
OVERLAP = 0.6
#: Most boxes a photo.
MOST = 30
#: The sides of the boxes that training starts with, in strides: of boxes without any extent it learns slowly.
FIRST_SIDES = 8.0


class SummedHead(FCOSHead):
    """torchvision's head, whose losses are sums over the places; ``found`` is the number of places on garments."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        means = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        found = torch.stack([(matched >= 0).sum() for matched in matched_idxs]).sum()
        return {name: mean * found.clamp(min=1) for name, mean in means.items()} | {"found": found}


class Detector(FCOS):
    """A pyramid and heads on features of these channels at these strides."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int, layers: int) -> None:
        """width: channels of the pyramid and the heads. layers: convolutions of each head."""
        pyramid = FeaturePyramidNetwork(list(channels), width)
        pyramid.out_channels = width
        cells = AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * len(strides))
        # torchvision's places are the cells' corners, which a mirrored picture does not have.
        cells.cell_anchors = [
            cell + stride / 2 for cell, stride in zip(cells.cell_anchors, strides, strict=True)
        ]
        head = SummedHead(width, 1, 1, layers)
        nn.init.constant_(head.regression_head.bbox_reg.bias, FIRST_SIDES / 2)
        super().__init__(
            pyramid,
            num_classes=1,
            anchor_generator=cells,
            head=head,
            score_thresh=LEAST_SCORE,
            nms_thresh=OVERLAP,
            detections_per_img=MOST,
        )
        self.strides = tuple(strides)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features at each stride -> [B, A, 6]: logits of garment and of centredness, four distances in strides"""
        levels = self.backbone({str(level): x for level, x in enumerate(features)})
        found = self.head(list(levels.values()))
        return torch.cat([found["cls_logits"], found["bbox_ctrness"], found["bbox_regression"]], dim=-1)

    def sums(self, output: Tensor, boxes: Sequence[Tensor], size: int) -> tuple[Tensor, Tensor]:
        """Return the loss of [B, A, 6] as a sum over the places, and the number of places on garments, two scalars.

        boxes: of each image [G, 4] x1 y1 x2 y2 in input pixels, on any device; size: S.
        The loss is that of the paper: focal loss of the class, GIoU of the box, cross entropy of the centredness.
        """
        device = output.device
        targets = [
            {
                "boxes": own.to(device, non_blocking=True),
                "labels": torch.zeros(len(own), dtype=torch.int64, device=device),
            }
            for own in boxes
        ]
        anchors = self._places(output, size)
        counts = [len(level) for level in anchors]
        every = [torch.cat(anchors)] * len(output)
        parts = self.compute_loss(targets, _named(output.float()), every, counts)
        found = parts.pop("found")
        return torch.stack(list(parts.values())).sum(), found

    def decode(self, output: Tensor, size: int) -> list[Found]:
        """Return the boxes of each image of [B, A, 6], best first, with scores that are not calibrated."""
        anchors = self._places(output, size)
        counts = [len(level) for level in anchors]
        named = {name: list(value.split(counts, dim=1)) for name, value in _named(output.float()).items()}
        images = len(output)
        answers = self.postprocess_detections(named, [anchors] * images, [(size, size)] * images)
        return [Found(answer["boxes"], answer["scores"]) for answer in answers]

    def every_box(self, output: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return the box and the score of each place of one image [1, A, 6]: [A, 4] and [A], not calibrated."""
        named = _named(output[0].float())
        boxes = self.box_coder.decode(named["bbox_regression"], torch.cat(self._places(output, size)))
        score = (named["cls_logits"].sigmoid() * named["bbox_ctrness"].sigmoid()).sqrt()[:, 0]
        return clip_boxes_to_image(boxes, (size, size)), score

    def _places(self, output: Tensor, size: int) -> list[Tensor]:
        """Return the squares that the places stand for, of each level [n, 4]."""
        like = torch.empty((), device=output.device)
        sides = [size // stride for stride in self.strides]
        levels: list[Any] = [like.expand(0, 1, side, side) for side in sides]
        images = ImageList(like.expand(0, 3, size, size), [(size, size)])
        (joined,) = self.anchor_generator(images, levels)
        return list(joined.split([side * side for side in sides]))


def _named(output: Tensor) -> dict[str, Tensor]:
    """Return [B, A, 6] as torchvision names its parts."""
    return {
        "cls_logits": output[..., :1],
        "bbox_ctrness": output[..., 1:2],
        "bbox_regression": output[..., 2:],
    }
