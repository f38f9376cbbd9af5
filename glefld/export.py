"""Export of a model as one file that needs nothing of this project: ONNX, or a program of ``torch.export``.

The graph (``glefld.models.graph``) takes a photo's pixels and boxes and answers landmarks in the photo; a detector's
takes the pixels and answers boxes. The file also says what its numbers mean: see ``facts``. ``glefld.onnx_model`` reads
an ONNX file again.
"""

import contextlib
import dataclasses
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

import glefld
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.models.checkpoint import ModelCard
from glefld.models.fcos import FCOS
from glefld.models.graph import DetectorGraph, LandmarkGraph
from glefld.models.sanl import SANL
from glefld.models.system import Model
from glefld.onnx_model import CARD, PACKAGES, require_package
from glefld.predict import checkpoint_hash, require_landmarks
from glefld.schema import MOST_GARMENTS, RENDERED, Visibility
from glefld.torch_private import EXPORT_ERRORS

#: The version of ONNX's operators. Runtimes of 2024 and later have it.
OPSET = 20
#: The photo and the boxes that are traced, and compared after the export: sides and corners without a common measure.
PHOTO = (157, 211)
BOXES = ((0.0, 0.0, 211.0, 157.0), (20.25, 10.5, 150.75, 140.0), (-5.0, 40.0, 60.5, 170.0))
#: The axes of each input that may have any size, and their names in the file.
SIZES = {"photo": {0: "height", 1: "width"}, "boxes": {0: "count"}}
#: Most that the exported graph may differ from PyTorch, half of the landmarks at least, in pixels of that photo.
MOST_DIFFERENCE = 0.02


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written."""

    facts: dict[str, str]
    """What the file says of itself."""
    difference: float
    """Largest difference between the file's landmarks or boxes and PyTorch's on a picture of noise, in its pixels."""


def export(url: str, path: Path, format_: Literal["onnx", "torch"], mirror: bool = False) -> Exported:
    """Write the model of a checkpoint to a local file, and compare its answers with PyTorch's.

    mirror: average with the answers for mirror images, at twice the time.
    UserError if the checkpoint cannot be read or its model cannot be exported, or if a package is missing; RuntimeError
    if the file answers something else than PyTorch.
    """
    if format_ == "onnx":
        for name in PACKAGES:
            require_package(name)
    model, card = checkpoint.load(url)
    graph = graph_of(url, model, card, mirror).eval()
    found = facts(url, model, card, mirror)
    photo, boxes = example()
    inputs = {"photo": photo} if model.detects else {"photo": photo, "boxes": boxes}
    with torch.no_grad(), quiet():
        named = graph.answer(*inputs.values())
        try:
            program = trace(graph, inputs)
            if format_ == "torch":
                torch.export.save(program, path, extra_files={"glefld.json": json.dumps(found)})
            else:
                write_onnx(program, {name: SIZES[name] for name in inputs}, list(named), found, path)
        except EXPORT_ERRORS as error:
            words = " ".join(str(error.__cause__ or error).split())[:300]
            raise UserError(
                f"{card.model} cannot be exported by PyTorch {torch.__version__}: {words}"
            ) from error
        answer = run_torch(path, inputs) if format_ == "torch" else run_onnx(path, inputs)
    expected = named["boxes" if model.detects else "landmarks"]  # the first output
    difference = (answer[0] - expected).abs()[~expected.isnan()]
    if difference.numel() and not difference.median() <= MOST_DIFFERENCE:
        raise RuntimeError(f"the exported graph differs from PyTorch by {difference.median():.3g} pixels")
    return Exported(found, difference.max().item() if difference.numel() else 0.0)


def graph_of(url: str, model: Model, card: ModelCard, mirror: bool) -> LandmarkGraph | DetectorGraph:
    """Return the model's graph; UserError if it has none."""
    if isinstance(model, FCOS):
        if mirror:
            raise UserError("--mirror is for landmark models: leave it out for a detector")
        if model.least_score is None:
            raise UserError(f"{url} was saved before its first epoch ended: give a later checkpoint")
        return DetectorGraph(model, card.input_size, model.least_score, MOST_GARMENTS)
    require_landmarks(url, card)
    if isinstance(model, SANL) and model.guide is not None:
        raise UserError(
            f"sanl with --model.attention {model.attention} cannot be exported: its attention is a gradient, Grad-CAM, "
            "which exported graphs do not compute. Train with --model.attention nonlocal or none"
        )
    return LandmarkGraph(model, card.input_size, mirror)


