"""Photos that a file lists: tables of uris and S3 Inventories, in pieces, each photo once."""

import gzip
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glefld import storage
from glefld.errors import BadPhoto, UserError
from glefld.redaction import holds_secret
from pipelines import photo_table
from pipelines.infer import lists
from pipelines.infer.inputs import Input, Photos, open_input
from tests.mistakes import answering
from tests.raw_layouts import jpeg


def write_list(path: Path, uris: list[str]) -> str:
    if path.suffix == ".csv":
        path.write_text("id,uri\n" + "".join(f'{i},"{uri}"\n' for i, uri in enumerate(uris)))
    else:
        pq.write_table(pa.table({"id": range(len(uris)), "uri": uris}), path, row_group_size=2)
    return str(path)


def opened(url: str, group_rows: int = 2) -> Input:
    return open_input(url, None, None, "", group_rows)


@pytest.mark.parametrize("name", ["photos.csv", "photos.parquet"])
def test_a_list_names_photos_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By path, by URL or relative to the list's folder; in its order, once each; what is not there is an error."""
    monkeypatch.setattr(photo_table, "TOGETHER", 2)
    monkeypatch.setattr(photo_table, "FIRST_BYTES", 300)  # larger photos are asked for again
    monkeypatch.setattr(photo_table, "MAX_MEMBER_BYTES", 20_000)
    contents = {f"deep/{i} é.jpg": jpeg(i) for i in range(3)}
    for path, data in contents.items():
        storage.write_bytes(str(tmp_path / path), data)
    storage.write_bytes(f"memory://{tmp_path.name}/no-extension", jpeg(7))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "large.jpg").write_bytes(bytes(20_001))
    (tmp_path / "folder.jpg").mkdir()
    places: dict[str, bytes | str] = {
        "deep/0 é.jpg": contents["deep/0 é.jpg"],
        f"memory://{tmp_path.name}/no-extension": jpeg(7),
        "gone.jpg": "missing_photo",
        str(tmp_path / "deep/1 é.jpg"): contents["deep/1 é.jpg"],
        "empty.jpg": "unreadable_photo",
        "large.jpg": "picture_too_large",
        "folder.jpg": "unreadable_photo",
        f"file://{tmp_path}/deep/2 é.jpg": contents["deep/2 é.jpg"],
    }
    uris = list(places)
    listed = write_list(
        tmp_path / name, [*uris[:3], uris[0], str(tmp_path / "deep/0 é.jpg"), *uris[3:], uris[7]]
    )
    found = opened(listed)
    rows = pa.concat_tables(found.rows)
    assert rows["uri"].to_pylist() == [u if "/" in u[:8] and u[0] != "d" else f"{tmp_path}/{u}" for u in uris]
    assert [len(group) for group in found.rows] == [2, 2, 2, 2]
    assert (found.photo_count, found.skipped) == (8, {"listed before": 3})
    for (uri, expected), photo in zip(places.items(), found.photos.read(rows), strict=True):
        got = photo.data.reason if isinstance(photo.data, BadPhoto) else photo.data
        assert got == expected, uri


@pytest.mark.parametrize(
    ("status", "reason"),
    [(403, "unreadable_photo"), (404, "missing_photo"), (410, "missing_photo"), (416, "unreadable_photo")],
)
def test_a_photo_that_a_server_refuses_is_one_row(status: int, reason: str) -> None:
    """The job goes on; what may be the server's trouble, and not the photo's, ends it."""
    with answering(status) as address:
        (photo,) = Photos().read(pa.table({"uri": [f"{address}/a.jpg"]}))
    assert isinstance(photo.data, BadPhoto)
    assert photo.data.reason == reason
    with answering(503) as address, pytest.raises(OSError, match="status 503"):
        list(Photos().read(pa.table({"uri": [f"{address}/a.jpg"]})))


@pytest.mark.parametrize("make", ["list", "inventory"])
def test_a_list_of_too_many_is_refused(make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_LISTED", 5)
    no_bucket_is_asked(monkeypatch)
    if make == "list":
        url = write_list(tmp_path / "list.csv", [f"{i}.jpg" for i in range(6)])
    else:
        url = write_inventory(tmp_path, "CSV", entries(False))
    with pytest.raises(UserError, match="more than the 5 rows that one run accepts"):
        opened(url)


@pytest.mark.parametrize(
    "uri", ["s3://b/a@b?c#d;e.jpg", "memory://a/b@c?d.jpg", "/a?b@c.jpg", "a://", "b?c@d.jpg"]
)
def test_a_name_of_any_characters_is_no_secret(uri: str) -> None:
    assert not holds_secret(uri)


#: An object storage that is down.
NOBODY = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "key",
    "AWS_MAX_ATTEMPTS": "1",
}


