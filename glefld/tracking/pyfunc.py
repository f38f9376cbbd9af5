"""What makes a checkpoint's folder one of MLflow's models, which it serves and loads as a pyfunc.

MLflow's own files lie beside the checkpoint's: ``MLmodel``, requirements and an example of a request. None is code or a
pickle: ``MLmodel`` names the module ``glefld.serving``, which loads the checkpoint.
"""

import base64
import importlib.metadata
import io
import json
import platform
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, Object, Property, Schema
from PIL import Image, ImageDraw

import glefld
from glefld import storage
from glefld.models import MODELS
from glefld.models.checkpoint import ModelCard
from glefld.schema import MOST_GARMENTS

#: What MLflow imports to load a model.
LOADER = "glefld.serving"
#: Settings of a served model and what they are unless told: those of a detector, and the others of a landmark model.
DETECTOR = {"device": "auto", "most_garments": MOST_GARMENTS, "least_score": None}
LANDMARKS = DETECTOR | {"detector": None, "precision": "fp32", "mirror": False}
#: The packages besides this one by which answers may differ.
PINNED = ("mlflow", "torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "simplejpeg")

BOX = Array(DataType.double)
OF_A_GARMENT = {"box": BOX, "box_score": DataType.double, "error": DataType.string}
LANDMARK = Object(
    [
        *(Property(name, DataType.double) for name in ("x", "y", "score")),
        Property("visibility", DataType.string, required=False),
    ]
)
OF_LANDMARKS = {
    "garment_type": DataType.string,
    "garment_type_score": DataType.double,
    "landmarks": Map(LANDMARK),
}


def write(folder: Path, card: ModelCard, run_id: str, model_id: str) -> None:
    """Add MLflow's files to a checkpoint's folder, for a landmark model or a detector; a classifier is not served."""
    task = MODELS[card.model].task
    if task == "classify":
        return
    landmarks = task == "landmarks"
    # Not an array of numbers: MLflow's refuses whole numbers, and a row without boxes beside one that has some.
    boxes = [ColSpec(AnyType(), "boxes", required=False)] if landmarks else []
    garment = OF_A_GARMENT | (OF_LANDMARKS if landmarks else {})
    answer = Object([Property(name, type_, required=False) for name, type_ in garment.items()])
    example = {"columns": ["photo"], "data": [[base64.b64encode(example_photo()).decode()]]}
    model = Model(
        run_id=run_id,
        model_id=model_id,
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.string, "photo"), *boxes]),
            outputs=Schema([ColSpec(Array(answer), "garments")]),
        ),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "pandas_orient": "split",
            "serving_input_path": "serving_input_example.json",
            "type": "dataframe",
        },
    )
    settings: dict[str, Any] = LANDMARKS if landmarks else DETECTOR
    mlflow.pyfunc.add_to_model(
        model, loader_module=LOADER, model_config=settings, python_env="python_env.yaml"
    )
    model.save(str(folder / "MLmodel"))
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in PINNED]
    # Whoever asked a package index for glefld would get what somebody else has put there.
    note = f"# and glefld {glefld.__version__}, which no package index has: serve with --env-manager local"
    (folder / "requirements.txt").write_text("\n".join([note, *pins]) + "\n")
    (folder / "python_env.yaml").write_text(
        f"python: {platform.python_version()}\nbuild_dependencies: []\ndependencies: [-r requirements.txt]\n"
    )
    (folder / "input_example.json").write_text(json.dumps(example))
    storage.write_json(str(folder / "serving_input_example.json"), {"dataframe_split": example})


def example_photo() -> bytes:
    """Return a JPEG of a drawn shirt, 96 x 128 pixels: a photo that is nobody's."""
    image = Image.new("RGB", (96, 128), "white")
    left = [(40, 22), (30, 26), (10, 50), (22, 60), (30, 52), (28, 108)]
    ImageDraw.Draw(image).polygon([*left, *((96 - x, y) for x, y in reversed(left))], "steelblue")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