def facts(url: str, model: Model, card: ModelCard, mirror: bool) -> dict[str, str]:
    """Return what the file says of itself, each value as text; lists and mappings are JSON."""
    rendered = card.dataset.endswith(RENDERED)
    terms = (
        "trained on rendered photos, so no data set's terms"
        if rendered
        else f"the terms of {card.dataset}, which they were trained on"
    )
    common = {
        "glefld": glefld.__version__,
        "model": card.model,
        "checkpoint": checkpoint_hash(url),
        "input_size": str(card.input_size),
        "training_data": f"{card.dataset} {card.data_hash}".strip(),
        "first_weights": card.weights,
        "licence": f"the graph: Apache-2.0; the weights: {terms}, and of what they started from: {card.weights}",
        CARD: json.dumps(dataclasses.asdict(card)),
    }
    if model.detects:
        return common | {"least_score": str(model.least_score), "most_garments": str(MOST_GARMENTS)}
    names = card.labels.landmark_set.landmarks
    pairs = [(names[i], names[m]) for i, m in enumerate(card.labels.landmark_set.mirror) if i < m]
    types = {
        type_.name: [names[i] for i in type_.landmarks] for type_ in card.labels.landmark_set.garment_types
    }
    return common | {
        "landmarks": json.dumps(names),
        "mirror_pairs": json.dumps(pairs),
        "garment_types": json.dumps(types),
        "visibility": json.dumps({code.value: code.name.lower() for code in Visibility}),
        "mirror": json.dumps(mirror),
    }


def example() -> tuple[Tensor, Tensor]:
    """Return the photo [H, W, 3] uint8 and the boxes [n, 4] that are traced."""
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(0, 256, (*PHOTO, 3), dtype=torch.uint8, generator=generator)
    return photo, torch.tensor(BOXES)


def trace(graph: LandmarkGraph | DetectorGraph, inputs: dict[str, Tensor]) -> ExportedProgram:
    """Return the graph for photos of any size and any number of boxes."""
    shapes = tuple({axis: Dim(size) for axis, size in SIZES[name].items()} for name in inputs)
    return torch.export.export(graph, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)


def write_onnx(
    program: ExportedProgram,
    sizes: dict[str, dict[int, str]],
    outputs: Sequence[str],
    found: dict[str, str],
    path: Path,
) -> None:
    """Write the program as ONNX in one file, with what it says of itself.

    sizes: by input the axes of any size, and their names.
    """
    solve = torch.ops.aten.linalg_solve.default
    if any(node.target == solve for node in program.graph.nodes):
        program = program.run_decompositions({solve: _solve})
    onnx = torch.onnx.export(
        program,
        input_names=list(sizes),
        output_names=outputs,
        opset_version=OPSET,
        dynamic_shapes=sizes,  # their names: the program knows the rest
        dynamo=True,
        verbose=False,
    )
    assert onnx is not None
    onnx.model.metadata_props.update(found)
    onnx.model.doc_string = "A fashion landmark model or garment detector, exported by glefld"
    onnx.save(path, external_data=False)


def _solve(a: Tensor, b: Tensor) -> Tensor:
    """Solve a [n, u, u] x = b [n, u] or [n, u, m] by elimination, for which ONNX has no operator.

    Without pivoting: the matrices of ``heatmap.Codec`` are symmetric and positive definite. All rows at once, since
    what an export takes are nodes.
    """
    unknowns = a.shape[-1]
    vector = b.ndim == a.ndim - 1
    rows = torch.cat([a, b[..., None] if vector else b], dim=-1)
    unit = torch.eye(unknowns, dtype=a.dtype, device=a.device)
    for i in range(unknowns):
        pivot = rows[..., i : i + 1, :] / rows[..., i : i + 1, i : i + 1]
        rows = rows - (rows[..., i : i + 1] - unit[:, i : i + 1]) * pivot
    x = rows[..., unknowns:]
    return x[..., 0] if vector else x


def run_torch(path: Path, inputs: dict[str, Tensor]) -> Sequence[Tensor]:
    return torch.export.load(path).module()(*inputs.values())


def run_onnx(path: Path, inputs: dict[str, Tensor]) -> Sequence[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return [torch.from_numpy(value) for value in found]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what PyTorch and its packages say of their own progress and parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
