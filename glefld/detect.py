"""Detection: photos in any common format to the boxes of their garments, in pixels of the upright photo.

Letters in shapes: n boxes of a photo, S the square input's size.
"""

import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from glefld import storage
from glefld.errors import BadAnswer, NoGarment, UserError, require_between
from glefld.models import MODELS, checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.predict import Runner, run_model
from glefld.prediction import BATCH_SIZE, PRECISION, Bad, Crop, Detected, no_garment
from glefld.recipe import Precision
from glefld.redaction import public_url
from glefld.schema import MOST_GARMENTS

#: Environment variable: the detector of those who name none.
DETECTOR = "GLEFLD_DETECTOR"


def default_detector(root: str) -> tuple[str, str]:
    """Return the detector of those who name none, and why it is that one, in words; UserError if there is none."""
    if named := os.environ.get(DETECTOR):
        return named, f"${DETECTOR}"
    if (run := checkpoint.newest_run(root, "detect")) is not None:
        return run, "the newest one"
    raise UserError(
        f"there is no run of a detector in {storage.join(public_url(root), 'runs')}: name one, set {DETECTOR}, or "
        "train one with glefld train --task detect"
    )


def require_detector(url: str, card: ModelCard) -> None:
    """Raise UserError if the checkpoint's model is not a detector."""
    if MODELS[card.model].task != "detect":
        raise UserError(f"{url} is no detector ({card.model}): give a checkpoint of --task detect")


class Detector(Runner[Detected]):
    """Runs a detector: photos in, boxes out."""

    def __init__(
        self,
        url: str,
        device: torch.device,
        batch_size: int = BATCH_SIZE,
        threads: int = 1,
        precision: Precision = PRECISION,
        most: int = MOST_GARMENTS,
        least_score: float | None = None,
    ) -> None:
        """Load the checkpoint at ``url``; ``threads`` is the number of threads that decode.

        most: so many boxes of a photo at most. least_score: of each; by default what training chose on the val split.
        UserError if the checkpoint is incomplete or its model is not a detector.
        """
        require_between("most", most, 1)
        model, card = checkpoint.load(url)
        require_detector(url, card)
        chosen = model.least_score if least_score is None else least_score
        if chosen is None:
            raise UserError(f"{url} was saved before its first epoch ended: give a later checkpoint")
        super().__init__(model, card, device, batch_size, threads, precision)
        self.most = most
        self.least_score = chosen

    def detect(self, photos: Iterable[Crop | Bad]) -> Iterator[Detected | Bad]:
        """Yield the boxes of each photo, in order; there may be none. What is bad is passed through in its place.

        photos: ``glefld.prediction.open_upright(data).whole(detector.card.input_size)``; read as by ``answers``.
        """
        return self.answers(photos)

    def _infer(self, images: Tensor, crops: list[Crop]) -> Iterator[Detected | BadAnswer]:
        output = run_model(self.model, images, self.dtype).boxes
        assert output is not None
        lost = (~output.isfinite()).any(dim=-1).sum(dim=1).tolist()
        found = self.model.find_boxes(output, images.shape[-1])
        for crop, one, places in zip(crops, found, lost, strict=True):
            if places:
                words = f"{places} of {output.shape[1]} places, so the model has diverged"
                yield BadAnswer("not_finite", words)
                continue
            assert crop.photo is not None
            moved = one.in_photo(torch.from_numpy(crop.to_photo), crop.photo.bounds)
            best = moved.best(self.least_score, self.most)
            yield Detected(crop.photo, best.boxes.float().numpy(), best.score.float().numpy())

    def nothing(self) -> NoGarment:
        """Return what is to be said of a photo without boxes."""
        return no_garment(self.least_score)
