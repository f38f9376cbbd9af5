"""Training and inference on a GPU: what they learn and predict, what they hold in memory, how fast they are."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from glefld.data.augmentation import NO_AUGMENTATION
from glefld.data.loader import Batch
from glefld.models import MODELS
from glefld.models.blocks import NonLocal
from glefld.models.precision import choose_precision
from glefld.predict import Predictor
from glefld.prediction import Prediction, prepare
from glefld.recipe import Precision, Recipe
from glefld.schema import GarmentType, Labels, LandmarkSet
from glefld.training.loop import EpochReport, train, train_step
from glefld.training.start import Job
from tests import dots
from tests.ingested import write_dataset

#: As many landmarks as the benchmark has: they are the heatmaps' channels.
EIGHT = Labels(
    LandmarkSet(
        "eight",
        tuple(f"point_{i}" for i in range(8)),
        (1, 0, 3, 2, 5, 4, 7, 6),
        (GarmentType(1, "all", tuple(range(8))),),
    )
)


def learn(data: str, run: Path, precision: Precision, device: torch.device) -> list[EpochReport]:
    recipe = Recipe(
        input_size=32,
        epochs=8,
        batch_size=8,
        learning_rate=1e-2,
        precision=precision,
        augmentation=NO_AUGMENTATION,
    )
    reports: list[EpochReport] = []
    train(Job("fld", data, str(run), "local", {}, recipe), device, lambda *_: None, reports.append)
    return reports


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"), {"train": 128, "val": 32}, shard_rows=64)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_learns_what_a_cpu_learns(
    data: str, tmp_path: Path, precision: Precision, device: torch.device, tell: Callable[[str], None]
) -> None:
    there = learn(data, tmp_path / "gpu", precision, device)
    here = learn(data, tmp_path / "cpu", "fp32", torch.device("cpu"))
    tell(f"val error by epoch, {precision}: " + " ".join(f"{r.error:.4f}" for r in there))
    tell("val error by epoch, CPU:  " + " ".join(f"{r.error:.4f}" for r in here))
    assert there[-1].error < 0.03
    assert there[-1].error == pytest.approx(here[-1].error, abs=0.01)


def test_a_group_of_one_with_nccl_learns_the_same(data: str, tmp_path: Path, device: torch.device) -> None:
    """With NCCL's process group and the barriers of checkpoints."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        grouped = learn(data, tmp_path / "grouped", "fp32", device)
    finally:
        dist.destroy_process_group()
    assert grouped[-1].error < 0.03


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_gpu_predicts_what_a_cpu_predicts(
    subsampling: int, tmp_path: Path, device: torch.device, tell: Callable[[str], None]
) -> None:
    """In fp32, to a fraction of the input's pixel, which is here up to 3.1 of the photo's.

    The dots are flat, so the fit of a peak between pixels turns levels of decoded colour into tenths of a pixel.
    """
    url = dots.write_checkpoint(str(tmp_path / "checkpoint"))
    rng = np.random.default_rng(0)
    photos = [
        dots.encoded(
            dots.photo(dots.random_points(rng, (0, 0, 150, 200)), 150, 200),
            "JPEG",
            quality=95,
            subsampling=subsampling,
        )
        for _ in range(40)
    ]

    def points(on: torch.device) -> np.ndarray:
        found = list(Predictor(url, on, batch_size=16).predict(prepare(photo, dots.SIZE) for photo in photos))
        assert all(isinstance(p, Prediction) for p in found)
        return np.stack([p.landmarks for p in found if isinstance(p, Prediction)])

    apart = np.abs(points(device) - points(torch.device("cpu")))
    tell(
        f"predictions, subsampling {subsampling}: {apart.mean():.3f} pixels from the CPU's, {apart.max():.3f} at most"
    )
    assert np.median(apart) < 0.05
    assert apart.max() < 0.7


@pytest.mark.parametrize("guided", [False, True])
def test_attentions_memory_grows_with_positions_not_with_their_square(
    guided: bool, device: torch.device, tell: Callable[[str], None]
) -> None:
    """Four times the positions take about four times the memory; all pairs' weights would take sixteen."""

    def peak(side: int) -> int:
        block = NonLocal(128).to(device)
        x = torch.randn(8, 128, side, side, device=device).to(memory_format=torch.channels_last)
        attention = torch.rand(8, 1, side, side, device=device) if guided else None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            block(x.requires_grad_(), attention).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    small, large = peak(28), peak(56)
    name = f"non-local block{', guided' if guided else ''}"
    tell(f"{name}: {small / 2**20:.0f} MiB at 28 x 28, {large / 2**20:.0f} at 56 x 56")
    assert large < 6 * small


def resident(size: int, rows: int, device: torch.device) -> Batch:
    """A batch of noise that is on the device already."""
    generator = torch.Generator().manual_seed(0)
    count = len(EIGHT.landmark_set)
    points = torch.rand(rows, count, 2, generator=generator) * size
    return Batch(
        images=torch.randn(rows, 3, size, size, generator=generator).to(device),
        landmarks=points,
        visibility=torch.zeros(rows, count, dtype=torch.int8),
        to_photo=torch.eye(2, 3).expand(rows, 2, 3),
        truth=None,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("system", ["gle", "sanl", "dafe", "liu2018", "baseline"])
def test_how_fast_the_papers_presets_train(
    system: str, device: torch.device, tell: Callable[[str], None]
) -> None:
    """Tells the training steps' rate on a batch that is on the GPU already: each paper's preset and its batch."""
    config, recipe = MODELS[system].preset("paper", "fld")
    batch = resident(recipe.input_size, recipe.batch_size, device)
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.manual_seed(0)
        model = MODELS[system].module(config, EIGHT).to(device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
        torch.cuda.reset_peak_memory_stats()
        rates = []
        for _ in range(5):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(5):
                train_step(model, model, optimizer, batch, recipe, recipe.batch_size, 1, dtype)
            torch.cuda.synchronize()
            rates.append(5 * recipe.batch_size / (time.perf_counter() - begun))
        tell(
            f"{system} paper preset, {recipe.input_size} px, batch {recipe.batch_size}, {name}: "
            f"{np.median(rates[1:]):.0f} rows/s ({min(rates[1:]):.0f} to {max(rates[1:]):.0f}), "
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        )
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    choice = choose_precision("auto", model, recipe.input_size, recipe.batch_size, training=True)
    tell(f"{system} paper preset, auto: {choice.precision}, {choice.why}")
