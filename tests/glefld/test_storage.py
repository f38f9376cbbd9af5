"""Files by URL: whole or not there, listed alike everywhere, and no secret of a URL in what is shown."""

import os
import tempfile
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest

from glefld import storage
from glefld.errors import UserError
from glefld.storage import public_url, redacted


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


PUBLIC = {
    "a local path": ("/data/photos?.zip", "/data/photos?.zip"),
    "a user and a password": ("s3://key:secret@bucket/a.zip", "s3://bucket/a.zip"),
    "a signed query": ("https://host/a.zip?X-Amz-Signature=secret", "https://host/a.zip"),
    "a token in the fragment": ("https://host/a#access_token=secret", "https://host/a"),
    "an at sign in the password": ("https://user:secret@1@host/a", "https://host/a"),
    "a database's file": ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    "no URL at all": ("http://[secret/a", "http://..."),
}


@pytest.mark.parametrize("case", PUBLIC)
def test_a_public_url_keeps_the_place_and_drops_the_secret(case: str) -> None:
    url, expected = PUBLIC[case]
    assert public_url(url) == expected


def test_no_secret_survives_in_any_text_around_a_url() -> None:
    """Names and passwords of letters and digits, in queries and user parts, several URLs to a text."""
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(200):
        secret = "Z" + "".join(rng.choice(list("abcdefghij0123456789"), 8))
        urls = [f"s3://user:{secret}@bucket/key", f"https://host/p?token={secret}&b=1", f"ftp://{secret}@h/x"]
        rng.shuffle(urls)
        text = str(rng.choice([" ", ",", " and ", "\n"])).join(urls)
        shown = redacted({"words": [f"cannot read {text}", (text,)]})
        assert secret not in str(shown)
        assert "://bucket/key" in str(shown)
