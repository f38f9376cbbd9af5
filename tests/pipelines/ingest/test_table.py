"""Annotations in Parquet, and photos that lie by themselves: the same rows as from lists and archives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from glefld import storage
from glefld.datasets import read_annotations
from glefld.datasets.lists import ListFiles
from glefld.errors import BadPhoto, UserError
from glefld.schema import FASHION8
from pipelines import photo_table
from pipelines.archives import MEMBERS
from pipelines.ingest.plan import IngestOptions, IngestPlan
from pipelines.ingest.run import prepare, shard_settings
from pipelines.ingest.shard import write_shard
from pipelines.ingest.source import write_index
from pipelines.photo_table import read_photos
from tests.mistakes import answering
from tests.pipelines.ingest.planned import planned_rejects
from tests.pipelines.ingest.secretive import SecretiveFileSystem
from tests.raw_layouts import Row, fld_lists, photos, rows, write_archive, write_files, write_fld

LISTED = rows(12)
PHOTOS = photos(LISTED)


def fld_rows(listed: list[Row], tmp_path: Path) -> list[dict[str, Any]]:
    """The annotations of FLD's lists, as rows of the table's columns."""
    write_files(tmp_path / "lists", fld_lists(listed))
    files = {
        f"/{path.name}": (lambda path=path: path.open("rb")) for path in (tmp_path / "lists").rglob("*.txt")
    }
    table = read_annotations("fld", ListFiles("lists", files)).table
    assert isinstance(table, pa.Table)
    return table.drop_columns(["sample_id", "duplicate", "attributes"]).to_pylist()


def write_table(path: Path, found: list[dict[str, Any]], **changes: pa.DataType) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(found)
    for name in ("uri", "photo"):
        if name in table.column_names and pa.types.is_binary(table[name].type):  # bytes, which may be no text
            place = table.column_names.index(name)
            table = table.set_column(place, name, table[name].combine_chunks().view(pa.string()))
    pq.write_table(table, path, row_group_size=5)
    labels = {
        "landmark_set": FASHION8.to_json(),
        "categories": ["Blouse", "Jeans"],
        "attributes": [{"name": "floral", "type": 1}],
        "attribute_types": ["texture"],
    }
    (path.parent / "labels.json").write_text(json.dumps(labels))


def plan(source: Path, dataset: str = "table") -> IngestPlan:
    return prepare(IngestOptions(dataset, str(source)), f"{source}-output")


def contents(found: IngestPlan, output: str) -> list[dict[str, Any]]:
    """What its tasks write, without what tells where it came from."""
    written: list[dict[str, Any]] = []
    for shard in found.shards:
        write_shard({**shard.item, "killers": []}, shard_settings(found, output), frozenset())
        written += pq.ParquetFile(f"{output}/{shard.path}").read().to_pylist()
    for row in written:
        del row["source_uri"]
        row["sample_id"] = row["sample_id"].rpartition("/")[2]
    return sorted(written, key=lambda row: row["sample_id"])


def test_a_table_gives_the_rows_of_the_lists(tmp_path: Path) -> None:
    """With the photos in archives beside it, by relative uris, by absolute ones; in one file or in several."""
    expected = plan(write_fld(tmp_path / "fld", LISTED, PHOTOS), "fld")
    wanted = contents(expected, f"{tmp_path}/fld-output")
    assert len(wanted) == 12
    found = fld_rows(LISTED, tmp_path)
    write_table(tmp_path / "beside" / "rows.parquet", found)
    write_archive(tmp_path / "beside" / "img-0.zip", dict(list(PHOTOS.items())[:5]))
    write_archive(tmp_path / "beside" / "img-1.tar", dict(list(PHOTOS.items())[5:]))
    bucket = f"memory://{tmp_path.name}"
    write_files(tmp_path / "relative", PHOTOS)
    fsspec.filesystem("memory").put(f"{tmp_path}/relative/img", f"{bucket}/img", recursive=True)
    for place, before in (("relative", ""), ("absolute", f"{bucket}/")):
        named = [{**row, "uri": before + row["photo"]} for row in found]
        for row in named:
            del row["photo"]
        write_table(tmp_path / place / "a.parquet", named[:7])
        write_table(
            tmp_path / place / "b.parquet",
            [{**row, "bytes": len(PHOTOS[row["uri"]])} for row in named[7:]] if before == "" else named[7:],
        )
    for place in ("beside", "relative", "absolute"):
        planned = plan(tmp_path / place)
        assert planned.rejects == {}
        assert str(contents(planned, f"{tmp_path}/{place}-output")) == str(wanted), place


def test_lists_may_go_with_a_table_of_uris(tmp_path: Path) -> None:
    """``img.parquet`` names each photo's place; a photo that is not in it is missing."""
    source = tmp_path / "source"
    write_files(source, fld_lists(LISTED))
    write_files(tmp_path / "elsewhere", {name.replace("img/", "x"): data for name, data in PHOTOS.items()})
    table = [{"photo": name, "uri": f"{tmp_path}/elsewhere/{name.replace('img/', 'x')}"} for name in PHOTOS]
    pq.write_table(pa.Table.from_pylist(table[1:]), source / "img.parquet")
    found = plan(source, "fld")
    assert planned_rejects(found) == {f"fld/{table[0]['photo']}#0": "missing_photo"}
    (shard, *_) = found.shards
    write_shard({**shard.item, "killers": []}, shard_settings(found, f"{source}-output"), frozenset())
    uris = pq.ParquetFile(f"{source}-output/{shard.path}").read()["source_uri"].to_pylist()
    assert set(uris) <= {row["uri"] for row in table}