def no_bucket_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inventories name buckets, of which there are none here."""
    ask = storage.require_access
    monkeypatch.setattr(storage, "require_access", lambda url: None if storage.is_s3(url) else ask(url))


#: Keys with what a URL's query encodes, and with what Parquet must not decode.
KEYS = {"a b+c%20/é&=1.jpg": 11, "a b.jpg": 12, "plain.JPG": 13}


def write_inventory(folder: Path, format_: str, rows: list[dict[str, Any]], **changes: Any) -> str:
    """An inventory in two data files, where S3 puts them beside the manifest; the URL of the manifest."""
    files = []
    for i, some in enumerate((rows[:2], rows[2:])):
        name = f"{i}.csv.gz" if format_ == "CSV" else f"{i}.parquet"
        files.append({"key": f"prefix/photos/every-day/data/{name}", "size": 1, "MD5checksum": ""})
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if format_ == "CSV":
            lines = []
            for entry in some:
                row = {**entry, "Key": urllib.parse.quote_plus(entry["Key"], safe="/")}
                cells = (
                    str(v).lower() if isinstance(v, bool) else "" if v is None else v for v in row.values()
                )
                lines.append(",".join(f'"{cell}"' for cell in cells) + "\n")
            path.write_bytes(gzip.compress("".join(lines).encode()))
        else:
            names = {"IsLatest": "is_latest", "IsDeleteMarker": "is_delete_marker", "ETag": "e_tag"}
            pq.write_table(
                pa.Table.from_pylist([{names.get(k, k.lower()): v for k, v in row.items()} for row in some]),
                path,
            )
    manifest = {
        "sourceBucket": "photos",
        "destinationBucket": "arn:aws:s3:::lists",
        "version": "2016-11-30",
        "fileFormat": format_,
        "fileSchema": ", ".join(rows[0]) if format_ == "CSV" else "message s3.inventory { }",
        "files": files,
        **changes,
    }
    path = folder / "2026-11-28T01-00Z" / "manifest.json"
    path.parent.mkdir()
    path.write_text(json.dumps(manifest))
    return str(path)


def entries(versions: bool) -> list[dict[str, Any]]:
    def entry(key: str, size: int | None, latest: bool = True, deleted: bool = False) -> dict[str, Any]:
        state = {"VersionId": "", "IsLatest": latest, "IsDeleteMarker": deleted} if versions else {}
        return {"Bucket": "photos", "Key": key, **state, "Size": size, "ETag": f"etag-{size}"}

    found = [entry(key, size) for key, size in KEYS.items()]
    found += [entry("notes.txt", 1), entry("folder/", 0), entry("__MACOSX/a.jpg", 1)]
    if versions:
        found += [entry("a b.jpg", 3, latest=False), entry("gone.jpg", None, deleted=True)]
    return found


@pytest.mark.parametrize("versions", [False, True])
@pytest.mark.parametrize("format_", ["CSV", "Parquet"])
def test_an_inventory_lists_a_bucket(
    format_: str, versions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current pictures of the bucket with their sizes and versions, as they are named there."""
    no_bucket_is_asked(monkeypatch)
    url = write_inventory(tmp_path, format_, entries(versions))
    if format_ == "CSV":  # a data file without rows says nothing of the others
        manifest = storage.read_json(url)
        manifest["files"].insert(1, {"key": "prefix/photos/every-day/data/none.csv.gz"})
        storage.write_json(url, manifest)
        (tmp_path / "data" / "none.csv.gz").write_bytes(gzip.compress(b""))
    found = opened(url)
    rows = pa.concat_tables(found.rows).to_pylist()
    assert [row["uri"] for row in rows] == [f"s3://photos/{key}" for key in KEYS]
    assert [(row["size"], row["version"]) for row in rows] == [
        (size, f"etag-{size}") for size in KEYS.values()
    ]
    old = {"not the current version of its key": 2} if versions else {}
    assert found.skipped == {"not a picture's name": 3, **old}


def inventory_of(**changes: Any) -> Callable[[Path], str]:
    return lambda folder: write_inventory(folder, "CSV", entries(False), **changes)


def written(name: str, content: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / name).write_text(content)
        return str(folder / name)

    return write


def table(**columns: Any) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        pq.write_table(pa.table(columns), folder / "list.parquet")
        return str(folder / "list.parquet")

    return write


