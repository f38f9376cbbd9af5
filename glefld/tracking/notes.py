"""What MLflow's pages say in words, as Markdown: of an experiment, a run, a model and its version."""

from glefld.models.checkpoint import ModelCard
from glefld.redaction import redacted
from glefld.schema import Manifest

#: The tag that MLflow's pages show as a description.
NOTE = "mlflow.note.content"

NE = (
    "**NE**, normalised error: the distance from the predicted landmark to the annotated one, with x and y as shares "
    "of the width and height of the garment's box, averaged over the visible landmarks of each name and then over the "
    "names. It has no unit and lower is better: .06 of a box 200 pixels wide is 12 pixels."
)

#: Names of metrics, their units, and what they are.
METRICS = (
    ("loss", "none", "training loss, the mean of some steps"),
    ("learning_rate", "none", "of the step"),
    ("images_per_second", "images / s", "training speed of all workers"),
    ("data_wait_seconds", "s", "how long a step waited for its batch, mean of some steps"),
    ("epoch, workers", "number", "epochs done; workers that trained the epoch"),
    (
        "val_error, val_error_best",
        "none",
        "by which the best checkpoint is chosen: NE, else 1 - AP or 1 - accuracy",
    ),
    (
        "val_ne, val_ne/NAME, val_ne_occluded",
        "share of the box",
        "NE on the val split: all, by name, of occluded ones",
    ),
    ("val_pck", "share, 0 to 1", "landmarks within .2 of the box's longer side; higher is better"),
    ("val_auc", "share, 0 to 1", "area under the share of landmarks within 0 to 30 pixels; higher is better"),
    ("val_epe_px", "pixels of the photo", "mean distance; lower is better"),
    (
        "val_left_right_confusion",
        "share, 0 to 1",
        "paired landmarks that are nearer to their partner; lower is better",
    ),
    (
        "val_calibration_error",
        "share, 0 to 1",
        "how far scores are from the share of right answers; lower is better",
    ),
    (
        "val_sparsification",
        "none",
        "how well scores sort good from bad answers: 1 if not at all; lower is better",
    ),
    ("val_garment_type_accuracy, val_visibility_f1/NAME", "share, 0 to 1", "higher is better"),
    (
        "val_box_ap, val_box_ap50, val_box_ar",
        "share, 0 to 1",
        "of a detector, as COCO defines them; higher is better",
    ),
    ("val_accuracy_top1, val_recall_at3/NAME", "share, 0 to 1", "of a classifier; higher is better"),
    ("system/...", "in the name", "with `--system-metrics`: load of the machines, each 10 s"),
)


def experiment_note(dataset: str) -> str:
    """Return what an experiment's runs are and what their metrics mean."""
    rows = "\n".join(
        f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {unit} | {what} |"
        for names, unit, what in METRICS
    )
    return (
        f"Fashion landmarks on `{dataset}`: trainings, comparisons and evaluations of glefld.\n\n{NE}\n\n"
        f"| metric | unit | what it is |\n|---|---|---|\n{rows}\n\n"
        "An evaluation's metrics begin with its split instead of `val`. Parameters are the command's options, with `_` "
        "for `-`: search `params.model = 'fpn' and metrics.val_ne < 0.1`."
    )


def run_note(command: str, manifest: Manifest, data: str) -> str:
    """Return the command that a run was started with, and what its data is."""
    return f"```\n{command}\n```\n\n{_data(manifest, data)}\n\n{NE}"


def model_note(card: ModelCard, manifest: Manifest, data: str) -> str:
    """Return what a model is, how good it is on its val split, and how to use it."""
    names = {"ne": "NE", "box_ap": "AP of boxes", "accuracy_top1": "top-1 accuracy"}
    scores = [f"**{name} {card.val[key]:.4f}**" for key, name in names.items() if key in card.val]
    size = card.input_size
    return (
        f"`{card.model}`, input {size} x {size} pixels, epoch {card.epoch} of its training"
        f"{': ' if scores else ''}{', '.join(scores)} on val.\n\n{_data(manifest, data)}\n\n{NE}\n\n"
        "Use it with `glefld predict --checkpoint models:/NAME@ALIAS PHOTO`, from Python with "
        '`glefld.Landmarks.load("models:/NAME@ALIAS")`, or serve it with '
        "`mlflow models serve --env-manager local -m models:/NAME@ALIAS`."
    )


def name_note() -> str:
    """Return what the versions of a registered name have in common."""
    return f"Models of glefld. Each version says what data it was trained on and how good it is.\n\n{NE}"


def _data(manifest: Manifest, data: str) -> str:
    """Return which data it is, and whether its photos are real."""
    rows = ", ".join(f"{rows:,} {split}" for split, rows in manifest.splits.items())
    photos = (
        "**Rendered photos**, drawn by `glefld synthesize`: the scores say nothing about real ones."
        if manifest.rendered
        else "Photos as they were ingested; none is marked as rendered by `glefld synthesize`."
    )
    return f"Data: `{manifest.title}`, garments: {rows}, from `{redacted(data)}`. {photos}"
