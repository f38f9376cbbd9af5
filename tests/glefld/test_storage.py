"""Files by URL: whole or not there, listed alike everywhere."""

import os
import tempfile
import threading
import tomllib
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from packaging.requirements import Requirement

from glefld import storage
from glefld.errors import UserError
from tests.mistakes import answering


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on the local disk, and one on a filesystem that is none."""
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_what_is_written_is_listed_and_read_back(root: str) -> None:
    storage.write_bytes(storage.join(root, "a", "b.txt"), b"one")
    storage.write_json(storage.join(root, "c.json"), {"x": 1})
    with tempfile.TemporaryFile() as file:
        file.write(b"unnamed")
        storage.put_file(file, storage.join(root, "a", "d.bin"))
    found = storage.find(root)
    assert {name: state.size for name, state in found.items()} == {"a/b.txt": 3, "a/d.bin": 7, "c.json": 13}
    assert {name: storage.state(storage.join(root, name)) for name in found} == found
    assert [(e.name, e.is_folder) for e in storage.entries(root)] == [("a", True), ("c.json", False)]
    assert storage.read_json(storage.join(root, "c.json")) == {"x": 1}
    with storage.open(storage.join(root, "a", "d.bin")) as file:
        assert file.read() == b"unnamed"
    urls = [storage.join(root, "a", name) for name in ("b.txt", "d.bin")]
    assert storage.read_ranges(urls, [0, 2], [2, 4]) == [b"on", b"na"]
    storage.remove_tree(storage.join(root, "a"))
    assert list(storage.find(root)) == ["c.json"]


def test_a_name_with_colons_is_read_as_itself(root: str) -> None:
    """And not as the file, or the filesystem, before them. A chain of filesystems is one still."""
    named = {"a": b"0", "a::b.jpg": b"1", "x::memory::": b"2"}
    for name, data in named.items():
        storage.write_bytes(storage.join(root, name), data)
    assert {name: storage.read_bytes(storage.join(root, name)) for name in named} == named
    urls = [storage.join(root, name) for name in ("a", "a::b.jpg")]
    assert storage.read_ranges(urls, [0, 0], [9, 9]) == [b"0", b"1"]
    assert storage.is_local(urls[1]) == storage.is_local(urls[0])
    there = urls[0] if "://" in urls[0] else f"file://{urls[0]}"
    assert storage.read_bytes(f"simplecache::{there}") == b"0"


def test_colons_in_a_key_leave_the_options_of_object_storage() -> None:
    (fs, path), (other, _) = storage.filesystem("s3://bucket/a::b"), storage.filesystem("s3://bucket/a")
    assert path == "bucket/a::b"
    assert fs is other


def test_a_folder_that_is_not_there_is_empty(root: str) -> None:
    absent = storage.join(root, "absent")
    assert storage.entries(absent) == []
    assert storage.find(absent) == {}
    assert not storage.is_folder(absent)
    assert not storage.exists(absent)
    storage.remove_tree(absent)


def test_a_range_that_cannot_be_read_is_returned_as_its_error(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"0123")
    found = storage.read_ranges([str(tmp_path / "there"), str(tmp_path / "gone")], [1, 0], [3, 4])
    assert found[0] == b"12"
    assert isinstance(found[1], FileNotFoundError)


#: What an HTTP server answers, and what comes of it.
ANSWERS = {
    401: PermissionError,
    403: PermissionError,
    404: FileNotFoundError,
    410: FileNotFoundError,
    416: None,
    429: OSError,
    500: OSError,
    503: OSError,
}


@pytest.mark.parametrize("status", ANSWERS)
def test_a_range_that_a_server_refuses_is_an_error_of_ours(status: int) -> None:
    """Which names no secret; a range behind the end is empty."""
    with answering(status) as address:
        (found,) = storage.read_ranges([f"{address}/a.jpg?key=secret"], [0], [10])
    kind = ANSWERS[status]
    assert found == b"" if kind is None else type(found) is kind
    assert "secret" not in str(found)


def test_an_http_server_that_is_not_there_is_an_oserror() -> None:
    (found,) = storage.read_ranges(["http://127.0.0.1:1/a.jpg"], [0], [10])
    assert isinstance(found, OSError)


@pytest.mark.parametrize(("code", "empty"), [("InvalidRange", True), ("InvalidArgument", False)])
def test_a_range_behind_the_end_on_s3_is_empty(
    code: str, empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a local file; s3fs raises the same OSError for much else."""
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with answering(416 if empty else 400, body) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
        (found,) = storage.read_ranges(["s3://bucket/empty.jpg"], [0], [10])
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert found == b"" if empty else isinstance(found, OSError)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "file")
    storage.write_bytes(url, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes(url, b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_only_the_beginnings_of_killed_writes_are_removed(tmp_path: Path) -> None:
    """What only looks like one, and what is in a folder below, stays."""
    (tmp_path / "below").mkdir()
    ours = f"_part-{uuid.uuid4().hex}"
    others = [f"below/{ours}", "_part-0123", "_partial", "part-00000.parquet", f"{ours}.txt"]
    for name in (ours, *others):
        (tmp_path / name).write_bytes(b"x")
    storage.remove_unfinished(str(tmp_path))
    assert sorted(storage.find(str(tmp_path))) == sorted(others)


def test_a_changed_file_has_another_state(tmp_path: Path) -> None:
    """Also where its size is the same."""
    url = str(tmp_path / "file")
    storage.write_bytes(url, b"old")
    before = storage.state(url)
    storage.write_bytes(url, b"new")
    assert storage.state(url).size == before.size
    assert storage.state(url) != before


def test_a_file_is_created_once(root: str) -> None:
    url = storage.join(root, "claims", "1")
    storage.create(url, b"first")
    with pytest.raises(FileExistsError):
        storage.create(url, b"second")
    assert storage.read_bytes(url) == b"first"


def test_of_many_that_create_a_file_at_once_one_succeeds(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def create(data: bytes) -> bytes | None:
        together.wait()
        try:
            storage.create(str(tmp_path / "claims" / "1"), data)
        except FileExistsError:
            return None
        return data

    with ThreadPoolExecutor(8) as pool:
        succeeded = [data for data in pool.map(create, map(bytes, range(8))) if data is not None]
    assert succeeded == [(tmp_path / "claims" / "1").read_bytes()]


UNWRITABLE = {
    "a file for a folder": ("file", True, r"--output .*/file is a file: give a folder"),
    "a folder for a file": ("folder", False, r"--output .*/folder is a folder: give a file"),
    "below a file": ("file/a/b", True, r"--output .*/file/a/b lies in .*/file, which is a file"),
    "where nothing can be made": ("/proc/a/b", False, r"--output /proc/a/b cannot be written \("),
    "over HTTP": ("http://127.0.0.1:1/a", True, r"--output http://127.0.0.1:1/a: HTTP is for reading only"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_a_place_that_cannot_be_written_is_told_before(case: str, tmp_path: Path) -> None:
    name, folder, message = UNWRITABLE[case]
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    url = name if name.startswith(("/", "http:")) else str(tmp_path / name)
    with pytest.raises(UserError, match=message):
        storage.require_writable(url, "--output", folder=folder)


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, folder in (("file", False), ("new", False), ("a/b/c", True), ("", True)):
        storage.require_writable(str(tmp_path / name), "--output", folder=folder)
    storage.require_writable("s3://nobodys-bucket/a", "--output", folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_kind_of_url_that_nobody_reads_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="nonsense://x/y: this kind of URL cannot be read"):
        storage.exists("nonsense://x/y")


def test_object_storage_is_retried_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our options for s3:// are passed to the filesystem; a user's own, in fsspec's configuration, win."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    assert storage.s3_options()["config_kwargs"]["retries"]["total_max_attempts"] == 9
    assert storage.s3_options()["config_kwargs"]["read_timeout"] == 15
    own = {"anon": True, "config_kwargs": {"read_timeout": 1}}
    monkeypatch.setitem(fsspec.config.conf, "s3", own)
    assert storage.s3_options()["anon"] is True
    assert storage.s3_options()["config_kwargs"]["read_timeout"] == 1
    assert storage.s3_options()["config_kwargs"]["connect_timeout"] == 5
    assert own == {"anon": True, "config_kwargs": {"read_timeout": 1}}


UNUSABLE = {
    "s3://someone:hunter2/x@bucket/k": "s3://bucket/k: a user and a password in an S3 URL are not used",
    "s3://someone:hunter2@bucket/k": "s3://bucket/k: a user and a password in an S3 URL are not used",
    "ftp://someone:hunter2/x@h": "ftp://h: this kind of URL cannot be read",
    "github://someone:hunter2@r": "github://r: this kind of URL cannot be read",
    "https://someone:hunter2/x@127.0.0.1:1/a": "https://127.0.0.1:1/a cannot be reached",
}


@pytest.mark.parametrize("url", UNUSABLE)
def test_a_librarys_words_do_not_repeat_a_password(url: str) -> None:
    """They may hold a piece of the URL that no longer looks like one."""
    with pytest.raises(UserError) as told:
        storage.require_access(url)
    assert UNUSABLE[url] in str(told.value)
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gs://bucket/photos", "gs://bucket/photos needs the package gcsfs: install it on each machine"),
        ("abfs://photos/raw", "abfs://photos/raw needs the package adlfs: install it on each machine"),
    ],
)
def test_a_package_that_is_missing_is_named(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not it is installed here. The names are those of pyproject.toml."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = [Requirement(line).name for lines in project["optional-dependencies"].values() for line in lines]
    assert set(storage.PACKAGES.values()) <= set(extras)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=words):
        storage.exists(url)


def test_a_file_in_the_making_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    replace = os.replace

    def watched(source: Path, target: str) -> None:
        names.extend(path.name for path in tmp_path.iterdir())
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    storage.write_bytes(str(tmp_path / "part-0.parquet"), b"data")
    assert len(names) == 1
    assert storage.is_unfinished(names[0])
    assert not storage.is_unfinished("part-0.parquet")
