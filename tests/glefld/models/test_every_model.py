"""What every system must do; a new one is tested by its line in ``CASES``."""

import copy
import dataclasses
import functools
import hashlib
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from glefld.data.garments import Garments
from glefld.data.loader import Batch
from glefld.data.truth import Truth
from glefld.errors import UserError
from glefld.models import MODELS, build_model, checkpoint
from glefld.models.classifier import SANLResNet
from glefld.models.sanl import SANL
from glefld.models.system import Model, Output
from glefld.recipe import Recipe
from glefld.schema import FASHION8, Attribute, GarmentType, Labels, LandmarkSet
from glefld.scoring.evaluation import count_boxes, count_labels, predicted_points, run_model
from glefld.scoring.metrics import Counters
from glefld.training.loop import train_step
from glefld.training.losses import total_loss
from tests.dots import card
from tests.ranks import start_ranks

LABELS = Labels(
    FASHION8, ("Blouse", "Jeans", "Robe"), tuple(Attribute(f"a{i}", 1) for i in range(4)), ("texture",)
)
K = len(FASHION8)
SIZE = 32

#: Small configs of each system.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fpn": ("fpn", {"backbone": "test_resnet", "width": 16}),
    "fpn-embedded": ("fpn", {"width": 16}),
    "fpn-one-head": ("fpn", {"backbone": "test_resnet", "width": 16, "refine": False}),
    "gle-1": ("gle", {"backbone": "test_resnet", "modules": 1, "start": "identity"}),
    "gle-vgg16": ("gle", {"backbone": "vgg16", "modules": 1, "width": 16}),
    "gle-0": ("gle", {"backbone": "test_resnet", "modules": 0, "width": 16}),
    "gle-3": ("gle", {"backbone": "test_resnet", "modules": 3, "width": 16}),
    "gle-pyramid": ("gle", {"backbone": "test_efficientnet", "pyramid": 16, "modules": 1, "width": 16}),
    "liu2018": ("liu2018", {"backbone": "test_resnet"}),
    "liu2018-full": ("liu2018-full", {"backbone": "test_resnet", "hidden": 16}),
    "sanl": ("sanl", {"backbone": "test_resnet", "guide": "test_resnet", "width": 16}),
    "sanl-top": (
        "sanl",
        {"backbone": "test_resnet", "guide": "test_resnet", "width": 16, "attention": "top"},
    ),
    "sanl-nonlocal": ("sanl", {"backbone": "test_resnet", "width": 16, "attention": "nonlocal"}),
    "sanl-none": ("sanl", {"backbone": "test_resnet", "width": 16, "attention": "none", "refine": False}),
    "dafe": ("dafe", {"backbone": "test_resnet", "width": 16}),
    "dafe-elementwise": (
        "dafe",
        {"backbone": "test_resnet", "width": 16, "pixel": "elementwise", "channel": "se"},
    ),
    "dafe-elementwise-affinity": ("dafe", {"backbone": "test_resnet", "width": 16, "pixel": "elementwise"}),
    "dafe-plain": ("dafe", {"backbone": "test_resnet", "width": 16, "pixel": "none", "channel": "none"}),
    "baseline": ("baseline", {"backbone": "test_resnet", "width": 16}),
    "baseline-convnext": ("baseline", {"backbone": "convnextv2_atto", "width": 16}),
    "local": ("local", {"width": 16}),
    "resnet": ("resnet", {"backbone": "test_resnet", "label": "category"}),
    "resnet-attributes": ("resnet", {"backbone": "test_efficientnet", "label": "attributes"}),
    "sanl-resnet": ("sanl-resnet", {"label": "garment_type"}),
    "sanl-resnet-nonlocal": ("sanl-resnet", {"block": "nonlocal", "label": "category"}),
    "fcos": ("fcos", {"backbone": "test_resnet", "width": 64, "layers": 1}),
}
each_model = pytest.mark.parametrize("case", CASES)
#: The first case of each system, where all of them would take minutes.
EACH_SYSTEM = list({name: case for case, (name, _) in reversed(CASES.items())}.values())

