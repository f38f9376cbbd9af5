"""Training: a gradient that does not depend on the number of workers, exact resumption, complete checkpoints."""

import dataclasses
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from glefld import storage
from glefld.data.augmentation import Augmentation
from glefld.data.dataset import MANIFEST, open_dataset
from glefld.data.loader import BatchLoader, InputPipeline
from glefld.data.order import share
from glefld.data.picture import IMAGENET
from glefld.data.reader import SplitReader
from glefld.errors import Mistake
from glefld.models import build_model, checkpoint
from glefld.recipe import Recipe
from glefld.scoring import evaluation
from glefld.scoring.evaluation import evaluate
from glefld.scoring.metrics import Counters
from glefld.training.loop import (
    Began,
    EpochReport,
    Training,
    train,
    train_step,
)
from glefld.training.losses import attribute_loss
from glefld.training.meter import Meter
from glefld.training.start import Job
from tests import dots
from tests.dots import LABELS, card, network, write_checkpoint
from tests.ingested import write_dataset
from tests.ranks import start_ranks

SIZE = 32
BATCH = 12
CONFIG = {"backbone": "test_resnet", "modules": 1, "width": 8, "start": "identity"}
RECIPE = Recipe(
    input_size=SIZE,
    epochs=3,
    batch_size=8,
    learning_rate=1e-3,
    precision="fp32",
    log_steps=1,
    augmentation=Augmentation(),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Several threads add up in any order, and on a busy machine they wait for each other at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set with an occluded landmark in the first six rows."""
    return write_dataset(tmp_path_factory.mktemp("data"), {"train": 21, "val": 5}, hide=6)


def gradient(data: str, rank: int, world: int) -> torch.Tensor:
    """All gradients of one step on the same global batch, as one vector; batch norm uses fixed statistics."""
    torch.manual_seed(0)
    model = build_model("gle", CONFIG, LABELS).eval()
    parallel: nn.Module = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    loader = BatchLoader(LABELS, InputPipeline(SIZE, IMAGENET, BATCH))
    first, end = share(0, BATCH, rank, world)
    rows = np.arange(BATCH)[first:end]
    seeds = ((0, 0, int(row)) for row in rows)
    (batch,) = loader.run(
        SplitReader(data, open_dataset(data), "train").read([rows]), RECIPE.augmentation, seeds
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, parallel, optimizer, batch, RECIPE, BATCH, world, torch.float32)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


class Stopped(Exception):
    pass


def run(
    data: str,
    folder: Path,
    recipe: Recipe = RECIPE,
    stop_after: int | None = None,
    stored: list[list[tuple[int, float]]] | None = None,
) -> list[tuple[int, float]]:
    """Train and return the logged loss of every step. ``stop_after`` an epoch, training ends as if the worker had died.

    ``stored`` gets what was logged so far, each time training asks for it to be stored.
    """
    losses: list[tuple[int, float]] = []

    def store_log() -> None:
        if stored is not None:
            stored.append(list(losses))

    def report(epoch: EpochReport) -> None:
        if epoch.epoch == stop_after:
            raise Stopped

    job = Job("fld", data, str(folder), "gle", CONFIG, recipe)
    cpu = torch.device("cpu")
    train(job, cpu, lambda metrics, step: losses.append((step, metrics["loss"])), report, store_log)
    return losses


def weights(folder: Path) -> torch.Tensor:
    last = checkpoint.pointed(str(folder), "last")
    assert last is not None
    model, _ = checkpoint.load(storage.join(str(folder), last))
    return torch.cat([p.flatten() for p in model.parameters()])


def test_a_card_says_that_photos_were_rendered(tmp_path: Path) -> None:
    """An export's licence goes by it."""
    path = Path(write_dataset(tmp_path / "data", {"train": 8, "val": 2}), MANIFEST)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": {"rendered": True}}))
    run(str(path.parent), tmp_path / "run", dataclasses.replace(RECIPE, epochs=1))
    _, card = checkpoint.load(checkpoint.resolve(str(tmp_path / "run")))
    assert card.dataset == "fld (rendered)"


@dataclasses.dataclass(frozen=True)
class Rank:
    """What one of two workers over gloo computed. Starting them takes far longer than all of their work."""

    gradients: dict[int, torch.Tensor]
    """By the number of the batch's rows with a hidden landmark."""
    attribute_loss: float
    curves: list[list[tuple[int, float]]]
    precision: str
    """What ``auto`` came to, where only the first rank could measure it."""
    mistakes: list[str]
    """What ended the trainings of ``DIVERGING``, and a step with a loss that is finite on rank 0 alone."""


HIDDEN = (0, 6)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory, data: str) -> list[Rank]:
    folder = tmp_path_factory.mktemp("group")
    for hide in HIDDEN:
        write_dataset(folder / f"hide-{hide}", {"train": BATCH}, hide=hide)
    start_ranks(work_of_a_rank, (2, data, str(folder)), 2)
    return [Rank(*torch.load(folder / f"{rank}.pt", weights_only=True)) for rank in range(2)]


