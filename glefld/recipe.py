"""How a model is trained: one dataclass, which options, checkpoints and MLflow all hold."""

import dataclasses
from typing import Any, Literal

from glefld.data.augmentation import Augmentation
from glefld.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]


def mirror_only() -> Augmentation:
    return Augmentation(rotate=0, scale=0, shift=0, colour=0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained. The defaults are GLE's paper: Adam 1e-4, x0.1 each 5 epochs, batch 50, 30 epochs."""

    input_size: int = 224
    """Side of the square input, a multiple of the network's stride."""
    epochs: int = 30
    """Times through the train split."""
    batch_size: int = 50
    """Global batch: split among the workers."""
    learning_rate: float = 1e-4
    """At its highest; Adam's."""
    schedule: Literal["step", "cosine"] = "step"
    """step: the rate times step_factor each step_epochs. cosine: a linear warm-up, then down to zero."""
    step_epochs: int = 5
    """Epochs between two steps of the step schedule."""
    step_factor: float = 0.1
    """What the rate is multiplied by at each of them."""
    warmup_epochs: float = 1.0
    """Linear warm-up of the cosine schedule."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    precision: Precision = "auto"
    """Of the forward pass. auto: bf16 where the hardware multiplies it (CUDA, or AMX on a CPU), else fp32."""
    seed: int = 0
    """Of the first weights, the order of the rows and the augmentation."""
    checkpoint_steps: int = 0
    """Also keep a checkpoint each so many steps within an epoch; 0 keeps one at each epoch's end only."""
    log_steps: int = 20
    """Steps between two looks at the loss: the only times at which a step waits for the host."""
    landmarks: Literal["visible", "annotated"] = "visible"
    """Which landmarks train: the visible ones, as in the papers, or occluded ones too."""
    augmentation: Augmentation = dataclasses.field(default_factory=mirror_only)

    def __post_init__(self) -> None:
        for name in ("input_size", "epochs", "batch_size", "step_epochs", "log_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise UserError(f"learning-rate must be above 0, not {self.learning_rate}")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Recipe":
        return cls(**{**value, "augmentation": Augmentation(**value["augmentation"])})


#: For two CPU cores and random weights: ours, tuned on val of DeepFashion's fine-grained lists with GLE.
SMALL = Recipe(
    input_size=112,
    epochs=20,
    batch_size=16,
    learning_rate=1e-3,
    schedule="cosine",
    weight_decay=0.01,
    augmentation=Augmentation(rotate=10, scale=0.1, shift=0.05, colour=0.1),
)
