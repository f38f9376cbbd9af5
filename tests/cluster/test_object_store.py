"""Every job with s3:// URLs against a real S3 server, behind a proxy that fails on purpose."""

import dataclasses
import gzip
import os
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from mlflow import MlflowClient

from glefld import listing, storage
from glefld.errors import UserError
from glefld.models import checkpoint
from jobs import evaluate, infer, ingest, train
from pipelines import lease
from pipelines.archives import open_archive, read_index
from pipelines.infer.inputs import open_input
from pipelines.members import read_members
from tests import dots
from tests.cluster.conftest import READ_SECONDS
from tests.cluster.fault_proxy import NOISY, Fault, Plan
from tests.cluster.forks import Forks, job
from tests.cluster.object_store import ObjectStore, upload
from tests.cluster.servers import free_port, wait_until
from tests.raw_layouts import photos, rows, write_fld

TINY = (
    "--input-size 32 --epochs 2 --batch-size 8 --model.backbone test_resnet --model.width 8 --random-weights "
    "--precision fp32 --cpus-per-worker 1"
)


STEPS = 4  # of an epoch: 28 of 40 rows train


def weights(url: str) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(storage.read_bytes(storage.join(url, "model.safetensors")))


@pytest.fixture
def mlflow_file(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A SQLite tracking store: a root on object storage has to be given one."""
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def test_a_zip_is_read_by_ranges(store: ObjectStore, tmp_path: Path) -> None:
    """Every third member of a zip costs at most 1.2 times their bytes, the directory and its search included."""
    rng = np.random.default_rng(0)
    files = {f"img/{i:05d}.jpg": rng.bytes(int(rng.integers(20_000, 200_000))) for i in range(150)}
    with zipfile.ZipFile(tmp_path / "img.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    url = storage.join(store.bucket(), "img.zip")
    storage.put(tmp_path / "img.zip", url)
    before = store.proxy.sent.total()
    source = open_archive(url, "")
    index = read_index(source).members
    wanted = index.take(list(range(0, len(index), 3)))
    read = dict(zip(wanted["name"].to_pylist(), read_members(source, wanted), strict=True))
    assert read == {name: files[name] for name in read}
    assert len(read) == 50
    members = sum(len(data) for data in read.values())
    assert members < store.proxy.sent.total() - before <= 1.2 * members


@pytest.mark.parametrize("kind", NOISY)
def test_each_operation_survives_each_fault(store: ObjectStore, kind: Fault) -> None:
    """The first requests each fail twice before they are answered, and nothing is lost, by fsspec or by pyarrow."""
    root = store.bucket()
    data = np.random.default_rng(0).bytes(300_000)
    table = pa.table({"x": range(1000)})
    plan = Plan([kind], times=4 if kind == "stall" else 12, stall_seconds=2 * READ_SECONDS)
    with store.proxy.failing(plan):
        storage.require_access(root)
        storage.write_bytes(storage.join(root, "a/data"), data)
        assert storage.read_bytes(storage.join(root, "a/data")) == data
        assert storage.exists(storage.join(root, "a/data"))
        assert not storage.exists(storage.join(root, "a/other"))
        assert [entry.name for entry in storage.entries(root)] == ["a"]
        arrow = storage.arrow_filesystem(root)
        path = f"{root.removeprefix('s3://')}/b/table.parquet"
        pq.write_table(table, path, filesystem=arrow)
        assert pq.read_table(path, filesystem=arrow) == table
        storage.remove_tree(storage.join(root, "a"))
    assert list(store.names(root)) == ["b/table.parquet"]
    assert plan.counts.total() == plan.times
    assert plan.counts[kind]


def test_a_bucket_is_listed_in_parts_and_by_its_inventory(store: ObjectStore) -> None:
    """More keys than a page has, below prefixes around the slash, each once and in order, though requests fail; and the
    photos that an inventory in the bucket names are read by their keys."""
    root = store.bucket()
    bucket = root.removeprefix("s3://")
    client = store.keys.client(store.direct)
    folders = ("", "a/", "a-b/", "a/b c+/", "é/", "z/1/2/3/")
    names = sorted((f"{folders[i % 6]}{i:04d}.jpg" for i in range(1250)), key=str.encode)
    for name in names:
        client.put_object(Bucket=bucket, Key=f"photos/{name}", Body=name.encode())
    client.put_object(Bucket=bucket, Key="photos/a/", Body=b"")
    client.put_object(Bucket=bucket, Key="photos-2/a.jpg", Body=b"")
    plan = Plan(["500", "503"], times=6)
    with store.proxy.failing(plan):
        found = pa.concat_tables(listing.files(f"{root}/photos"))
    assert plan.counts.total() == plan.times
    assert found["name"].to_pylist() == names
    assert found["size"].to_pylist() == [len(name.encode()) for name in names]
    states = {tuple(state) for state in storage.find(f"{root}/photos").values()}
    markers = {state for state in states if state[0] == 0}  # of folders
    assert set(zip(found["size"].to_pylist(), found["version"].to_pylist(), strict=True)) == states - markers

    lines = "".join(f'"{bucket}","photos/{quote_plus(name, safe="/")}"\n' for name in names)
    storage.write_bytes(f"{root}/lists/photos/daily/data/0.csv.gz", gzip.compress(lines.encode()))
    manifest = {
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key",
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "files": [{"key": "lists/photos/daily/data/0.csv.gz"}],
    }
    storage.write_json(f"{root}/lists/photos/daily/2026-11-28T01-00Z/manifest.json", manifest)
    listed = open_input(f"{root}/lists/photos/daily/2026-11-28T01-00Z/manifest.json", None, None, "")
    planned = pa.concat_tables(listed.rows)
    assert planned["uri"].to_pylist() == [f"{root}/photos/{name}" for name in names]
    some = listed.photos.read(planned.slice(0, 50))
    assert [photo.data for photo in some] == [name.encode() for name in names[:50]]


def test_of_many_that_create_an_object_at_once_one_succeeds(store: ObjectStore) -> None:
    """Also where answers are lost: a write that is repeated finds its own object there."""
    bucket = store.bucket()

    def create(number: int) -> int | None:
        try:
            storage.create(storage.join(bucket, "claim"), b"%d" % number)
        except FileExistsError:
            return None
        return number

    with (
        store.proxy.failing(Plan(NOISY, rate=0.3, stall_seconds=2 * READ_SECONDS)),
        ThreadPoolExecutor(8) as pool,
    ):
        succeeded = [number for number in pool.map(create, range(8)) if number is not None]
    assert succeeded == [int(store.read(f"{bucket}/claim"))]


def test_a_run_in_a_bucket_is_one_process_s_at_a_time(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused while it is held, free when it ends, and without a trace if nothing came of it."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    run = storage.join(store.bucket(), "runs/run")
    with lease.hold(run) as mine:
        with pytest.raises(UserError, match=f"is being trained by process {os.getpid()}"), lease.hold(run):
            pass
        before = store.read(f"{run}/lease/00000001.json")
        wait_until(lambda: store.read(f"{run}/lease/00000001.json") != before, "a sign of life")
        mine.require()
    assert not store.names(run)
    for number in (1, 2):
        with lease.hold(run) as mine:
            storage.write_json(storage.join(run, "run.json"), {})
            assert mine.number == number
    assert [name.rpartition("/")[2] for name in store.names(run)] == ["00000002.json", "run.json"]


def test_a_large_object_survives_resets(store: ObjectStore) -> None:
    """Written in parts and read again, larger than what s3fs takes in one piece."""
    url = storage.join(store.bucket(), "large")
    data = np.random.default_rng(0).bytes(110 << 20)
    plan = Plan(["reset", "500", "cut", "503"])
    with store.proxy.failing(plan):
        storage.write_bytes(url, data)
        assert storage.read_bytes(url) == data
    assert set(plan.counts) == set(plan.kinds)


def run_all(source: str, root: str) -> dict[str, Any]:
    """Ingest, train, evaluate and infer below a root; what must be equal wherever that is."""
    ingest.run(ingest.Options("fld", source, root=root))
    train.run(train.parse(f"--dataset fld --root {root} --name run {TINY}".split()))
    run = storage.join(root, "runs/run")
    best = checkpoint.resolve(run)
    scores = storage.join(root, "scores.json")
    evaluate.run(evaluate.Options("fld", run, "test", root=root, output=scores))
    options = infer.Options(
        run, storage.join(source, "img.zip"), root=root, overlays=2, threads=1, shard_rows=16
    )
    infer.run(options)
    manifest = storage.read_json(storage.join(root, "predictions/img/_manifest.json"))
    report = storage.read_json(scores)
    return {
        "data": storage.read_json(storage.join(root, "data/fld/_manifest.json"))["content_hash"],
        "weights": weights(best),
        "ne": report["ne"],
        "predictions": (manifest["rows"], manifest["ok"], len(manifest["shards"])),
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_path_on_failing_storage(
    store: ObjectStore, mlflow_file: str, ray_cluster: None, tmp_path: Path
) -> None:
    """Ingest, train, evaluate and infer on storage where every tenth request fails give what a local disk gives.

    Besides, the store loses the second epoch's weights without a word: the workers are started again and lose nothing.
    """
    write_fld(tmp_path / "raw", rows(40), photos(rows(40)))
    local = run_all(str(tmp_path / "raw"), str(tmp_path / "root"))
    bucket = store.bucket()
    source = upload(tmp_path / "raw", storage.join(bucket, "raw"))
    noise = Plan(NOISY, rate=0.1, stall_seconds=2 * READ_SECONDS)
    second = f"checkpoints/{2 * STEPS:08d}"
    loss = Plan(["drop"], matching=rf"^PUT .*/{second}/model.safetensors$", times=1)
    root = storage.join(bucket, "root")
    with store.proxy.failing(loss, noise):
        remote = run_all(source, root)
    print(noise.counts)
    assert set(noise.counts) == set(NOISY)
    assert loss.counts == {"drop": 1}
    same = [np.array_equal(local["weights"][name], remote["weights"][name]) for name in local["weights"]]
    assert all(same)
    for part in ("data", "ne", "predictions"):
        assert remote[part] == local[part]
    run = storage.join(root, "runs/run")
    assert checkpoint.pointed(run, "last") == second
    _, card = checkpoint.load(storage.join(run, second))
    assert (card.epoch, card.step) == (2, 2 * STEPS)
    client = MlflowClient(mlflow_file)
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-fld"]
    found = client.search_runs([experiment.experiment_id], "attributes.run_name = 'run'")
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
    written = store.names(f"{bucket}/root")
    assert "root/predictions/img/_overlays/contact-sheet.jpg" in written
    assert not any("_staging" in name or "_part-" in name for name in written)


@pytest.mark.parametrize("kind", ["drop", "truncate"])
@pytest.mark.parametrize("file", ["model.safetensors", "training.pt", "complete.json", "last.json"])
def test_a_write_that_failed_silently_is_noticed(store: ObjectStore, kind: Fault, file: str) -> None:
    """A store that says 200 and keeps nothing, or half: large files fail the checkpoint, small ones are written again.

    The old checkpoint stays until the new one is whole and pointed to.
    """
    run = storage.join(store.bucket(), "runs/run")
    model = dots.network()
    card = checkpoint.load(dots.write_checkpoint(storage.join(run, "elsewhere")))[1]
    first, second = (dataclasses.replace(card, step=step) for step in (1, 2))
    checkpoint.keep(run, model, first, {"step": 1}, best=True)
    small = file.endswith(".json")
    # Of large files every attempt is lost: a busy machine's client may ask twice before it hears the first answer.
    plan = Plan([kind], matching=rf"^PUT .*/{file}$", times=1 if small else None)
    with store.proxy.failing(plan):
        if small:
            checkpoint.keep(run, model, second, {"step": 2}, best=True)
        else:
            with pytest.raises(OSError, match=f"{file} was written but reads back differently"):
                checkpoint.keep(run, model, second, {"step": 2}, best=False)
    if not small:
        # What a restarted worker does: it goes on from the old one and writes the new one again.
        assert checkpoint.pointed(run, "last") == "checkpoints/00000001"
        assert checkpoint.load_training(storage.join(run, "checkpoints/00000001")) == {"step": 1}
        checkpoint.keep(run, model, second, {"step": 2}, best=True)
    assert plan.counts[kind] >= 1
    assert checkpoint.pointed(run, "last") == "checkpoints/00000002"
    assert checkpoint.load_training(storage.join(run, "checkpoints/00000002")) == {"step": 2}
    assert not store.names(storage.join(run, "checkpoints/00000001"))


MISTAKES = {
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses access to the bucket"),
    "unknown key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "refuses access to the bucket"),
    "no bucket": ({}, "there is no bucket no-such-bucket"),
    "no network": ({"AWS_ENDPOINT_URL": ""}, "cannot be reached"),
    "no credentials": (
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"},
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_store_that_cannot_be_used_is_one_line(
    store: ObjectStore, forks: Forks, case: str, tmp_path: Path
) -> None:
    """Exit status 1, one line that says what to do, no traceback and no key in it, in a bounded time."""
    changes, message = MISTAKES[case]
    bucket = "s3://no-such-bucket" if case == "no bucket" else store.bucket()
    if case == "no network":
        changes = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    begun = time.monotonic()
    run = job if case == "wrong secret" else forks.job  # one as a user starts it, imports and all
    ended = run("ingest", "--dataset=fld", f"--source={tmp_path}", f"--root={bucket}/root", **changes)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert ended.stderr.startswith("error: ")
    assert message in ended.stderr
    assert store.keys.secret not in ended.stderr
    assert time.monotonic() - begun < 120


@pytest.mark.parametrize("name", ["train", "evaluate", "infer"])
def test_the_other_jobs_say_it_too(forks: Forks, name: str) -> None:
    arguments = {
        "train": ["--dataset=fld"],
        "evaluate": ["--dataset=fld", "--split=val", "--checkpoint=s3://no-such-bucket/run"],
        "infer": ["--checkpoint=s3://no-such-bucket/run", "--input=s3://no-such-bucket/photos"],
    }[name]
    ended = forks.job(name, *arguments, GLEFLD_ROOT="s3://no-such-bucket/root")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert "there is no bucket no-such-bucket" in ended.stderr
