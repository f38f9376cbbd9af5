"""Training: the same gradient however a batch is shared out, runs that go on where they stopped, whole checkpoints."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torchvision.models.vgg import make_layers

from glefld import storage
from glefld.data.augmentation import Augmentation
from glefld.data.dataset import open_dataset
from glefld.data.loader import BatchLoader, InputPipeline
from glefld.data.reader import SplitReader, share
from glefld.models import build_model, checkpoint
from glefld.models.backbones import VGG_LAYERS
from glefld.recipe import Recipe
from glefld.scoring.evaluation import EVAL_BATCH, evaluate
from glefld.scoring.metrics import Counters
from glefld.training.loop import EpochReport, Job, Mistake, initial_model, learning_rate, train, train_step
from glefld.training.losses import attribute_loss
from tests.dots import LABELS, card, network, write_checkpoint
from tests.ingested import write_dataset

SIZE = 32
BATCH = 12
CONFIG = {"backbone": "vgg-small", "modules": 1, "width": 8, "start": "identity"}
RECIPE = Recipe(
    input_size=SIZE,
    epochs=3,
    batch_size=8,
    learning_rate=1e-3,
    precision="fp32",
    log_steps=2,
    augmentation=Augmentation(),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """In the first half of a global batch of 12 rows one of two landmarks is occluded."""
    return write_dataset(tmp_path_factory.mktemp("data"), {"train": 21, "val": 5}, hide=6)


def gradient(data: str, rank: int, world: int) -> torch.Tensor:
    """All gradients of one step on the same global batch, as one vector; batch norm uses fixed statistics."""
    torch.manual_seed(0)
    model = build_model("gle", CONFIG, LABELS).eval()
    parallel: nn.Module = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    loader = BatchLoader(LABELS, InputPipeline(SIZE, BATCH))
    first, end = share(0, BATCH, rank, world)
    rows = np.arange(BATCH)[first:end]
    seeds = ((0, 0, int(row)) for row in rows)
    (batch,) = loader.run(
        SplitReader(data, open_dataset(data), "train").read([rows]), RECIPE.augmentation, seeds
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, parallel, optimizer, batch, RECIPE, BATCH, world, torch.float32)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def rank_of_a_group(rank: int, world: int, data: str, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    torch.set_num_threads(1)
    torch.save(gradient(data, rank, world), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("hide", [0, 6], ids=["equal shares", "unequal shares"])
def test_two_workers_have_one_workers_gradient(hide: int, tmp_path: Path) -> None:
    """DDP over gloo: equal and unequal shares of visible landmarks give the whole batch's gradient, to rounding."""
    data = write_dataset(tmp_path / "data", {"train": BATCH}, hide=hide)
    alone = gradient(data, 0, 1)
    torch.multiprocessing.spawn(rank_of_a_group, (2, data, str(tmp_path)), nprocs=2)
    assert alone.abs().max() > 0
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert (together - alone).norm() < 1e-5 * alone.norm()