#: Learning rates of systems that overfit in fewer steps at a higher one.
RATES = {"local": 5e-3, "baseline": 3e-3, "sanl": 3e-3}

#: A gradient this part of the model's median is rounding noise.
NOISE = 5e-5
#: Whose gradient is zero for good reason, by the parameter's end of name.
CANCELLED = {
    ".phi.bias": "adds the same to all of a query's logits, which the softmax takes away",
    ".w.bias": "before a batch norm",
    ".g.bias": "attention adds up to 1, so it is a constant before a batch norm",
    ".local.0.bias": "before a batch norm",
    ".local.3.bias": "before a batch norm",
} | {
    f"detector.backbone.layer_blocks.{level}.0.{name}": "of garments over 128 pixels: it learns that there are none"
    for level in (1, 2)
    for name in ("weight", "bias")
}
#: The last norms of timm's linear bottlenecks: no activation is between them and the next convolution's batch norm.
BOTTLENECKS = {"DepthwiseSeparableConv": "bn2", "EdgeResidual": "bn2", "InvertedResidual": "bn3"}


def build(case: str, labels: Labels = LABELS) -> Model:
    """A new one of the case's system, always of the same weights. They are drawn once: copies take a sixth of that."""
    return copy.deepcopy(drawn(case, labels))


@functools.cache
def drawn(case: str, labels: Labels) -> Model:
    """The case's system from a fixed seed; what starts at zero is moved off it, so that all behind it learns."""
    torch.manual_seed(0)
    model = build_model(*CASES[case], labels)
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and not parameter.any():
            torch.nn.init.ones_(parameter)
    return model


def make_batch(rows: int, seed: int = 0, k: int = K, size: int = SIZE) -> Batch:
    """Dark pictures with a blot of its own colour at each landmark, and labels."""
    generator = torch.Generator().manual_seed(seed)
    landmarks = 4 + torch.rand(rows, k, 2, generator=generator) * (size - 8)
    images = 0.1 * torch.randn(rows, 3, size, size, generator=generator)
    for row, points in enumerate(landmarks.long()):
        for i, (x, y) in enumerate(points.tolist()):
            colour = torch.tensor([i & 1, i >> 1 & 1, i >> 2 & 1]) * 4.0 - 1
            images[row, :, y - 2 : y + 3, x - 2 : x + 3] = colour[:, None, None]
    visible = torch.zeros(rows, k, dtype=torch.int64)
    truth = Truth(
        points=landmarks.double(),
        visibility=visible,
        box=torch.tensor([[0.0, 0, size, size]] * rows).double(),
        garment_type=1 + torch.arange(rows) % 3,
        view=torch.full((rows,), -1),
        category=torch.arange(rows) % 3,
        attributes=torch.randint(0, 2, (rows, 4), generator=generator).float(),
    )
    # One garment a picture, around its landmarks.
    boxes = list(torch.cat([landmarks.amin(dim=1) - 3, landmarks.amax(dim=1) + 3], dim=1)[:, None])
    garments = Garments(
        boxes, [box.double() for box in boxes], [True] * rows, [0] * rows, [(size, size)] * rows
    )
    identity = torch.eye(2, 3).double().expand(rows, -1, -1)
    return Batch(images, landmarks, visible, identity, truth, garments)


def loss_of(model: Model, batch: Batch) -> torch.Tensor:
    return total_loss(model, model(batch.images), batch, Recipe(), len(batch.images), 1)


def test_every_system_is_here() -> None:
    assert {name for name, _ in CASES.values()} == set(MODELS)