def work_of_a_rank(rank: int, world: int, data: str, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    torch.set_num_threads(1)
    gradients = {hide: gradient(f"{folder}/hide-{hide}", rank, world) for hide in HIDDEN}
    logits, target = attributes()
    first, end = share(0, len(logits), rank, world)
    loss = attribute_loss(logits[first:end], target[first:end], world).item()
    mistakes = [diverge(data, Path(folder) / f"diverged-{i}", recipe) for i, recipe in enumerate(DIVERGING)]
    meter = Meter(dataclasses.replace(RECIPE, log_steps=2), 0, 1, lambda metrics, step: None)
    meter.add(0, torch.tensor(1.0 if rank == 0 else torch.nan), 8, 0)
    with pytest.raises(Mistake) as caught:
        meter.flush()
    precision = auto(data, Path(folder) / "auto", {"fp32": 2.0, "bf16": 1.0} if rank == 0 else None)
    computed = (gradients, loss, curves(data, Path(folder)), precision, [*mistakes, str(caught.value)])
    torch.save(computed, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def auto(data: str, folder: Path, seconds: dict[str, float] | None, epochs: int = 1) -> str:
    """Train with precision auto and return what it came to. A step takes ``seconds``; None: it must not be timed."""

    def measure(*_: object, training: bool) -> dict[str, float]:
        assert training
        assert seconds is not None
        return seconds

    announced: list[Began] = []
    recipe = dataclasses.replace(RECIPE, precision="auto", epochs=epochs)
    job = Job("fld", data, str(folder), "gle", CONFIG, recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glefld.models.precision.measure", measure)
        train(job, torch.device("cpu"), lambda *_: None, lambda _: None, announce=announced.append)
    (began,) = announced
    assert began.done == (epochs - 1) * began.steps
    return began.precision.precision


def attributes() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of five rows, unequal shares for two workers; the first worker's has an unknown row."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (5, 7), generator=generator).float()
    target[0] = torch.nan
    return torch.randn(5, 7, 2, generator=generator), target


def curves(data: str, folder: Path) -> list[list[tuple[int, float]]]:
    """Loss curves of two runs with one seed and a third with another."""
    recipe = dataclasses.replace(RECIPE, epochs=2)
    seeds = (recipe, recipe, dataclasses.replace(recipe, seed=1))
    return [run(data, folder / f"run-{i}", recipe) for i, recipe in enumerate(seeds)]


#: Their first step makes the weights far too large: the loss of the second shows it, or validation if there is none.
DIVERGING = [
    dataclasses.replace(RECIPE, learning_rate=1e30),
    dataclasses.replace(RECIPE, learning_rate=1e30, batch_size=21, log_steps=20),
]


def diverge(data: str, folder: Path, recipe: Recipe) -> str:
    """The Mistake in which training ends. What was logged is finite, and no checkpoint was written."""
    logged: list[float] = []

    def log(metrics: dict[str, float], step: int) -> None:
        logged.append(metrics["loss"])

    # Its peaks are Gaussians: their decoding took NaN for a peak in a corner.
    job = Job("fld", data, str(folder), "baseline", {"backbone": "test_resnet", "width": 8}, recipe)
    with pytest.raises(Mistake) as caught:
        train(job, torch.device("cpu"), log, lambda epoch: None)
    assert np.isfinite(logged).all()
    assert checkpoint.pointed(str(folder), "last") is None
    return str(caught.value)


def test_a_training_that_diverges_ends_with_what_to_try(data: str, tmp_path: Path) -> None:
    """As soon as a logged loss is not finite, or a prediction on val."""
    by_loss, by_validation = (diverge(data, tmp_path / str(i), r) for i, r in enumerate(DIVERGING))
    assert by_loss.startswith("the loss of step 1 is not finite: training has diverged")
    assert by_validation.startswith("10 predictions are not finite: training has diverged")
    for message in (by_loss, by_validation):
        assert "--learning-rate" in message
        assert "--precision fp32" in message


def test_all_workers_of_a_diverged_training_end_alike(group: list[Rank]) -> None:
    """None waits for another, though the numbers of one alone are at fault."""
    first, second = (rank.mistakes for rank in group)
    assert first == second
    assert [message.partition(":")[0] for message in first] == [
        "the loss of step 1 is not finite",
        "10 predictions are not finite",
        "the loss of step 0 is not finite",
    ]


@pytest.mark.parametrize("hide", HIDDEN, ids=["equal shares", "unequal shares"])
def test_two_workers_have_one_workers_gradient(hide: int, group: list[Rank], tmp_path: Path) -> None:
    """Equal and unequal shares of visible landmarks give the whole batch's gradient, up to rounding."""
    alone = gradient(write_dataset(tmp_path / "data", {"train": BATCH}, hide=hide), 0, 1)
    assert alone.abs().max() > 0
    for rank in group:
        assert (rank.gradients[hide] - alone).norm() < 1e-5 * alone.norm()


def test_attribute_losses_of_two_workers_add_up_to_one_workers(group: list[Rank]) -> None:
    """With unknown attributes in one share only: the mean divides by what is known on all ranks."""
    losses = [rank.attribute_loss for rank in group]
    assert min(losses) > 0
    assert sum(losses) == pytest.approx(attribute_loss(*attributes(), 1).item(), rel=1e-5)


def test_the_same_seed_gives_two_workers_the_same_curve(group: list[Rank]) -> None:
    """To the last bit; another seed gives another curve."""
    for first, second, other in (rank.curves for rank in group):
        assert [step for step, _ in first] == list(range(6))
        assert first == second
        assert first != other


def test_the_same_seed_gives_one_worker_the_same_curve(data: str, tmp_path: Path) -> None:
    """To the last bit; another seed gives another curve."""
    first, second, other = curves(data, tmp_path)
    assert [step for step, _ in first] == list(range(6))
    assert first == second
    assert first != other


def test_all_workers_compute_in_what_the_first_one_measured(group: list[Rank]) -> None:
    assert [rank.precision for rank in group] == ["bf16", "bf16"]


def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(data: str, tmp_path: Path) -> None:
    """It is measured once; another machine, or a busier one, does not change it."""
    assert auto(data, tmp_path / "run", {"fp32": 2.0, "bf16": 1.0}) == "bf16"
    assert auto(data, tmp_path / "run", None, epochs=2) == "bf16"
    assert auto(data, tmp_path / "other", {"fp32": 1.0, "bf16": 2.0}) == "fp32"


@pytest.mark.parametrize("rows", [5, 23])
def test_evaluation_is_the_same_on_any_number_of_workers(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row is counted once and NE agrees to 1e-6 if workers have unequal numbers of batches, or none."""
    monkeypatch.setattr(evaluation, "EVAL_BATCH", 4)
    url = write_dataset(tmp_path / "data", {"val": rows})
    model, saved = checkpoint.load(write_checkpoint(str(tmp_path / "checkpoint")))
    loader = BatchLoader(LABELS, InputPipeline(saved.input_size, IMAGENET, 4))
    reports = []
    for world in (1, 2, 3):
        total = Counters(LABELS)
        for rank in range(world):
            reader = SplitReader(url, open_dataset(url), "val")
            total += evaluate(model, reader, loader, rank, world, LABELS)
        reports.append(total.report())
    assert [report.rows for report in reports] == [rows] * 3
    assert reports[0].ne is not None
    for report in reports[1:]:
        assert report.ne == pytest.approx(reports[0].ne, abs=1e-6)


def test_a_stopped_run_resumes_as_if_it_had_not_stopped(data: str, tmp_path: Path) -> None:
    """Stopped before its second checkpoint, a run repeats that epoch: same steps, same losses, same final weights."""
    whole = run(data, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(data, tmp_path / "parts", stop_after=2)
    rest = run(data, tmp_path / "parts")
    assert [step for step, _ in whole] == list(range(9))
    assert [step for step, _ in rest] == list(range(3, 9))
    np.testing.assert_allclose([v for _, v in rest], [v for _, v in whole[3:]], rtol=1e-4)
    torch.testing.assert_close(weights(tmp_path / "parts"), weights(tmp_path / "whole"), rtol=1e-3, atol=1e-5)


def test_a_run_resumes_within_an_epoch(data: str, tmp_path: Path) -> None:
    """From a checkpoint in the middle of an epoch, training continues with the steps not yet taken."""
    recipe = dataclasses.replace(RECIPE, epochs=1, checkpoint_steps=2)
    whole = run(data, tmp_path / "run", recipe)
    folder = tmp_path / "run"
    # The worker dies after the checkpoint, before the end of the epoch.
    middle = tmp_path / "middle"
    stored: list[list[tuple[int, float]]] = []

    def stop(_: Training) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "validate", stop)
        with pytest.raises(Stopped):
            run(data, middle, recipe, stored=stored)
    assert checkpoint.pointed(str(middle), "last") == "checkpoints/00000002"
    assert checkpoint.pointed(str(middle), "best") is None
    assert stored == [whole[:2]], "a worker lost after the checkpoint does not repeat these steps"
    rest = run(data, middle, recipe)
    assert rest == [whole[2]]
    torch.testing.assert_close(weights(middle), weights(folder), rtol=1e-3, atol=1e-5)


def test_a_checkpoint_within_an_epoch_is_made_by_the_clock(data: str, tmp_path: Path) -> None:
    """Where losses are logged, so that a mean has the same steps whatever the time: here after two of three."""
    recipe = dataclasses.replace(RECIPE, epochs=2, log_steps=2)
    stored: dict[float, list[list[tuple[int, float]]]] = {1e-9: [], 60.0: [], 0.0: []}
    curves = {
        minutes: run(
            data,
            tmp_path / str(minutes),
            dataclasses.replace(recipe, checkpoint_minutes=minutes),
            stored=seen,
        )
        for minutes, seen in stored.items()
    }
    whole = curves[60.0]
    assert [step for step, _ in whole] == [1, 2, 4, 5]
    assert stored == {1e-9: [whole[:1], whole[:3]], 60.0: [], 0.0: []}
    assert curves[1e-9] == curves[0.0] == whole


def test_only_the_best_and_the_last_checkpoint_are_kept(data: str, tmp_path: Path) -> None:
    run(data, tmp_path)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    pointed = {checkpoint.pointed(str(tmp_path), name) for name in ("last", "best")}
    assert {f"checkpoints/{name}" for name in kept} == pointed


def test_what_killed_workers_left_is_gone_when_the_run_goes_on(data: str, tmp_path: Path) -> None:
    """Partial files, and a checkpoint that lost its pointers and was not deleted. What is not a run's own stays."""
    folder = tmp_path / "run"
    recipe = dataclasses.replace(RECIPE, epochs=2)
    with pytest.raises(Stopped):
        run(data, folder, recipe, stop_after=2)
    first = folder / "checkpoints" / "00000003"
    part = f"_part-{uuid.uuid4().hex}"
    for older in ("00000001", "00000002"):
        shutil.copytree(first, first.with_name(older))
    mine = [
        first.with_name("00000002") / "notes.txt",
        folder / "checkpoints" / "mine" / part,
        folder / "_part-y",
    ]
    for path in (folder / part, first.with_name("00000001") / part, first / part, *mine):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    # Newer than the last one: it may still be written by a worker that was given up, and is written anew.
    (first.with_name("00000006")).mkdir()
    (first.with_name("00000006") / "model.safetensors").write_bytes(b"half")
    run(data, folder, recipe)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    of_checkpoints = {
        f"checkpoints/{step}/{name}" for step in kept_steps(folder) for name in checkpoint.FILES
    }
    stays = {f"checkpoints/00000002/{name}" for name in checkpoint.FILES - {"complete.json"}}
    assert left - {str(path.relative_to(folder)) for path in mine} == {
        "last.json",
        "best.json",
        "checkpoints/00000002/complete.json",
        *stays,
        *of_checkpoints,
    }
    assert all(path.exists() for path in mine)
    checkpoint.load(storage.join(str(folder), "checkpoints/00000006"))


def kept_steps(folder: Path) -> set[str]:
    pointed = {checkpoint.pointed(str(folder), name) for name in ("last", "best")}
    return {str(name).rpartition("/")[2] for name in pointed}


def test_a_checkpoint_is_written_without_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is killed would leave them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "there is no such folder"))
    saved = card(dots.MODEL, dots.CONFIG, LABELS, SIZE)
    checkpoint.save(str(tmp_path / "checkpoint"), network(), saved, {"step": 1})
    assert checkpoint.load_training(str(tmp_path / "checkpoint")) == {"step": 1}


@pytest.mark.parametrize("foreign", ["../../data/fld", "/home/victim", "checkpoints", "", None])
def test_a_pointer_that_leads_out_of_the_run_is_refused(
    foreign: str | None, data: str, tmp_path: Path
) -> None:
    """Else it would be deleted when a better checkpoint comes."""
    run(data, tmp_path / "run", dataclasses.replace(RECIPE, epochs=1))
    (tmp_path / "run" / "best.json").write_text(json.dumps({"checkpoint": foreign}))
    with pytest.raises(ValueError, match=r"best\.json names .* not a checkpoint of this run"):
        run(data, tmp_path / "run", dataclasses.replace(RECIPE, epochs=2))


def test_resolve_accepts_a_run_or_a_checkpoint(data: str, tmp_path: Path) -> None:
    run(data, tmp_path / "run", dataclasses.replace(RECIPE, epochs=1))
    best = checkpoint.resolve(str(tmp_path / "run"))
    assert checkpoint.resolve(best) == best
    with pytest.raises(ValueError, match="neither a checkpoint nor a run"):
        checkpoint.resolve(str(tmp_path))


def test_a_run_does_not_resume_on_other_data(data: str, tmp_path: Path) -> None:
    """Another data set at the same place, as after ingesting it again."""
    run(data, tmp_path / "run", dataclasses.replace(RECIPE, epochs=1))
    other = write_dataset(tmp_path / "data", {"train": 21, "val": 5}, seed=1)
    with pytest.raises(Mistake, match="has changed"):
        run(other, tmp_path / "run")


def test_the_best_checkpoint_survives_a_kill_between_the_two_pointers(data: str, tmp_path: Path) -> None:
    """After a kill between them, the run resumes and still has its best checkpoint."""
    recipe = dataclasses.replace(RECIPE, epochs=2)
    written: list[str] = []

    def stop(run_folder: str, name: str, place: str) -> None:
        if written:
            raise Stopped
        written.append(name)
        point(run_folder, name, place)  # type: ignore[arg-type]

    point = checkpoint.point
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glefld.models.checkpoint.point", stop)
        with pytest.raises(Stopped):
            run(data, tmp_path / "run", recipe)
    assert written == ["best"]
    run(data, tmp_path / "run", recipe)
    _, best = checkpoint.load(checkpoint.resolve(str(tmp_path / "run")))
    _, last = checkpoint.load(
        storage.join(str(tmp_path / "run"), str(checkpoint.pointed(str(tmp_path / "run"), "last")))
    )
    assert best.val["ne"] <= last.val["ne"]
