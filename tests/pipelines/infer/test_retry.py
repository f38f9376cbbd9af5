"""Errors predicted again: in place, exactly once, whatever the input has become, and however often it is killed."""

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from glefld import storage
from glefld.data.dataset import MANIFEST
from glefld.errors import UserError
from glefld.models import checkpoint
from pipelines.infer import retry as retry_module
from pipelines.infer.retry import begin, plan_retry, retry
from pipelines.infer.run import RETRY, InferOptions, ShardWriter, find_finished, output_at, writer_settings
from tests import dots
from tests.pipelines.outputs import INFER, WORKERS, files, items

WIDTH, HEIGHT = 90, 120
#: Of twelve photos in four shards, those that are no pictures at first; the second shard has none.
BAD = ("00.jpg", "02.jpg", "07.jpg", "11.jpg")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dots.write_checkpoint(str(tmp_path_factory.mktemp("retry") / "checkpoint"))


def photo(number: int) -> bytes:
    rng = np.random.default_rng(number)
    return dots.encoded(dots.photo(dots.random_points(rng, (0, 0, WIDTH, HEIGHT)), WIDTH, HEIGHT), "JPEG")


def write_photos(folder: Path, bad: tuple[str, ...] = BAD) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(12):
        name = f"{i:02d}.jpg"
        (folder / name).write_bytes(b"no picture" if name in bad else photo(i))
    return folder


@dataclasses.dataclass
class Case:
    """An inference over photos of which some are bad, and its output."""

    options: InferOptions
    output: Path

    @property
    def photos(self) -> Path:
        return Path(self.options.input)

    def replace(self, *names: str) -> None:
        for name in names:
            (self.photos / name).write_bytes(photo(int(name[:2])))

    def retry_here(self, count: int | None = None) -> dict[str, Any] | None:
        """The retry's shards in this process, all or the first so many, by the writer that the workers run."""
        output = str(self.output)
        plan = plan_retry(self.options, output)
        begin(plan, output)
        settings = writer_settings(plan.plan, output_at(output), WORKERS)
        writer = ShardWriter(dataclasses.replace(settings, key=plan.key))
        for item in items(plan.tasks, plan.rows, output)[:count]:
            answer = writer(item)
            assert not answer["error"]
            # Rows that stay as they are are not counted again.
            assert sum(json.loads(answer["outcomes"]).values()) == answer["count"]
        if count is not None:
            return None
        return retry(plan_retry(self.options, output), output, WORKERS, lambda *_: None)

    def rows(self) -> dict[str, dict[str, Any]]:
        table = pq.read_table(self.output).to_pylist()
        found = {Path(row["uri"]).name: row for row in table}
        assert len(found) == len(table)
        return found

    def manifest(self) -> dict[str, Any]:
        """The manifest, whose counts are those of the rows."""
        manifest = storage.read_json(str(self.output / MANIFEST))
        rows = list(self.rows().values())
        assert (manifest["rows"], manifest["photos"]) == (len(rows), len(rows))
        assert manifest["ok"] == sum(row["status"] == "ok" for row in rows)
        assert sum(manifest["errors"].values()) == sum(row["status"] == "error" for row in rows)
        for shard in manifest["shards"]:
            assert (self.output / shard["path"]).stat().st_size == shard["bytes"]
        assert {path.name for path in self.output.glob("_*")} == {MANIFEST, "_plan.json"}
        return manifest


@pytest.fixture
def case(tmp_path: Path, model: str) -> Case:
    """A finished output with errors in three of its four shards."""
    made = Case(
        InferOptions(model, str(write_photos(tmp_path / "photos")), shard_rows=3), tmp_path / "output"
    )
    INFER.finish(made.options, str(made.output))
    assert made.manifest()["errors"] == {"unreadable_photo": 4}
    return made