def test_garments_of_a_photo_and_rows_listed_twice(tmp_path: Path) -> None:
    """A garment's number tells it from the photo's others; the same number again is a duplicate, wherever it stands."""
    first, second, *_ = fld_rows(LISTED, tmp_path)
    found = [{**first, "garment": 0}, {**first, "garment": 1}, {**second, "garment": 0}]
    write_table(tmp_path / "source" / "a.parquet", found)
    write_table(tmp_path / "source" / "b.parquet", [{**first, "garment": 1, "box": [0, 0, 9, 9]}])
    write_archive(tmp_path / "source" / "img.zip", PHOTOS)
    planned = plan(tmp_path / "source")
    assert planned_rejects(planned) == {f"table/{first['photo']}#1": "duplicate_id"}
    kept = contents(planned, f"{tmp_path}/source-output")
    assert [(row["sample_id"][-2:], row["box"]) for row in kept[:2]] == [
        ("#0", [5, 10, 45, 70]),
        ("#1", [5, 10, 45, 70]),
    ]


def test_garments_of_a_photo_in_several_files(tmp_path: Path) -> None:
    """As Spark divides rows; a garment without a number is the first. Only another uri makes it another photo."""
    source = tmp_path / "source"
    write_files(source, PHOTOS)
    found = [
        {**row, "uri": row["photo"], "garment": None, "bytes": len(PHOTOS[row["photo"]])}
        for row in fld_rows(LISTED, tmp_path)
    ]
    second = [{**row, "garment": 1} for row in found[2:5]]
    for row in (*found, *second):
        del row["photo"]
    write_table(source / "a.parquet", found + second)
    wanted = plan(source)
    expected = contents(wanted, f"{tmp_path}/a")
    assert len(expected) == 15
    write_table(source / "a.parquet", found)
    write_table(source / "b.parquet", second)
    planned = plan(source)
    assert str(contents(planned, f"{tmp_path}/b")) == str(expected)
    for key in ("files", "files_not_used"):
        assert planned.source[key] == wanted.source[key]
    for row in second:
        row["photo"] = row["uri"]
    write_table(source / "b.parquet", [{**row, "uri": f"./{row['uri']}"} for row in second])
    with pytest.raises(
        UserError, match=r"the photo img/.* is in .*a\.parquet and in .*b\.parquet: leave it in one"
    ):
        plan(source)


