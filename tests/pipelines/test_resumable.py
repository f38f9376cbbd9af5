"""The folder of an ingest or an inference: whose it is, what of it still counts, and shards whose worker dies."""

import logging
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from glefld import storage
from glefld.errors import UserError
from pipelines import resumable
from pipelines.infer import run as infer_run
from pipelines.infer.run import InferOptions
from pipelines.ingest import plan as ingest_plan
from pipelines.ingest.plan import IngestOptions
from pipelines.resumable import MARKER, Done, counted, find_killers, run_tasks, to_bytes
from tests import dots
from tests.pipelines.outputs import INFER, INGEST, Kind, files
from tests.raw_layouts import jpeg, photos, rows, write_fld

ROWS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dots.write_checkpoint(str(tmp_path_factory.mktemp("model") / "checkpoint"))


class Job:
    """An ingest or an inference of a few photos, in several shards, from a folder or an archive."""

    def __init__(self, kind: str, folder: Path, model: str, source: str = "img") -> None:
        listed = rows(ROWS)
        self.kind: Kind = {"ingest": INGEST, "infer": INFER}[kind]
        self.folder = folder
        self.output = folder / "output"
        raw = write_fld(folder / "raw", listed, photos(listed), source)
        self.photos = raw / source
        self.options: Any = (
            IngestOptions("fld", str(raw))
            if kind == "ingest"
            else InferOptions(model, str(self.photos), shard_rows=4)
        )

    def write(self, count: int | None = None) -> None:
        self.kind.write(self.options, str(self.output), count)

    def finish(self) -> Any:
        return self.kind.finish(self.options, str(self.output))

    def find(self) -> Any:
        return self.kind.find(self.options, str(self.output))


@pytest.fixture(params=["ingest", "infer"])
def job(request: pytest.FixtureRequest, tmp_path: Path, model: str) -> Job:
    return Job(request.param, tmp_path, model)


FOREIGN = ["_staging/draft.txt", "_rejects/mine.parquet", f"_part-{7:032x}", "notes.md"]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_other_content_is_refused_and_left_alone(job: Job, name: str) -> None:
    storage.write_bytes(str(job.output / name), b"somebody's work")
    with pytest.raises(UserError, match=r"already holds .*, which glefld (ingest|infer) has not written"):
        job.write()
    assert files(job.output) == {name: b"somebody's work"}


def test_a_file_is_no_output(job: Job) -> None:
    job.output.write_bytes(b"somebody's work")
    with pytest.raises(UserError, match="is a file: --output must be a folder"):
        job.write()
    assert job.output.read_bytes() == b"somebody's work"


def test_another_jobs_output_is_refused(tmp_path: Path, model: str) -> None:
    made = Job("ingest", tmp_path / "a", model)
    made.write(1)
    before = files(made.output)
    with pytest.raises(UserError, match=r"holds the output of glefld ingest: choose another --output"):
        INFER.write(Job("infer", tmp_path / "b", model).options, str(made.output), None)
    assert files(made.output) == before


def test_what_others_put_into_our_folder_later_stays(job: Job) -> None:
    """Nothing below folders that are not ours is removed, whatever its name."""
    job.write(1)
    others = [f"notes/_part-{uuid.uuid4().hex}", "notes/_staging/x", "_part-1"]
    for name in others:
        storage.write_bytes(str(job.output / name), b"somebody's work")
    ours = [f"_part-{uuid.uuid4().hex}", "_staging/0123.tar"]
    for name in ours:
        storage.write_bytes(str(job.output / name), b"of a killed run")
    job.finish()
    assert job.find() is not None
    left = files(job.output)
    assert set(others) <= set(left)
    assert not set(ours) & set(left)


def test_a_plan_that_fails_leaves_nothing(job: Job) -> None:
    shutil.rmtree(job.folder / "raw")
    with pytest.raises(UserError):
        job.write()
    assert not job.output.exists()


def same_size(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-100] + bytes(98) + data[-2:])