def test_replaced_photos_are_predicted_in_place(case: Case) -> None:
    """What was predicted stays bit for bit, what is still bad stays an error, shards without errors are not touched.

    The result is that of an inference over the photos as they are now, and is finished for it.
    """
    before, kept = case.rows(), (case.output / "part-00001.parquet").stat().st_ino
    case.replace("00.jpg", "07.jpg", "11.jpg")
    manifest = case.retry_here()
    assert manifest == case.manifest()
    assert (manifest["ok"], manifest["errors"], manifest["retries"]) == (11, {"unreadable_photo": 1}, 1)
    after = case.rows()
    assert list(after) == list(before)
    for name, row in before.items():
        if row["status"] == "ok":
            assert after[name] == row
    assert [name for name, row in after.items() if row["status"] == "error"] == ["02.jpg"]
    assert (case.output / "part-00001.parquet").stat().st_ino == kept
    assert find_finished(case.options, str(case.output)) == manifest
    fresh = Case(case.options, case.output.with_name("fresh"))
    INFER.finish(fresh.options, str(fresh.output))
    for name, row in fresh.rows().items():
        assert after[name]["status"] == row["status"]
        if row["status"] == "ok":
            np.testing.assert_allclose(after[name]["landmarks"], row["landmarks"], atol=1e-3)


def test_errors_are_retried_again_and_again(case: Case) -> None:
    """Each call is another retry of what is left, until nothing is."""
    for number, name in enumerate((None, *BAD), 1):
        if name:
            case.replace(name)
        manifest = case.retry_here()
        assert manifest is not None
        assert (manifest["retries"], manifest["ok"]) == (number, 8 + number - 1)
    with pytest.raises(UserError, match="has no errors to retry: omit --retry-errors"):
        case.retry_here()
    assert case.manifest()["errors"] == {}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_killed_retry_is_continued(count: int, case: Case, tmp_path: Path) -> None:
    """Whatever it has written: the next call writes the rest, with the bytes of a retry that was not killed.

    An inference without the option does not take the output for finished, nor does it undo anything.
    """
    whole = Case(case.options, tmp_path / "whole")
    INFER.finish(whole.options, str(whole.output))
    case.replace("00.jpg", "11.jpg")
    whole.retry_here()
    case.retry_here(count)
    assert not (case.output / MANIFEST).exists()
    done = {path.name: path.stat().st_ino for path in case.output.glob("part-*")}
    with pytest.raises(UserError, match="run the same command with --retry-errors to finish it"):
        find_finished(case.options, str(case.output))
    assert len(plan_retry(case.options, str(case.output)).tasks) == 3 - count
    case.retry_here()
    written = [path.name for path in case.output.glob("part-*") if path.stat().st_ino != done[path.name]]
    assert len(written) == 3 - count
    assert files(case.output) == files(whole.output)