def losses_of_a_rank(rank: int, world: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    logits, target = torch.load(f"{folder}/batch.pt", weights_only=True)
    first, end = share(0, len(logits), rank, world)
    part = attribute_loss(logits[first:end], target[first:end], world)
    storage.write_json(f"{folder}/{rank}.json", part.item())
    dist.destroy_process_group()


def test_attribute_losses_of_two_workers_add_up_to_one_workers(tmp_path: Path) -> None:
    """Unequal shares, with unknown attributes in one of them only: the mean divides by what all ranks know."""
    torch.manual_seed(0)
    logits, target = torch.randn(5, 7, 2), torch.randint(0, 2, (5, 7)).float()
    target[0] = torch.nan
    torch.save((logits, target), tmp_path / "batch.pt")
    torch.multiprocessing.spawn(losses_of_a_rank, (2, str(tmp_path)), nprocs=2)
    parts = [storage.read_json(str(tmp_path / f"{rank}.json")) for rank in range(2)]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(attribute_loss(logits, target, 1).item(), rel=1e-5)


@pytest.mark.parametrize("rows", [23, 65, 97])
def test_evaluation_is_the_same_on_any_number_of_workers(rows: int, tmp_path: Path) -> None:
    """For row counts that neither 2 nor 3 divides: every row is counted once and NE agrees to 1e-6."""
    assert rows % 2
    assert rows % 3
    url = write_dataset(tmp_path / "data", {"val": rows})
    model, saved = checkpoint.load(write_checkpoint(str(tmp_path / "checkpoint")))
    loader = BatchLoader(LABELS, InputPipeline(saved.input_size, EVAL_BATCH))
    reports = []
    for world in (1, 2, 3):
        total = Counters(LABELS)
        for rank in range(world):
            reader = SplitReader(url, open_dataset(url), "val")
            total += evaluate(model, reader, loader, rank, world)
        reports.append(total.report())
    assert [report.rows for report in reports] == [rows] * 3
    assert reports[0].ne is not None
    for report in reports[1:]:
        assert report.ne == pytest.approx(reports[0].ne, abs=1e-6)


class Stopped(Exception):
    pass


def run(
    data: str,
    folder: Path,
    recipe: Recipe = RECIPE,
    stop_after: int | None = None,
    stored: list[list[tuple[int, float]]] | None = None,
) -> list[tuple[int, float]]:
    """Train; the loss of every step as it was logged. ``stop_after`` an epoch, as if the worker had died.

    ``stored`` gets what was logged so far each time that training asks for it to be stored.
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


def test_a_stopped_run_goes_on_as_if_it_had_not(data: str, tmp_path: Path) -> None:
    """Stopped before its second checkpoint, a run repeats that epoch: same steps, same losses, same final weights."""
    whole = run(data, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(data, tmp_path / "parts", stop_after=2)
    rest = run(data, tmp_path / "parts")
    assert [step for step, _ in whole] == list(range(9))
    assert [step for step, _ in rest] == list(range(3, 9))
    np.testing.assert_allclose([v for _, v in rest], [v for _, v in whole[3:]], rtol=1e-4)
    torch.testing.assert_close(weights(tmp_path / "parts"), weights(tmp_path / "whole"), rtol=1e-3, atol=1e-5)


def test_a_run_goes_on_within_an_epoch(data: str, tmp_path: Path) -> None:
    """From a checkpoint kept in the middle of an epoch, training goes on with the steps not yet taken."""
    recipe = dataclasses.replace(RECIPE, epochs=1, checkpoint_steps=2)
    whole = run(data, tmp_path / "run", recipe)
    folder = tmp_path / "run"
    # What was there when the worker died after its second step: no epoch's end.
    middle = tmp_path / "middle"
    stored: list[list[tuple[int, float]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glefld.training.loop.validate", lambda *_: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            run(data, middle, recipe, stored=stored)
    assert checkpoint.pointed(str(middle), "last") == "checkpoints/00000002"
    assert checkpoint.pointed(str(middle), "best") is None
    assert stored == [whole[:2]], "a worker lost after the checkpoint goes on behind these steps"
    rest = run(data, middle, recipe)
    assert rest == [whole[2]]
    torch.testing.assert_close(weights(middle), weights(folder), rtol=1e-3, atol=1e-5)


def curve_of_a_rank(rank: int, world: int, data: str, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    torch.set_num_threads(1)
    again = dataclasses.replace(RECIPE, seed=1)
    curves = [run(data, Path(folder, str(i)), r) for i, r in enumerate((RECIPE, RECIPE, again))]
    if rank == 0:
        storage.write_json(f"{folder}/curves.json", curves)
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2])
def test_the_same_seed_gives_the_same_curve(world: int, data: str, tmp_path: Path) -> None:
    """To the last bit, with the same data on as many workers; another seed gives another one."""
    torch.multiprocessing.spawn(curve_of_a_rank, (world, data, str(tmp_path)), nprocs=world)
    first, second, other = storage.read_json(str(tmp_path / "curves.json"))
    assert len(first) == 9
    assert first == second
    assert first != other


def test_only_the_best_and_the_last_checkpoint_are_kept(data: str, tmp_path: Path) -> None:
    run(data, tmp_path)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    pointed = {checkpoint.pointed(str(tmp_path), name) for name in ("last", "best")}
    assert {f"checkpoints/{name}" for name in kept} == pointed


@pytest.mark.parametrize("foreign", ["../../data/fld", "/home/victim", "checkpoints", "", None])
def test_a_pointer_that_leads_out_of_the_run_is_refused(
    foreign: str | None, data: str, tmp_path: Path
) -> None:
    """What a pointer has named is deleted when a better checkpoint comes."""
    run(data, tmp_path / "run", dataclasses.replace(RECIPE, epochs=1))
    (tmp_path / "run" / "best.json").write_text(json.dumps({"checkpoint": foreign}))
    with pytest.raises(ValueError, match=r"best\.json names .* not a checkpoint of this run"):
        run(data, tmp_path / "run", dataclasses.replace(RECIPE, epochs=2))


def test_learning_rates_of_the_paper() -> None:
    """Adam 1e-4, times 0.1 each five epochs; the cosine warms up, peaks at the rate given and ends near zero."""
    paper = Recipe()
    rates = [learning_rate(paper, epoch * 7, 7) for epoch in range(30)]
    assert rates[:5] == [1e-4] * 5
    assert rates[5] == pytest.approx(1e-5)
    assert rates[29] == pytest.approx(1e-9)
    cosine = dataclasses.replace(paper, schedule="cosine", epochs=10, warmup_epochs=2)
    rates = [learning_rate(cosine, step, 10) for step in range(100)]
    assert max(rates) == pytest.approx(1e-4, rel=1e-3)
    assert rates.index(max(rates)) in (19, 20)
    assert rates[0] < 1e-5
    assert rates[-1] < 1e-7
    assert rates[20:] == sorted(rates[20:], reverse=True)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "complete.json"])
def test_a_damaged_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    """A file cut short, changed or missing ends in one line that names the checkpoint."""
    url = write_checkpoint(str(tmp_path / "checkpoint"))
    checkpoint.load(url)
    path = tmp_path / "checkpoint" / name
    if name == "complete.json":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="checkpoint"):
        checkpoint.load(url)


class Code:
    """Pickled, it makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_weights_that_carry_code_do_not_run_it(data: str, tmp_path: Path) -> None:
    """In torchvision's place and in a checkpoint whose hashes are right: one line, and nothing was done."""
    torch.save({"features.0.weight": Code(tmp_path / "ran")}, tmp_path / "code.pth")
    job = Job("fld", data, "", "gle", CONFIG, RECIPE, weights=str(tmp_path / "code.pth"))
    with pytest.raises(ValueError, match="not a checkpoint of torchvision's"):
        initial_model(job, open_dataset(data).labels)
    url = str(tmp_path / "checkpoint")
    checkpoint.save(url, network(), card("gle", CONFIG, LABELS, SIZE), {"optimizer": Code(tmp_path / "ran")})
    with pytest.raises(ValueError, match="holds more than tensors and numbers"):
        checkpoint.load_training(url)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_rebuilds_itself(tmp_path: Path) -> None:
    """Exported and loaded without any flag: the same card and the same answers."""
    url = write_checkpoint(str(tmp_path / "checkpoint"))
    (tmp_path / "export").mkdir()
    checkpoint.export(url, tmp_path / "export")
    (model, saved), (again, saved_again) = (checkpoint.load(u) for u in (url, str(tmp_path / "export")))
    x = torch.randn(2, 3, saved.input_size, saved.input_size)
    assert saved == saved_again
    assert torch.equal(model(x).heatmaps, again(x).heatmaps)


def test_resolve_takes_a_run_or_a_checkpoint(data: str, tmp_path: Path) -> None:
    run(data, tmp_path / "run", dataclasses.replace(RECIPE, epochs=1))
    best = checkpoint.resolve(str(tmp_path / "run"))
    assert checkpoint.resolve(best) == best
    with pytest.raises(ValueError, match="neither a checkpoint nor a run"):
        checkpoint.resolve(str(tmp_path))


def test_a_wrong_recipe_ends_in_one_line() -> None:
    """What a user can get wrong about the recipe is one line that names the option."""
    cases = (({"input_size": 0}, "input-size"), ({"epochs": 0}, "epochs"), ({"batch_size": 0}, "batch"))
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            Recipe(**wrong)


def test_weights_are_torchvisions(data: str, tmp_path: Path) -> None:
    """The backbone starts from a torchvision checkpoint's features; what is none, or another's, is one line."""
    features = make_layers(VGG_LAYERS["vgg16"], batch_norm=False)
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    labels = open_dataset(data).labels
    config = {"backbone": "vgg16", "modules": 0, "width": 8}
    job = Job("fld", data, "", "gle", config, RECIPE, weights=str(tmp_path / "vgg16.pth"))
    model = initial_model(job, labels)
    for name, value in model.get_submodule("features").state_dict().items():
        assert torch.equal(value, state[f"features.{name}"])
    (tmp_path / "text.pth").write_text("no checkpoint")
    wrong = {
        "not a checkpoint of torchvision's": dataclasses.replace(job, weights=str(tmp_path / "text.pth")),
        "does not fit this backbone": dataclasses.replace(job, config=CONFIG),
        "has no backbone": dataclasses.replace(job, model="local", config={}),
        "multiple of 8": dataclasses.replace(job, recipe=dataclasses.replace(RECIPE, input_size=36)),
    }
    for message, mistaken in wrong.items():
        with pytest.raises(ValueError, match=message):
            initial_model(mistaken, labels)


def test_a_run_does_not_go_on_with_other_data(data: str, tmp_path: Path) -> None:
    """A data set that was ingested anew is another one, though its place is the same."""
    run(data, tmp_path / "run", dataclasses.replace(RECIPE, epochs=1))
    other = write_dataset(tmp_path / "data", {"train": 21, "val": 5}, seed=1)
    with pytest.raises(Mistake, match="has changed"):
        run(other, tmp_path / "run")


def test_the_best_checkpoint_survives_a_kill_between_the_two_pointers(data: str, tmp_path: Path) -> None:
    """Killed after one pointer was written, the run goes on to its end with a best checkpoint to show."""
    recipe = dataclasses.replace(RECIPE, epochs=2)
    written = []

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
