"""The whole ingest on a running Ray: every row accounted for, whatever the archive, and finished work kept."""

import dataclasses
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from glefld.data.dataset import open_dataset
from glefld.errors import UserError
from glefld.schema import NO_LANDMARKS, Labels, Manifest
from glefld.synthetic.deepfashion import write_dataset
from pipelines.archives import Archive
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import find_finished, ingest, prepare
from tests.blots import HEIGHT, WIDTH, image_folder
from tests.pipelines.ingest.secretive import SecretiveFileSystem
from tests.raw_layouts import Row, jpeg, photos, rows, write_archive, write_fld

#: By Ray's tasks, and in this process where these are not what is tested.
RAY, HERE = (pytest.mark.usefixtures(name) for name in ("ray_cluster", "ingest_here"))


def run(options: IngestOptions, output: Path) -> Manifest:
    """Ingest, and check what holds of every data set: its counts are those of its files, and they add up."""
    seen: list[tuple[int, int]] = []
    plan = prepare(options, str(output))
    manifest = ingest(plan, str(output), lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (manifest.rows_in, manifest.rows_in)
    assert open_dataset(str(output)) == manifest
    table = pyarrow.dataset.dataset(output, partitioning="hive", exclude_invalid_files=True).to_table()
    assert Counter(table["split"].to_pylist()) == manifest.splits
    rejects = [row for path in output.glob("_rejects/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert Counter(row["reason"] for row in rejects) == manifest.rejects
    assert manifest.rows_in == len(table) + len(rejects)
    for shard in manifest.shards:
        assert (output / shard.path).stat().st_size == shard.bytes
        assert pq.read_metadata(output / shard.path).num_rows == shard.rows
    assert not list(output.rglob("_part-*"))
    assert not (output / "_staging").exists()
    return manifest


def files(root: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def irregular(listed: Sequence[Row]) -> list[Row]:
    """Good rows and, between them, one of each kind that the lists alone decide."""
    twice = dataclasses.replace(listed[2], box=(0, 0, 9, 9))
    absent = Row("img/img_99999999.jpg", split="val")
    return [*listed[:5], twice, absent, *listed[5:]]


@RAY
def test_every_kind_of_archive_gives_the_same_data(tmp_path: Path) -> None:
    """What is stored depends on the photos, not on how they were packed; nor do the rows turned away."""
    listed = rows(20)
    images = photos(listed)
    images["img/img_00000004.jpg"] = b"not a photo"
    found = {}
    for archive in ("img.zip", "Img/img.tar", "img.tar.gz", "img"):
        source = write_fld(tmp_path / archive.replace("/", "-"), irregular(listed), images, archive)
        found[archive] = run(IngestOptions("fld", str(source)), tmp_path / f"output-{archive.split('/')[-1]}")
    assert (
        len({(m.content_hash, m.rows_in, *m.splits.items(), *m.rejects.items()) for m in found.values()}) == 1
    )
    manifest = found["img.zip"]
    assert manifest.rejects == {"duplicate_id": 1, "missing_photo": 1, "unreadable_photo": 1}
    assert manifest.splits == {"train": 13, "val": 4, "test": 2}


@HERE
@pytest.mark.parametrize("margin", [0.25, "full"])
def test_an_image_folder(margin: float | str, tmp_path: Path) -> None:
    """A folder and archives of it, with folders around, are the same data: whole photos, no landmarks, categories."""
    images = image_folder({"train": 4, "val": 2, "test": 1})
    images["val/red/000.png"] = b"not a photo"
    images |= {"train/notes.txt": b"notes", "README": b"birds"}
    found = {}
    for name in ("birds", "birds.zip", "birds.tar.gz", "around"):
        around = "" if name == "birds" else "CUB/images/"
        # Sorted, as a folder's are read: rows stand in the archive's order.
        source = write_archive(tmp_path / name, {around + path: images[path] for path in sorted(images)})
        found[name] = run(
            IngestOptions("image-folder", str(source), margin=margin), tmp_path / f"output-{name}"
        )
    manifest = found["birds"]
    for other in found.values():
        assert other.content_hash == manifest.content_hash
        assert other.rejects == {"unreadable_photo": 1}
        assert other.splits == {"train": 12, "val": 5, "test": 3}
        assert (other.source["files"], other.source["files_not_used"]) == (23, 2)
    assert manifest.labels == Labels(NO_LANDMARKS, ("blue", "green", "red"))
    table = pyarrow.dataset.dataset(
        tmp_path / "output-birds", partitioning="hive", exclude_invalid_files=True
    )
    for row in table.to_table().to_pylist():
        assert row["box"] == row["crop_box"] == [0, 0, WIDTH, HEIGHT]
        assert (row["landmarks"], row["visibility"], row["garment_type"]) == ([], [], None)
        assert f"/{manifest.categories[row['category'] - 1]}/" in row["source_uri"]


@HERE
def test_changed_pixels_change_the_hash(tmp_path: Path) -> None:
    listed = rows(10)
    hashes = set()
    for seed in (1, 2):
        images = photos(listed) | {"img/img_00000001.jpg": jpeg(seed + 100)}
        source = write_fld(tmp_path / f"source{seed}", listed, images)
        hashes.add(run(IngestOptions("fld", str(source)), tmp_path / f"output{seed}").content_hash)
    assert len(hashes) == 2


@HERE
@pytest.mark.parametrize("dedupe", [False, True])
def test_photos_in_several_splits(dedupe: bool, tmp_path: Path) -> None:
    """They are named either way; --dedupe keeps the train copies out and leaves val and test whole."""
    listed = rows(20)  # 1 to 7 are train, 8 and 9 val, 10 test; 11 to 17 train again
    images = photos(listed)
    same = {8: [1, 11], 10: [2], 18: [20], 3: [4]}
    for kept, copies in same.items():
        for copy in copies:
            images[listed[copy - 1].photo] = images[listed[kept - 1].photo]
    source = write_fld(tmp_path / "source", listed, images)
    manifest = run(IngestOptions("fld", str(source), dedupe=dedupe), tmp_path / "output")
    named = {tuple(int(i[-10:-6]) for i in ids) for ids in manifest.photos_in_several_splits}
    assert named == {(1, 8, 11), (2, 10), (18, 20)}
    assert manifest.splits == {"train": 11 if dedupe else 14, "val": 4, "test": 2}
    assert manifest.rejects == ({"duplicate_photo": 3} if dedupe else {})


def many_shards(tmp_path: Path) -> IngestOptions:
    """A source of several shards a split: noise of 10 kB a photo in shards of a mebibyte."""
    listed = rows(300)
    images = photos(listed, width=110, height=140)
    return IngestOptions("fld", str(write_fld(tmp_path / "source", listed, images)), shard_mib=1)


@RAY
def test_finished_shards_are_kept(tmp_path: Path) -> None:
    """Whatever is missing is made again and nothing else; the outcome is the undisturbed one, byte for byte."""
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    options, output = many_shards(tmp_path), tmp_path / "output"
    manifest = run(options, output)
    assert len(manifest.shards) >= 6
    for written in manifest.shards:  # training goes by this and not by the footers
        footer = pq.read_metadata(output / written.path)
        groups = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        assert set(groups[:-1]) <= {written.group_rows}
        assert groups[-1] <= written.group_rows
    undisturbed = files(output)
    # As after a kill: no manifest, some shards, the beginning of another.
    lost = {str(manifest.shards[i].path) for i in rng.choice(len(manifest.shards), 3, replace=False)}
    for path in (*lost, "_manifest.json"):
        (output / path).unlink()
    # Some clients of object stores leave half a file and tell nobody.
    half = output / lost.copy().pop()
    half.write_bytes(
        (output / next(s.path for s in manifest.shards if s.path not in lost)).read_bytes()[:500]
    )
    (output / "split=train" / f"_part-{uuid.uuid4().hex}").write_bytes(b"PAR1")
    stamps = {path: (output / path).stat().st_ino for path in undisturbed if (output / path).exists()}
    run(options, output)
    assert files(output) == undisturbed
    redone = {path for path in undisturbed if stamps.get(path) != (output / path).stat().st_ino}
    assert redone == lost | {"_manifest.json"}


@RAY
def test_a_shard_that_storage_has_lost_is_told(tmp_path: Path) -> None:
    """As where a write fails silently: one line, and the same command writes it again."""
    options, output = many_shards(tmp_path), tmp_path / "output"
    plan = prepare(options, str(output))

    def lose(done: int, total: int) -> None:
        if done == total:
            (output / plan.shards[1].path).unlink(missing_ok=True)

    with pytest.raises(OSError, match=r"1 shards .* are missing or truncated: run the same command again"):
        ingest(plan, str(output), lose)
    assert not (output / "_manifest.json").exists()
    run(options, output)


@HERE
def test_a_finished_data_set_is_left_alone(tmp_path: Path) -> None:
    """The same options find it; others are refused and named; without a manifest its shards are refused too."""
    listed = rows(10)
    options = IngestOptions("fld", str(write_fld(tmp_path / "source", listed, photos(listed))))
    output = tmp_path / "output"
    assert find_finished(options, str(output)) is None
    manifest = run(options, output)
    before = files(output)
    assert find_finished(options, str(output)) == manifest
    other = dataclasses.replace(options, margin="full")
    with pytest.raises(UserError, match=r"margin 0\.25 \(now 'full'\)"):
        find_finished(other, str(output))
    assert files(output) == before
    (output / "_manifest.json").unlink()
    with pytest.raises(UserError, match="which another ingest run wrote"):
        ingest(prepare(other, str(output)), str(output), lambda done, total: None)
    with pytest.raises(UserError, match="not a finished data set"):
        open_dataset(str(output))


@HERE
def test_rejects_of_an_abandoned_plan_do_not_stay(tmp_path: Path) -> None:
    """A run killed between its first rejects and its first shard leaves rejects that the next must not keep."""
    listed = rows(10)
    options = IngestOptions("fld", str(write_fld(tmp_path / "source", listed, photos(listed))))
    prepare(dataclasses.replace(options, margin=1.0), str(tmp_path / "output"))
    (tmp_path / "output" / "_rejects").mkdir()
    (tmp_path / "output" / "_rejects" / "train-00000.parquet").write_bytes(b"of another plan")
    assert run(options, tmp_path / "output").rejects == {}


@RAY
def test_an_archive_that_goes_away_is_the_users_to_mend(tmp_path: Path) -> None:
    """An error inside a task comes back as one line that says what happened, and leaves no manifest."""
    listed = rows(10)
    options = IngestOptions("fld", str(write_fld(tmp_path / "source", listed, photos(listed))))
    output = tmp_path / "output"
    plan = prepare(options, str(output))
    gone = dataclasses.replace(plan, archives=(Archive(str(tmp_path / "gone.zip"), "gone.zip", "zip"),))
    with pytest.raises(OSError, match=r"FileNotFoundError: .*gone\.zip"):
        ingest(gone, str(output), lambda done, total: None)
    assert not (output / "_manifest.json").exists()


def test_the_manifest_names_the_source_without_secrets(tmp_path: Path) -> None:
    """Credentials in a URL stay out of the manifest, and of the rows."""
    listed = rows(10)
    source = write_fld(tmp_path / "source", listed, photos(listed) | {"img/extra.jpg": jpeg(7)})
    fsspec.register_implementation("secretive", SecretiveFileSystem, clobber=True)
    plan = prepare(IngestOptions("fld", f"secretive://user:secret@{source}"), str(tmp_path / "output"))
    assert [archive.name for archive in plan.archives] == [f"secretive://{source}/img.zip"]
    assert plan.source["url"] == f"secretive://{source}"
    assert plan.options.public()["source"] == f"secretive://{source}"
    assert (plan.source["files"], plan.source["files_not_used"]) == (11, 1)


@HERE
@pytest.mark.parametrize("layout", ["fld", "deepfashion", "deepfashion-fine"])
def test_planted_irregularities_meet_their_reasons(layout: str, tmp_path: Path) -> None:
    """Each row that synthesize spoils on purpose is turned away for just that, each odd but good one is kept."""
    write_dataset(str(tmp_path / "source"), layout, 64, irregularities=1)
    manifest = run(IngestOptions(layout, str(tmp_path / "source")), tmp_path / "output")
    planted = json.loads((tmp_path / "source" / "planted.json").read_text())["rows"]
    found = [row for path in tmp_path.glob("output/_rejects/*") for row in pq.read_table(path).to_pylist()]
    reasons = sorted((row["sample_id"], row["reason"]) for row in found)
    assert reasons == sorted(
        (f"{layout}/{row['image_name']}#0", row["kind"]) for row in planted if row["rejected"]
    )
    twins = [row for row in planted if row["kind"] == "two_splits"]
    assert manifest.photos_in_several_splits == tuple(
        tuple(sorted(f"{layout}/{name}#0" for name in (row["image_name"], row["same_as"]))) for row in twins
    )
    assert manifest.source["photos_found_by_other_capitals"] == (layout != "fld")


REAL = {
    ("fld", "fld-layout"): (593, {"train": 398, "val": 97, "test": 98}, {}),
    ("deepfashion-fine", "deepfashion-fine"): (6000, {"train": 4964, "val": 998}, {"no_landmarks": 38}),
}


@RAY
@pytest.mark.parametrize(("dataset", "folder"), REAL)
def test_real_photos(dataset: str, folder: str, shared_data: Path, tmp_path: Path) -> None:
    """The real data sets come in whole: the only rows turned away are the 38 without any landmark."""
    manifest = run(IngestOptions(dataset, str(shared_data / folder)), tmp_path)
    assert (manifest.rows_in, manifest.splits, manifest.rejects) == REAL[dataset, folder]