@each_model
@pytest.mark.parametrize("size", [32, 56])
def test_outputs_have_their_shapes(case: str, size: int) -> None:
    """Heatmaps of the stride that the codec names, logits of the labels' numbers, at odd sizes too."""
    model = build(case).eval()
    size -= size % model.stride
    output = model(torch.randn(2, 3, size, size))
    side = size // model.codec.stride
    if MODELS[CASES[case][0]].task == "landmarks":
        assert output.heatmaps.shape == (2, K, side, side)
    else:
        assert output.heatmaps is None
        assert output.classes is not None or output.attributes is not None or output.boxes is not None
    if output.boxes is not None:
        assert model.detects
        found = model.find_boxes(output.boxes, size)
        assert [f.boxes.shape[1:] for f in found] == [(4,)] * 2
    if output.coarse is not None:
        coarse = size // model.coarse_codec.stride
        assert output.coarse.shape == (2, K, coarse, coarse)
    if output.classes is not None:
        assert output.classes.shape == (2, len(LABELS.classes(model.label)))
    if output.attributes is not None:
        assert output.attributes.shape == (2, len(LABELS.attributes), 2)
    if output.garment_type is not None:
        assert output.garment_type.shape == (2, len(FASHION8.garment_types))


@each_model
def test_every_parameter_learns(case: str) -> None:
    """No gradient is None, and each is more than noise but for the biases that are named, with the reason, above.

    At 64 pixels, where stride 32 has more than one position: of a single one, attention has nothing to choose from.
    """
    model = build(case)
    loss_of(model, make_batch(4, size=64)).backward()
    before_norm = {
        f"{name}.{i}.bias"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Sequential)
        for i in range(len(module) - 1)
        if isinstance(module[i + 1], torch.nn.BatchNorm2d)
    } | {
        f"{name}.{BOTTLENECKS[kind]}.bias"
        for name, module in model.named_modules()
        if (kind := type(module).__name__) in BOTTLENECKS
    }
    gradients = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert name.startswith("guide."), f"{name} is frozen"
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.abs().max().item()
    least = NOISE * statistics.median(gradients.values())
    for name, gradient in gradients.items():
        if not name.endswith(tuple(CANCELLED)) and name not in before_norm:
            assert gradient > least, name


@pytest.mark.parametrize("case", [*EACH_SYSTEM, "dafe-elementwise"])
def test_it_overfits_eight_samples(case: str) -> None:
    """Steps on one batch: both landmarks come within .3 of the mean position's error, or all eight classes are right,
    or AP at an overlap of .5 is above .7.

    It ends as soon as they do, after 5 to 60 steps on one machine; the limit leaves room for other roundings.
    """
    pair = LandmarkSet(
        "pair",
        ("left", "right"),
        (1, 0),
        tuple(GarmentType(code, f"type {code}", (0, 1)) for code in (1, 2, 3)),
    )
    labels = dataclasses.replace(LABELS, landmark_set=pair)
    model = build(case, labels)
    batch = make_batch(8, k=len(pair))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATES.get(case, 1e-3)
    )
    wrong = wrong_part(model, batch, labels)
    limit = 300
    while limit and wrong > 0.3:
        for _ in range(5):
            train_step(model, model, optimizer, batch, Recipe(), 8, 1, torch.float32)
        limit -= 5
        wrong = wrong_part(model, batch, labels)
    assert limit < 300, "the task is no task: it was done before any training"
    assert wrong < 0.3


def wrong_part(model: Model, batch: Batch, labels: Labels) -> float:
    """Mean distance of the landmarks, of the mean position's; how many classes are wrong; or what AP lacks."""
    with torch.no_grad():
        output = model(batch.images)
    if output.boxes is not None:
        counters = Counters(labels, detects=True)
        count_boxes(counters, model, output, batch)
        scores = counters.report().boxes
        assert scores is not None
        return 1 - scores.ap50
    if output.heatmaps is None:
        assert output.classes is not None
        return (output.classes.argmax(dim=1) != batch.truth.label(model.label, labels)).sum().item()
    found, _ = model.codec.decode(output.heatmaps)
    error, unlearned = (
        (xy - batch.landmarks).norm(dim=-1).mean().item() for xy in (found, batch.landmarks.mean(dim=0))
    )
    return error / unlearned


