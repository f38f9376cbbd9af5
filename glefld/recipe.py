"""Training hyperparameters: one dataclass, shared by the command line, checkpoints and MLflow."""

import dataclasses
from typing import Any, Literal

from glefld.data.augmentation import Augmentation
from glefld.errors import require_between

Precision = Literal["auto", "fp32", "bf16"]
#: The largest side of the input: a batch of larger ones fits no machine.
MOST_INPUT = 4096


def mirror_only() -> Augmentation:
    """Return the augmentation that only mirrors, as in GLE's released code; its paper names none."""
    return Augmentation(rotate=0, scale=0, shift=0, colour=0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are GLE's: a rate of 1e-4, x0.1 every 5 epochs; Adam, batch 50, 30 epochs, mirroring.

    The rate and its steps are its paper's. Optimizer, batch, epochs and mirroring are in its released code alone.
    UserError for a value out of range.
    """

    input_size: int = 224
    """Side of the square input in pixels, a multiple of the network's stride."""
    epochs: int = 30
    """Passes over the train split."""
    batch_size: int = 50
    """Global batch size, divided among the workers."""
    learning_rate: float = 1e-4
    """Adam's peak learning rate."""
    backbone_rate: float = 1.0
    """What the learning rate is multiplied by for the backbone's weights, which have been trained before."""
    schedule: Literal["step", "cosine"] = "step"
    """step: multiply the rate by step_factor every step_epochs. cosine: linear warm-up, then cosine decay to zero."""
    step_epochs: int = 5
    """Step schedule: epochs between two steps."""
    step_factor: float = 0.1
    """Step schedule: what the rate is multiplied by at each step."""
    warmup_epochs: float = 1.0
    """Cosine schedule: epochs of linear warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of all but biases and norms; 0 is plain Adam."""
    precision: Precision = "auto"
    """Precision of the forward pass. auto: a second or two of the model's own steps decide between bf16 and fp32."""
    seed: int = 0
    """Seed of the initial weights, the row order and the augmentation."""
    streams: int = 64
    """Most streams that the rows of an epoch are dealt from. Each row group is read by one of the streams' workers."""
    window_rows: int = 16_384
    """Rows that are shuffled together, in all streams. They are held in memory, divided among the workers."""
    checkpoint_steps: int = 0
    """Also save a checkpoint every N steps within an epoch. 0: by the clock, see checkpoint_minutes."""
    checkpoint_minutes: float = 10.0
    """Save a checkpoint within an epoch N minutes after the last one too, without checkpoint_steps. 0: never."""
    log_steps: int = 20
    """Log the mean loss of every N steps. Between logs a step never waits for the host to read it."""
    landmarks: Literal["visible", "annotated"] = "visible"
    """Landmarks in the loss. visible: visible ones only, as in the papers. annotated: occluded ones too."""
    augmentation: Augmentation = dataclasses.field(default_factory=mirror_only)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "step_epochs", "log_steps", "streams", "window_rows"):
            require_between(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        for name in (
            "backbone_rate",
            "warmup_epochs",
            "weight_decay",
            "step_factor",
            "seed",
            "checkpoint_steps",
            "checkpoint_minutes",
        ):
            require_between(f"--{name.replace('_', '-')}", getattr(self, name), 0)
        require_between("--input-size", self.input_size, 1, MOST_INPUT)
        require_between("--learning-rate", self.learning_rate, 1e-12)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Recipe":
        """Rebuild a recipe from the values stored in a model card."""
        return cls(**{**value, "augmentation": Augmentation(**value["augmentation"])})


#: The preset ``best``: half an hour on two CPU cores with ``fpn`` and 5,000 photos, from ImageNet weights. Tuned
#: with ``fpn`` on the val split of DeepFashion's fine-grained lists (docs/experiments.md).
BEST = Recipe(
    input_size=160,
    epochs=9,
    batch_size=16,
    learning_rate=2e-3,
    backbone_rate=0.5,
    schedule="cosine",
    warmup_epochs=0.3,
    weight_decay=0.01,
    augmentation=Augmentation(rotate=10, scale=0.1, shift=0.05, colour=0.1),
)