def inventory_with(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], str]:
    """An inventory in Parquet of which one data file is changed."""

    def write(folder: Path) -> str:
        url = write_inventory(folder, "Parquet", entries(False))
        path = folder / "data" / "1.parquet"
        pq.write_table(change(pq.read_table(path)), path)
        return url

    return write


def no_utf8(table: pa.Table) -> pa.Table:
    keys = pa.array([b"\xff.jpg"] * len(table), pa.binary()).view(pa.string())
    return table.set_column(table.column_names.index("key"), "key", keys)


def escaped_inventory(folder: Path) -> str:
    url = inventory_of()(folder)
    row = b'"photos","%FF.jpg","1","etag"\n'
    (folder / "data" / "1.csv.gz").write_bytes(gzip.compress(row))
    return url


def twice(folder: Path) -> str:
    uris = pa.array(["a.jpg"])
    pq.write_table(pa.Table.from_arrays([uris, uris], ["uri", "uri"]), folder / "list.parquet")
    return str(folder / "list.parquet")


def damaged_inventory(folder: Path) -> str:
    url = inventory_of()(folder)
    path = folder / "data" / "1.csv.gz"
    path.write_bytes(path.read_bytes()[:-9])
    return url


WRONG: dict[str, tuple[Callable[[Path], str], str]] = {
    "a CSV without the column": (written("list.csv", "url\na.jpg\n"), "must have a column uri"),
    "a Parquet file without the column": (table(url=["a.jpg"]), "must have a column uri"),
    "a text": (written("list.parquet", "shopping list: milk\n"), "is not a readable CSV or Parquet file"),
    "an empty file": (written("list.csv", ""), "is not a readable CSV or Parquet file"),
    "no rows": (written("list.csv", "uri\n"), "lists no picture"),
    "numbers": (table(uri=[1]), "the column uri must be text, not int64"),
    "a row without a uri": (table(uri=["a.jpg", None]), "1 rows without a uri"),
    "an empty uri": (table(uri=["a.jpg", ""]), "rows with an empty uri"),
    "an unknown scheme": (table(uri=["nope://a/b.jpg"]), "nope://a: this kind of URL cannot be read"),
    "a signed URL": (table(uri=["http://127.0.0.1:1/a.jpg?key=secret"]), "with a password or a query"),
    "an address that nobody serves": (table(uri=["http://127.0.0.1:1/a.jpg"]), "cannot be reached"),
    "another scheme with a password": (table(uri=["memory://bob:secret@host/x.jpg"]), "with a password"),
    "FTP with a password": (table(uri=["ftp://bob:secret@host/x.jpg"]), "with a password"),
    "a signed URL in capitals": (table(uri=["HTTPS://127.0.0.1:1/a.jpg?key=secret"]), "with a password"),
    "two columns uri in Parquet": (twice, "has 2 columns uri: remove all but one"),
    "two columns uri in a CSV": (
        written("list.csv", "uri,uri\na,b\n"),
        "has 2 columns uri: remove all but one",
    ),
    "a bucket that nobody serves": (
        inventory_with(lambda table: table),
        "http://127.0.0.1:1 cannot be reached",
    ),
    "a key that is not UTF-8": (inventory_with(no_utf8), "is not readable as parquet"),
    "an escaped key that is not UTF-8": (escaped_inventory, "is not readable as csv"),
    "another JSON": (written("manifest.json", "{}"), "is not the manifest of an S3 Inventory"),
    "no JSON": (written("manifest.json", "uri"), "is not valid JSON"),
    "an inventory in ORC": (
        inventory_of(fileFormat="ORC"),
        "an inventory in ORC: configure it as CSV or Parquet",
    ),
    "files that are no list": (inventory_of(files=[1]), "names its data files in an unknown way"),
    "columns that are not there": (
        inventory_of(fileSchema="Bucket, Key"),
        "is not readable as csv with the columns",
    ),
    "an inventory without keys": (
        inventory_of(fileSchema="Bucket, A, B, C"),
        "is not readable as csv with the columns",
    ),
    "a damaged data file": (damaged_inventory, "is not readable as csv with the columns"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_list_that_cannot_be_used_is_told_in_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "a bucket that nobody serves":
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        for name, value in NOBODY.items():
            monkeypatch.setenv(name, value)
    else:
        no_bucket_is_asked(monkeypatch)
    make, message = WRONG[case]
    with pytest.raises(UserError, match=message) as error:
        opened(make(tmp_path))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_boxes_do_not_go_with_a_list(tmp_path: Path) -> None:
    listed = write_list(tmp_path / "list.csv", ["a.jpg"])
    with pytest.raises(UserError, match="--boxes does not go with"):
        open_input(listed, listed, None, "")