CHANGES: dict[str, Callable[[Job], Any]] = {
    "a photo's bytes": lambda job: same_size(job.photos / "img_00000003.jpg"),
    "a photo more": lambda job: (job.photos / "img_00000099.jpg").write_bytes(jpeg(99)),
    "a photo less": lambda job: (job.photos / "img_00000003.jpg").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_photos_are_not_mixed_with_old_ones(job: Job, change: str) -> None:
    job.write(1)
    before = files(job.output)
    CHANGES[change](job)
    # A photo that no list names changes nothing of a data set.
    if (job.kind, change) != (INGEST, "a photo more"):
        with pytest.raises(UserError, match="another or a changed source"):
            job.write()
    assert files(job.output) == before


@pytest.mark.parametrize("change", CHANGES)
def test_finished_is_said_of_the_same_photos_only(job: Job, change: str) -> None:
    job.finish()
    assert job.find() is not None
    CHANGES[change](job)
    if (job.kind, change) == (INGEST, "a photo more"):
        assert job.find() is not None
    else:
        with pytest.raises(UserError, match="what it was made from has changed since"):
            job.find()


def test_finished_is_said_of_the_same_lists_only(tmp_path: Path, model: str) -> None:
    job = Job("ingest", tmp_path, model)
    job.finish()
    boxes = tmp_path / "raw" / "Anno" / "list_bbox.txt"
    boxes.write_text(boxes.read_text().replace("005 010 045 070", "005 010 045 071"))
    with pytest.raises(UserError, match="what it was made from has changed since"):
        job.find()


@pytest.mark.parametrize("kind", ["ingest", "infer"])
def test_a_tar_of_the_same_names_and_sizes_is_another_tar(kind: str, tmp_path: Path, model: str) -> None:
    """Its members have no checksums, so the file's version stands for them."""
    job = Job(kind, tmp_path, model, "img.tar")
    job.write(1)
    data = bytearray(job.photos.read_bytes())
    at = data.index(b"\xff\xda") + 40
    data[at] ^= 1
    job.photos.write_bytes(data)
    with pytest.raises(UserError, match="another or a changed source"):
        job.write()


@pytest.mark.parametrize("kind", ["ingest", "infer"])
def test_a_zip_that_was_only_copied_is_the_same(kind: str, tmp_path: Path, model: str) -> None:
    """Its members' checksums say so, although the file is newer."""
    job = Job(kind, tmp_path, model, "img.zip")
    job.write(1)
    copy = job.photos.read_bytes()
    job.photos.unlink()
    job.photos.write_bytes(copy)
    job.finish()
    job.photos.unlink()
    job.photos.write_bytes(copy)
    assert job.find() is not None


def test_shards_of_an_older_release_are_not_kept(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a stage computes something else, its version says so."""
    job.write(1)
    monkeypatch.setattr(ingest_plan, "INGEST_VERSION", ingest_plan.INGEST_VERSION + 1)
    monkeypatch.setattr(infer_run, "PREDICTIONS_VERSION", infer_run.PREDICTIONS_VERSION + 1)
    with pytest.raises(UserError, match="or another release"):
        job.write()


STRANGE = {
    "a list as marker": (MARKER, "[]", r"_plan.json does not say which job wrote it"),
    "nothing in the marker": (MARKER, "{}", r"_plan.json does not say which job wrote it"),
    "a manifest without options": (
        "_manifest.json",
        '{"shards": [], "content_hash": "0"}',
        "a _manifest.json without options, which glefld",
    ),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_marker_or_a_manifest_of_another_shape_is_refused(job: Job, case: str) -> None:
    name, text, message = STRANGE[case]
    job.output.mkdir()
    (job.output / name).write_text(text)
    with pytest.raises(UserError, match=message):
        job.find() or job.write()
    assert files(job.output) == {name: text.encode()}


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "another's": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"x" * 9),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_finished_output_that_lost_a_shard_is_made_whole(
    job: Job, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    job.finish()
    whole = files(job.output)
    shard = next(path for path in sorted(job.output.rglob("*.parquet")))
    DAMAGE[damage](shard)
    with caplog.at_level(logging.WARNING):
        assert job.find() is None
    assert "missing or damaged" in caplog.text
    job.finish()
    assert files(job.output) == whole
    assert job.find() is not None


def test_the_former_manifests_name_is_read(job: Job) -> None:
    """And an output without a marker, as that release left it."""
    job.finish()
    (job.output / "_manifest.json").rename(job.output / "manifest.json")
    (job.output / MARKER).unlink()
    assert job.find() is not None


#: Photos that kill the process which looks at them, as the functions below do for a decoder's crash.
KILLERS = ("photo-003", "photo-010")


def items(count: int, per_shard: int) -> list[dict[str, Any]]:
    """Shards of two rows a photo."""
    names = [f"photo-{i // 2:03d}" for i in range(2 * count)]
    return [
        {"rows": to_bytes(pa.table({"name": names[i : i + per_shard]}))}
        for i in range(0, len(names), per_shard)
    ]


def run(
    shards: list[dict[str, Any]], folder: Path, *, dies: str, killers: tuple[str, ...] = KILLERS
) -> list[int]:
    """Run tasks that die of a photo (``photo``), always (``always``), or unless they are given one alone (``alone``).

    The functions are pickled by value, so the workers need to import nothing of ours.
    """
    log = str(folder / "left-out")

    def look(rows: bytes, skip: list[str], writing: bool) -> int:
        import os
        import signal

        import pyarrow

        names = pyarrow.ipc.open_stream(rows).read_all()["name"].to_pylist()
        poisoned = bool(set(killers) & set(names) - set(skip))
        if dies == "always" or (dies == "photo" and poisoned) or (dies == "alone" and writing):
            os.kill(os.getpid(), signal.SIGKILL)
        return len(names)

    def work(item: dict[str, Any]) -> Done:
        count = look(item["rows"], item["killers"], True)
        with open(log, "a") as file:
            file.writelines(f"{name}\n" for name in item["killers"])
        return Done(count, {"ok": count})

    def write(item: dict[str, Any]) -> dict[str, Any]:
        return counted(item, lambda: work(item))

    def probe(rows: bytes) -> None:
        look(rows, [], False)

    tasks = run_tasks(
        "ingest",
        shards,
        write,
        probe=ray.remote(max_retries=0)(probe).remote,
        unit="name",
        retries="max_retries",
    )
    return list(tasks)


@pytest.mark.usefixtures("ray_cluster")
def test_photos_that_kill_their_worker_are_found_and_left_out(tmp_path: Path) -> None:
    """Each shard is written once, those of the killers too, and of no other photo anything is left out."""
    counts = run(items(12, 8), tmp_path, dies="photo")
    assert counts == [8, 8, 8]
    assert sorted((tmp_path / "left-out").read_text().split()) == sorted(KILLERS)


@pytest.mark.usefixtures("ray_cluster")
def test_many_shards_with_a_killer_are_all_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were they too many for one run, the next one would come no further."""
    monkeypatch.setattr(resumable, "MAX_LOST", 1)
    killers = tuple(f"photo-{i:03d}" for i in range(3))
    assert run(items(3, 2), tmp_path, dies="photo", killers=killers) == [2] * 3
    assert sorted((tmp_path / "left-out").read_text().split()) == sorted(killers)


@pytest.mark.usefixtures("ray_cluster")
def test_a_photo_that_takes_its_host_down_is_found() -> None:
    """Not tried for ever. One host that dies is another matter."""

    def probe(rows: bytes) -> None:
        import pyarrow
        from ray.exceptions import NodeDiedError

        if "photo-002" in pyarrow.ipc.open_stream(rows).read_all()["name"].to_pylist():
            raise NodeDiedError("the host of photo-002")

    rows = pa.table({"name": [f"photo-{i:03d}" for i in range(4)]})
    assert find_killers(rows, "name", ray.remote(max_retries=0)(probe).remote) == ["photo-002"]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("dies", "shards", "words"),
    [
        ("always", 2, "workers die before they look at a photo"),
        ("always", 4, "workers die before they look at a photo"),
        ("alone", 1, "although one by one their photos can be processed"),
    ],
)
def test_workers_that_die_of_something_else_end_the_job(
    dies: str, shards: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No photo is blamed for it, whether fewer shards are lost than end a round or more."""
    monkeypatch.setattr(resumable, "MAX_LOST", 2)
    monkeypatch.setattr(resumable, "RETRIES", 1)
    with pytest.raises(UserError, match=words):
        run(items(2 * shards, 4), tmp_path, dies=dies)
    assert not (tmp_path / "left-out").exists()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    "error", [UserError("give another"), FileNotFoundError("gone.zip"), KeyError("a bug")]
)
def test_what_a_task_raises_is_raised_here(error: Exception) -> None:
    """A user's error and the storage's as what they are, any other with its traceback; none is taken for a death."""
    expected = {UserError: UserError, FileNotFoundError: OSError, KeyError: RuntimeError}[type(error)]

    def fail() -> Done:
        raise error

    tasks = run_tasks(
        "ingest",
        items(1, 2),
        lambda item: counted(item, fail),
        probe=ray.remote(lambda rows: None).remote,
        unit="name",
        retries="max_retries",
    )
    with pytest.raises(expected, match=str(error.args[0])):
        list(tasks)