@each_model
def test_bf16_runs_forward_and_back(case: str) -> None:
    """Under autocast the loss is finite and so are the gradients, which stay fp32."""
    model = build(case)
    batch = make_batch(2)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch.images)
    loss = total_loss(model, output, batch, Recipe(), 2, 1)
    loss.backward()
    assert loss.isfinite()
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("case", EACH_SYSTEM)
def test_a_diverged_network_has_no_score(case: str) -> None:
    """With weights that are no numbers, scoring ends in an error: whatever the shape of its peaks."""
    model = build(case).eval()
    counters = Counters(LABELS, model.label, detects=model.detects)
    batch = make_batch(3)

    @torch.no_grad()
    def score() -> None:
        output = run_model(model, batch)
        if output.heatmaps is not None:
            counters.add_landmarks(predicted_points(model, output.heatmaps, batch)[0], batch.truth)
        count_labels(counters, model, output, batch)
        count_boxes(counters, model, output, batch)
        counters.report()

    score()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(UserError, match="predictions are not finite: training has diverged"):
        score()


@each_model
def test_a_checkpoint_rebuilds_it(case: str, tmp_path: Path) -> None:
    """From the folder alone, to the same answers."""
    name, config = CASES[case]
    model = build(case).eval()
    saved = card(name, config, LABELS, SIZE, model.normalisation)
    checkpoint.save(str(tmp_path / "checkpoint"), model, saved)
    again, card_again = checkpoint.load(str(tmp_path / "checkpoint"))
    x = torch.randn(1, 3, SIZE, SIZE)
    assert card_again == saved
    assert again.normalisation == model.normalisation
    for ours, theirs in zip(again(x), model(x), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


def step_of_a_rank(rank: int, folder: str) -> None:
    """Two steps of every system under DDP, which stops at the second if a parameter was not used in the first."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for case in EACH_SYSTEM:
        model = build(case)
        parallel = DistributedDataParallel(model, broadcast_buffers=False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(2):
            batch = make_batch(2, seed=rank)
            train_step(model, parallel, optimizer, batch, Recipe(), 4, 2, torch.float32)
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert weights.isfinite().all(), case
        Path(folder, f"{case}-{rank}").write_text(hashlib.sha256(weights.numpy()).hexdigest())
    dist.destroy_process_group()


def test_ddp_uses_every_parameter(tmp_path: Path) -> None:
    """On two ranks with different data the weights stay the same on both, and no parameter is left out."""
    start_ranks(step_of_a_rank, (str(tmp_path),), 2)
    for case in EACH_SYSTEM:
        first, second = ((tmp_path / f"{case}-{rank}").read_text() for rank in range(2))
        assert first == second, case


@pytest.mark.parametrize("case", ["sanl", "sanl-resnet"])
def test_the_guide_is_frozen(case: str) -> None:
    """Training changes neither its weights nor its norm statistics, and gives it no optimizer state."""
    model = build(case)
    assert isinstance(model, SANL | SANLResNet)
    assert model.guide is not None
    before = {name: value.clone() for name, value in model.guide.state_dict().items()}
    model.train()
    assert not any(module.training for module in model.guide.modules())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    train_step(model, model, optimizer, make_batch(2), Recipe(), 2, 1, torch.float32)
    for name, value in model.guide.state_dict().items():
        assert torch.equal(value, before[name]), name
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = sum(s.numel() for state in optimizer.state.values() for s in state.values() if s.dim())
    assert held == 2 * trained


def test_output_is_what_the_loss_reads() -> None:
    """Each part of the loss is there when its output is, and weighs what the objective says."""
    batch = make_batch(3)
    model = build("liu2018-full")
    zeros = torch.zeros(3, K, SIZE, SIZE)
    landmarks = total_loss(model, Output(zeros), batch, Recipe(), 3, 1).item()
    classes = total_loss(model, Output(classes=torch.zeros(3, 3)), batch, Recipe(), 3, 1).item()
    attributes = total_loss(model, Output(attributes=torch.zeros(3, 4, 2)), batch, Recipe(), 3, 1).item()
    types = total_loss(model, Output(garment_type=torch.zeros(3, 3)), batch, Recipe(), 3, 1).item()
    everything = Output(
        zeros, classes=torch.zeros(3, 3), attributes=torch.zeros(3, 4, 2), garment_type=torch.zeros(3, 3)
    )
    assert classes == types == pytest.approx(np.log(3), rel=1e-5)
    assert attributes == pytest.approx(20 * np.log(2), rel=1e-5)
    total = total_loss(model, everything, batch, Recipe(), 3, 1).item()
    assert total == pytest.approx(landmarks + classes + attributes + types, rel=1e-5)
    # One of three garments is of no known type: it costs nothing.
    batch.truth.garment_type[0] = -1
    some = total_loss(model, Output(garment_type=torch.zeros(3, 3)), batch, Recipe(), 3, 1).item()
    assert some == pytest.approx(2 / 3 * np.log(3), rel=1e-5)


def test_the_garment_type_learns_without_touching_the_landmarks() -> None:
    """Its loss moves its own layer alone, and drawing that layer's weights changes no other layer's."""
    model = build("fpn").eval()
    output = model(make_batch(2).images)
    assert output.garment_type is not None
    torch.nn.functional.cross_entropy(output.garment_type, torch.tensor([0, 1])).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {f"garment_type.{layer}.{what}" for layer in (0, 2) for what in ("weight", "bias")}
    (full,) = (garment for garment in FASHION8.garment_types if garment.name == "full")
    one_type = dataclasses.replace(FASHION8, garment_types=(full,))
    untold = build("fpn", dataclasses.replace(LABELS, landmark_set=one_type)).eval()
    assert untold(make_batch(2).images).garment_type is None
    told = model.state_dict()
    for name, value in untold.state_dict().items():
        assert torch.equal(told.pop(name), value), name
    assert told.keys() == moved


def own_set(k: int, *, pairs: bool, types: int) -> LandmarkSet:
    mirror = [i ^ 1 if pairs and i ^ 1 < k else i for i in range(k)]
    codes = range(1, types + 1)
    return LandmarkSet(
        "coco",
        tuple(f"kp{i}" for i in range(k)),
        tuple(mirror),
        tuple(GarmentType(c, f"type {c}", tuple(range(k))) for c in codes),
    )


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("pairs", "types"), [(True, 1), (False, 0), (True, 3)])
@pytest.mark.parametrize("case", [c for c in EACH_SYSTEM if MODELS[CASES[c][0]].task == "landmarks"])
def test_landmarks_of_ones_own(case: str, k: int, pairs: bool, types: int) -> None:
    """Any number, with and without mirror pairs and garment types: loss, gradients, mirrored answer, scores."""
    landmark_set = own_set(k, pairs=pairs, types=types)
    labels = Labels(landmark_set, tuple(t.name for t in landmark_set.garment_types))
    if case == "liu2018-full":
        labels = dataclasses.replace(labels, categories=("a",), attributes=LABELS.attributes)
    if case == "sanl" and not types:
        with pytest.raises(
            UserError, match="no garment type to classify"
        ):  # its guide has nothing to attend to
            build(case, labels)
        return
    model = build(case, labels)
    batch = make_batch(3, k=k)
    code = torch.arange(3) % types + 1 if types else torch.full((3,), -1)
    truth = batch.truth._replace(garment_type=code, category=(code > 0).long() - 1)
    batch = dataclasses.replace(batch, truth=truth)
    loss = loss_of(model, batch)
    loss.backward()
    assert loss.isfinite()
    with torch.no_grad():
        output = model.eval().both_ways(batch.images)
    assert output.heatmaps is not None
    assert output.heatmaps.shape[:2] == (3, k)
    points, scores = predicted_points(model, output.heatmaps, batch)
    counters = Counters(labels)
    counters.add_rows(3)
    counters.add_landmarks(points, batch.truth, scores)
    report = counters.report()
    assert report.ne is not None
    assert (report.left_right_confusion is None) == (not pairs or k == 1)
    assert len(report.ne_by_type) == types