def test_a_retry_killed_around_its_manifest_is_continued(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the old one is removed, and after the new one is written."""
    case.replace("00.jpg")
    plan = plan_retry(case.options, str(case.output))
    storage.write_json(str(case.output / RETRY), {"number": 1, "manifest": plan.manifest})
    with monkeypatch.context() as patch:
        patch.setattr(retry_module.storage, "remove_file", lambda url: None)
        case.retry_here()
    assert (case.output / MANIFEST).exists()
    assert (case.output / RETRY).exists()
    case.retry_here()
    assert (case.manifest()["ok"], case.manifest()["retries"]) == (9, 1)


def test_a_retry_s_task_may_be_repeated(case: Case) -> None:
    """As when its worker died after it had put the shard in place: nothing is predicted or counted a second time."""
    case.replace("00.jpg")
    output = str(case.output)
    plan = plan_retry(case.options, output)
    begin(plan, output)
    writer = ShardWriter(
        dataclasses.replace(writer_settings(plan.plan, output_at(output), WORKERS), key=plan.key)
    )
    for item in items(plan.tasks, plan.rows, output):
        first, written = writer(item), (case.output / item["path"]).read_bytes()
        again = writer(item)
        assert (again["count"], again["outcomes"], again["error"]) == (first["count"], "{}", "")
        assert (case.output / item["path"]).read_bytes() == written
    case.retry_here()
    assert case.manifest()["ok"] == 9


@pytest.mark.parametrize("lost", ["part-00000.parquet", "part-00001.parquet"])  # with an error, and without
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PAR1")])
def test_a_shard_that_is_lost_during_a_retry_is_written_again(
    damage: Callable[[Path], Any], lost: str, case: Case
) -> None:
    """The retry asks for an inference, which writes the shard, and then continues."""
    case.retry_here(1)
    damage(case.output / lost)
    with pytest.raises(UserError, match="run without --retry-errors first"):
        case.retry_here()
    assert find_finished(case.options, str(case.output)) is None
    INFER.finish(case.options, str(case.output))
    with pytest.raises(UserError, match="run the same command with --retry-errors to finish it"):
        find_finished(case.options, str(case.output))
    manifest = case.retry_here()
    assert manifest == case.manifest()
    assert (manifest["errors"], manifest["retries"]) == ({"unreadable_photo": 4}, 1)


def test_a_half_finished_output_keeps_what_is_missing(case: Case) -> None:
    """Errors in the shards that are there are retried; the rest is left to the next inference."""
    output = Case(case.options, case.output.with_name("half"))
    INFER.write(output.options, str(output.output), 1)
    assert len(plan_retry(output.options, str(output.output)).tasks) == 1
    assert output.retry_here() is None
    assert [path.name for path in output.output.iterdir() if path.name[0] == "p"] == ["part-00000.parquet"]
    INFER.finish(output.options, str(output.output))
    assert output.manifest()["errors"] == {"unreadable_photo": 4}
    assert output.manifest()["retries"] == 1


def test_a_photo_that_came_and_one_that_went(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """A bad photo that is gone is an error of another kind; one that is new is not predicted, and is told."""
    (case.photos / "00.jpg").unlink()
    case.replace("02.jpg")
    (case.photos / "0.jpg").write_bytes(photo(0))
    case.retry_here()
    manifest = case.manifest()
    assert manifest["errors"] == {"missing_photo": 1, "unreadable_photo": 2}
    assert "1 garments of the input are new" in caplog.text
    with pytest.raises(UserError, match="what it was made from has changed since"):
        find_finished(case.options, str(case.output))


def test_a_photo_that_boxes_waited_for(model: str, tmp_path: Path) -> None:
    """It was missing and lies among the others now; its row stays where it was, with its box."""
    photos = write_photos(tmp_path / "photos")
    (tmp_path / "boxes.csv").write_text(
        "uri,x1,y1,x2,y2\n00a.jpg,1,2,80,100\n" + "".join(f"{i:02d}.jpg,0,0,90,120\n" for i in range(12))
    )
    options = InferOptions(model, str(photos), boxes=str(tmp_path / "boxes.csv"), shard_rows=3)
    case = Case(options, tmp_path / "output")
    INFER.finish(case.options, str(case.output))
    before = case.rows()
    assert list(before)[-1] == "00a.jpg"
    assert case.manifest()["errors"] == {"missing_photo": 1, "unreadable_photo": 4}
    (photos / "00a.jpg").write_bytes(photo(1))
    manifest = case.retry_here()
    assert case.manifest()["errors"] == {"unreadable_photo": 4}
    assert list(case.rows()) == list(before)
    assert case.rows()["00a.jpg"]["box"] == before["00a.jpg"]["box"] == [1, 2, 80, 100]
    assert find_finished(case.options, str(case.output)) == manifest


def test_an_archive_that_was_packed_anew(model: str, tmp_path: Path) -> None:
    """Members of a zip have checksums: others may lie elsewhere now, as long as they are the same photos."""

    def pack(names: list[str]) -> None:
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for name in names:
                archive.write(tmp_path / "photos" / name, name)

    write_photos(tmp_path / "photos")
    names = [f"{i:02d}.jpg" for i in range(12)]
    pack(names)
    case = Case(InferOptions(model, str(tmp_path / "photos.zip"), shard_rows=3), tmp_path / "output")
    INFER.finish(case.options, str(case.output))
    write_photos(tmp_path / "photos", bad=("02.jpg",))
    pack(names[::-1])
    manifest = case.retry_here()
    assert manifest is not None
    assert manifest["errors"] == {"unreadable_photo": 1}
    (tmp_path / "photos" / "03.jpg").write_bytes(photo(99))
    pack(names)
    with pytest.raises(UserError, match=r"predicted without an error \(part-00001.parquet\) have changed"):
        case.retry_here()


def changed(case: Case) -> None:
    (case.photos / "04.jpg").write_bytes(photo(99))


def another_model(case: Case) -> None:
    checkpoint.save(
        case.options.checkpoint,
        dots.overflowing(),
        dots.card(dots.MODEL, dots.CONFIG, dots.LABELS, dots.SIZE),
    )


def damaged(case: Case) -> None:
    (case.output / "part-00002.parquet").write_bytes(b"PAR1 and no more")


def of_another_release(case: Case) -> None:
    manifest = storage.read_json(str(case.output / MANIFEST))
    storage.write_json(str(case.output / MANIFEST), {**manifest, "packages": {"pillow": "1.0"}})


def half_finished(case: Case) -> None:
    (case.output / MANIFEST).unlink()
    case.replace("00.jpg")


def without(case: Case) -> None:
    for path in case.output.iterdir():
        path.unlink()


MISTAKES: dict[str, tuple[Callable[[Case], Any], dict[str, Any], str]] = {
    "a photo that was predicted has changed": (changed, {}, "have changed or are gone since .* was made"),
    "another option": (
        lambda case: None,
        {"shard_rows": 4},
        r"was made with shard_rows 3 \(now 4\): --retry-errors",
    ),
    "other weights": (
        another_model,
        {},
        r"was made with checkpoint '.*@\w+' \(now '.*@\w+'\): --retry-errors",
    ),
    "a damaged shard": (
        damaged,
        {},
        "1 of the 4 shards .* are missing or damaged: run without --retry-errors first",
    ),
    "another release": (
        of_another_release,
        {},
        r"was made with pillow 1.0 \(now .*\): --retry-errors needs the same",
    ),
    "not finished, and the input has changed": (half_finished, {}, "which another infer run wrote"),
    "no predictions": (without, {}, "holds no predictions: omit --retry-errors"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(mistake: str, case: Case, tmp_path: Path) -> None:
    make, options, words = MISTAKES[mistake]
    copy = dots.write_checkpoint(str(tmp_path / "own"))  # the module's is everybody's
    case.options = dataclasses.replace(case.options, checkpoint=copy)
    case.output = tmp_path / "mine"
    INFER.finish(case.options, str(case.output))
    make(case)
    before = files(case.output)
    with pytest.raises(UserError, match=words) as error:
        plan_retry(dataclasses.replace(case.options, **options), str(case.output))
    assert "\n" not in str(error.value)
    assert files(case.output) == before


@pytest.mark.usefixtures("ray_cluster")
def test_any_number_of_workers_writes_the_same_bytes(case: Case, tmp_path: Path) -> None:
    """On Ray, with one worker and with two, and as in this process."""
    outputs = [case, *(Case(case.options, tmp_path / name) for name in ("one", "two"))]
    for other in outputs[1:]:
        INFER.finish(other.options, str(other.output))
    case.replace("00.jpg", "07.jpg")
    case.retry_here()
    seen: list[tuple[int, int]] = []
    for number, other in enumerate(outputs[1:], 1):
        plan = plan_retry(other.options, str(other.output))
        workers = dataclasses.replace(WORKERS, least=number, most=number)
        retry(plan, str(other.output), workers, lambda done, total: seen.append((done, total)))
        assert seen[-1] == (4, 4)
        assert files(other.output) == files(case.output)