def test_what_a_row_lacks_makes_it_a_reject(tmp_path: Path) -> None:
    found = fld_rows(LISTED, tmp_path)
    for row, column in zip(found, ("split", "box", "visibility"), strict=False):
        row[column] = None
    write_table(tmp_path / "source" / "a.parquet", found)
    write_archive(tmp_path / "source" / "img.zip", PHOTOS)
    planned = plan(tmp_path / "source")
    assert planned.rejects == {"missing_annotation": 3}
    assert planned.rows_in == 12


#: A change of the fourth row, and what is said of it.
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a split": (lambda row: row.update(split="dev"), "row 4: split must be one of train, val, test"),
    "a view": (lambda row: row.update(view="above"), "row 4: view must be one of front"),
    "a type": (lambda row: row.update(garment_type=9), "row 4: garment_type must be one of"),
    "a code": (lambda row: row.update(visibility=[7] * 8), "row 4: a code of visibility must be 0 to 3"),
    "a code too few": (lambda row: row.update(visibility=[0] * 7), "row 4: visibility must have 8 codes"),
    "a coordinate too few": (
        lambda row: row.update(landmarks=[1.0] * 15),
        "row 4: landmarks must have two numbers",
    ),
    "no landmarks": (lambda row: row.update(landmarks=None), "row 4: landmarks must have two numbers"),
    "a visible landmark nowhere": (
        lambda row: row.update(visibility=[0] * 8, landmarks=[float("nan")] * 16),
        "row 4: a landmark that is visible or occluded needs a position",
    ),
    "a box without end": (lambda row: row.update(box=[0, 0, float("inf"), 1]), "row 4: a corner of the box"),
    "a box of three": (lambda row: row.update(box=[0, 0, 1]), "row 4: box must have four numbers"),
    "a category": (lambda row: row.update(category=3), "row 4: category must be 1 to 2"),
    "a category of zero": (lambda row: row.update(category=0), "row 4: category must be 1 to 2"),
    "a variation": (lambda row: row.update(variation=-7), "row 4: variation must be 1 to 5"),
    "an area": (lambda row: row.update(area=-1.0), "row 4: area must be a number from 0"),
    "an attribute": (
        lambda row: row.update(attributes=[0, 70]),
        "row 4: attributes must be indices of the 1 attr",
    ),
    "an attribute below zero": (lambda row: row.update(attributes=[-1]), "row 4: attributes must be indices"),
    "an empty attribute": (lambda row: row.update(attributes=[None]), "row 4: attributes must be indices"),
    "a name that is not text": (lambda row: row.update(photo=b"\xff"), "cannot be read: Invalid UTF8"),
    "no photo": (lambda row: row.update(photo=None), "row 4: photo is empty"),
    "a number below zero": (lambda row: row.update(garment=-1), "row 4: garment must be a number from 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    change, message = WRONG[case]
    found = [
        {**row, "garment": 0, "category": 1, "attributes": [0]} | {"photo": row["photo"].encode()}
        for row in fld_rows(LISTED, tmp_path)
    ]
    change(found[3])
    write_table(tmp_path / "source" / "a.parquet", found)
    write_archive(tmp_path / "source" / "img.zip", PHOTOS)
    with pytest.raises(UserError, match=rf"^[^\n]*source/a\.parquet[^\n]*{message}") as told:
        plan(tmp_path / "source")
    assert "\n" not in str(told.value)
    assert str(told.value).count("a.parquet") == 1
    assert not (tmp_path / "source-output").exists()


def test_what_a_table_lacks_is_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    found = fld_rows(LISTED, tmp_path)
    source.mkdir()
    with pytest.raises(UserError, match="has no annotations: --source needs Parquet files"):
        plan(source)
    write_table(source / "a.parquet", [{"photo": "a", "split": "train"}])
    with pytest.raises(UserError, match="has no photos"):
        plan(source)
    write_archive(source / "img.zip", PHOTOS)
    with pytest.raises(UserError, match=r"a\.parquet has no column box; it has photo, split"):
        plan(source)
    write_table(source / "a.parquet", found)
    (source / "labels.json").write_text("{}")
    with pytest.raises(UserError, match=r"labels\.json must have the fields of a manifest"):
        plan(source)
    write_table(source / "a.parquet", found)
    table = pq.read_table(source / "a.parquet")
    pq.write_table(table.slice(0, 0), source / "a.parquet")
    with pytest.raises(UserError, match=r"the lists of .*source are empty"):
        plan(source)
    pq.write_table(table.append_column("box", table["box"]), source / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has the column box more than once"):
        plan(source)
    with pytest.raises(UserError, match=r"img\.zip is an archive, but --dataset table needs a folder"):
        plan(source / "img.zip")
    (source / "labels.json").unlink()
    with pytest.raises(UserError, match=r"the file labels\.json is missing"):
        plan(source)
    (source / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a\.parquet is not a readable Parquet file"):
        plan(source)


#: Columns of a table beside one good row, and what is said of them.
REFUSED: dict[str, tuple[dict[str, list[Any]], str]] = {
    "HTTP": ({"uri": ["http://host/a.jpg"]}, "HTTP is not read"),
    "a password": (
        {"uri": ["s3://me:secret@bucket/a.jpg"]},
        "s3://bucket/a.jpg: give paths or URLs .* without a user",
    ),
    "a password with a slash": ({"uri": ["s3://me:secret/x@bucket/a.jpg"]}, "without a user"),
    "a user of another scheme": ({"uri": ["ftp://secret@host/a.jpg"]}, "without a user"),
    "nothing": ({"uri": [None]}, "rows without a uri"),
    "bytes below zero": ({"uri": ["b"], "bytes": [-1]}, "rows with bytes below zero"),
    "a uri that is not text": ({"uri": ["b", b"\xff"]}, r"a\.parquet cannot be read: Invalid UTF8"),
    "a name that is not text": (
        {"uri": ["b"], "photo": [b"\xff"]},
        r"a\.parquet cannot be read: Invalid UTF8",
    ),
    "an unknown scheme": ({"uri": ["s3://bucket:/a.jpg"]}, "a user and a password in an S3 URL are not used"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tables_of_uris_that_are_not_used(case: str, tmp_path: Path) -> None:
    """In one line that shows no secret."""
    columns, message = REFUSED[case]
    table = pa.table(
        {
            name: pa.array(values).cast(pa.binary()).view(pa.string()) if name != "bytes" else values
            for name, values in columns.items()
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message) as told:
        write_index(0, f"{tmp_path}/a.parquet", "table", "", f"{tmp_path}/index.parquet")
    assert "secret" not in str(told.value)
    assert str(told.value).count("a.parquet") <= 1


def test_a_relative_uri_does_not_repeat_the_sources_password(tmp_path: Path) -> None:
    fsspec.register_implementation("secretive", SecretiveFileSystem, clobber=True)
    pq.write_table(pa.table({"uri": ["a.jpg"]}), tmp_path / "a.parquet")
    url = f"secretive://user:secret@{tmp_path}/a.parquet"
    with pytest.raises(UserError, match=r"has the uri secretive:///.*/a\.jpg: .* without a user") as told:
        write_index(0, url, "table", "", f"{tmp_path}/index.parquet")
    assert "secret@" not in str(told.value)


def test_a_column_that_stands_twice_is_named(tmp_path: Path) -> None:
    names = ["uri", "bytes", "uri"]
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array(["b"])], names), tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match=r"a\.parquet has the column uri more than once"):
        write_index(0, f"{tmp_path}/a.parquet", "table", "", f"{tmp_path}/index.parquet")


@pytest.mark.parametrize(
    ("status", "message"), [(403, "refuses access to the bucket"), (404, "there is no bucket")]
)
def test_a_bucket_that_cannot_be_used_is_told_by_the_plan(
    status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by rejects, as if each of its photos were missing."""
    pq.write_table(pa.table({"uri": ["a.jpg", "s3://mistyped/b.jpg"]}), tmp_path / "a.parquet")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION"):
        monkeypatch.setenv(f"AWS_{name}", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with answering(status) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(UserError, match=f"{message}.* mistyped"):
            write_index(0, f"{tmp_path}/a.parquet", "table", "", f"{tmp_path}/index.parquet")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


#: An object storage's answer to the request for a photo: the reason of the reject, or what ends the job.
ANSWERS: dict[str, str | type[OSError]] = {
    "NoSuchKey": "missing_photo",
    "404": "missing_photo",
    "InvalidRange": "unreadable_photo",
    "416": "unreadable_photo",
    "NoSuchBucket": OSError,
    "ExpiredToken": PermissionError,
    "AccessDenied": PermissionError,
    "400": OSError,
    "InvalidRequest": OSError,
    "SlowDown": OSError,
}


@pytest.mark.parametrize("code", ANSWERS)
def test_what_object_storage_refuses_is_no_fault_of_a_photo(code: str) -> None:
    """A photo that is gone or empty is a reject. Anything else ends the job, which can then be resumed."""
    error = translate_boto_error(ClientError({"Error": {"Code": code, "Message": "told"}}, "GetObject"))
    expected = ANSWERS[code]
    error = storage._answer("s3://bucket/a.jpg", error)
    row = {"name": "s3://bucket/a.jpg", "stored": None, "size": 1}
    if isinstance(expected, str):
        found = photo_table._photo(row, error)
        assert isinstance(found, BadPhoto)
        assert found.reason == expected
    else:
        with pytest.raises(expected, match="told"):
            photo_table._photo(row, error)


def test_a_photo_that_is_not_ours_to_read_is_a_reject_on_a_disk(tmp_path: Path) -> None:
    row = {"name": f"{tmp_path}/a.jpg", "stored": None, "size": 1}
    for error in (PermissionError("told"), IsADirectoryError("told")):
        found = photo_table._photo(row, error)
        assert isinstance(found, BadPhoto)
        assert found.reason == "unreadable_photo"


def test_photos_that_cannot_be_read_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, whatever their size, and however many are fetched at once."""
    monkeypatch.setattr(photo_table, "TOGETHER", 3)
    monkeypatch.setattr(photo_table, "FIRST_BYTES", 1000)
    monkeypatch.setattr(photo_table, "MAX_MEMBER_BYTES", 5000)
    files = {
        f"{i}": np.random.default_rng(i).bytes(size)
        for i, size in enumerate((999, 1000, 1001, 5000, 5001, 0))
    }
    write_files(tmp_path, files)
    sizes = [None, None, 1001, None, None, None, None, 7]
    names = [*files, "absent", "0"]
    uris = [f"{tmp_path}/{name}" for name in names]
    empty = [pa.nulls(8, field.type) for field in MEMBERS]
    table = pa.table(empty, schema=MEMBERS)
    for name, column in (("name", uris), ("stored", sizes), ("size", [s or 1 for s in sizes])):
        at = MEMBERS.get_field_index(name)
        table = table.set_column(at, MEMBERS.field(at), pa.array(column, MEMBERS.field(at).type))
    found = [data if isinstance(data, bytes) else data.reason for data in read_photos(table)]
    assert found == [
        *(files[name] for name in "0123"),
        "picture_too_large",
        "unreadable_photo",
        "missing_photo",
        "truncated_photo",
    ]
    assert not any(isinstance(data, BadPhoto) for data in found)


def test_a_photo_is_named_once_in_the_index(tmp_path: Path) -> None:
    """However many garments name it; its size is its own, guessed where it is not known."""
    table = {
        "photo": ["b", "a", "b", "c", "c"],
        "uri": ["b", "a", "b", "d", "c"],
        "bytes": [None, None, 5, 7, None],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    found = write_index(3, f"{tmp_path}/a.parquet", "table", "", f"{tmp_path}/index.parquet")
    assert (found.files, found.bytes, found.replaced) == (3, 2 * photo_table.GUESSED_BYTES + 5, 1)
    members = sorted(pq.read_table(found.file).to_pylist(), key=lambda row: row["listed"])
    assert [(row["listed"], row["name"], row["stored"], row["size"]) for row in members] == [
        ("a", f"{tmp_path}/a", None, photo_table.GUESSED_BYTES),
        ("b", f"{tmp_path}/b", 5, 5),
        ("c", f"{tmp_path}/c", None, photo_table.GUESSED_BYTES),
    ]
    assert {row["archive"] for row in members} == {3}
