"""Find the lists and photos of a raw data set, whatever the folder structure of its download."""

import dataclasses
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from botocore.exceptions import BotoCoreError

from glefld import storage
from glefld.data.prefetch import ahead
from glefld.datasets import PhotoPlace
from glefld.datasets.lists import ListFiles, OwnOptions
from glefld.errors import BadPhoto, UserError
from glefld.listing import regrouped
from glefld.redaction import public_url
from glefld.temporary import temporary_file, temporary_space
from pipelines.archives import (
    ARCHIVES,
    MEMBERS,
    TABLE,
    Archive,
    open_archive,
    read_index,
)
from pipelines.ingest.sql import batches, database, registered
from pipelines.members import open_member, read_members
from pipelines.photo_table import GUESSED_BYTES, PHOTOS, has_uris, read_table
from pipelines.resumable import DEATHS

LIST_FOLDERS = ("anno", "anno_coarse", "anno_fine", "eval")
#: DeepFashion2's layout: one folder or zip per split, with photos in ``image`` and a JSON file for each in ``annos``.
SPLIT_FOLDERS = ("train", "validation", "test")
_DOCUMENT = rf"(?i)(^|/)({'|'.join(SPLIT_FOLDERS)})/annos/[^./][^/]*\.json$"
#: Limit on a JSON file of annotations; 64 of them are in memory at a time.
MAX_DOCUMENT_BYTES = 8 << 20
#: Extracts from a member's name the part by which lists name it, whatever folders the data set is nested in.
LISTED: dict[PhotoPlace, str] = {
    "img": r"(?i)^(?:.*/)?img/(?P<listed>.*)$",  # after the last img/, as downloads have Img/img/
    "splits": r"^(?:.*?/)??(?P<listed>(?:train|val|test)/.*)$",  # from the first one: a class may be named ``test``
    "table": r"^(?P<listed>.*)$",
    "around": r"^(?P<listed>.*)$",
    "split-images": rf"(?i)^(?:.*/)?(?P<listed>(?:{'|'.join(SPLIT_FOLDERS)})/image/[^/]*)$",
}
#: What photos may lie in: archives, and tables of those that lie by themselves.
SOURCES = (*ARCHIVES, TABLE)
#: An archive of photos beside the lists: ``img.zip``, or one of several: ``img-0.zip``, ``img_01.tar``.
_PHOTOS = re.compile(rf"(?P<stem>img(?:[-_.]?\d+)?)(?P<suffix>{'|'.join(map(re.escape, SOURCES))})")
#: An index as a Parquet file. ``archive`` is its number. ``listed``: how lists refer to the member, null if they
#: cannot. ``first``: it is the first of its archive with that name in the lists.
INDEX = pa.schema([("archive", pa.int32()), *MEMBERS, ("listed", pa.string()), ("first", pa.bool_())])
#: Rows of an index file's row groups.
INDEX_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Source:
    """A raw data set: where its lists and photos are. ``lists`` are files beside the photos, None if inside them."""

    name: str
    photos: tuple[str, ...]
    """URLs of archives and folders, in the order in which rows refer to them."""
    place: PhotoPlace
    lists: dict[str, Callable[[], BinaryIO]] | None
    tables: dict[str, Callable[[], BinaryIO]] = dataclasses.field(default_factory=dict)
    """Parquet files of annotations, or the one file of annotations of one's own."""
    below: tuple[str, ...] = ()
    """For ``around``: what precedes the names in each of ``photos`` to make paths relative to ``name``."""
    files: str | None = None
    """Extension of the annotation files, where they lie among the photos."""

    @property
    def lists_alone(self) -> bool:
        """Whether annotations can be read without an index: neither names nor files in an archive belong to them."""
        return self.lists is not None and self.place in ("img", "table")


class Indexed(NamedTuple):
    """An archive whose index has been written to a Parquet file of the schema ``INDEX``, in the archive's order."""

    archive: Archive
    file: str
    files: int
    bytes: int
    documents: int
    """JSON annotations, which are not counted among the files."""
    replaced: int
    """Files that a later one of the same name replaces."""


def find_source(url: str, place: PhotoPlace, files: str | None = None) -> Source:
    """Find what a folder holds, or take a single archive that holds everything. Only folders are listed.

    place: where the layout has its photos. files: the extension of its annotation files, for ``around``.
    Raises UserError if the source cannot be read or holds no photos.
    """
    if url.lower().endswith(ARCHIVES) and storage.is_file(url):
        if place == "table":
            raise UserError(
                f"{public_url(url)} is an archive, but --dataset table needs a folder with labels.json and Parquet "
                "files: name the folder in which they lie beside the archive"
            )
        return Source(public_url(url), (url,), place, None, below=("",), files=files)
    if files is not None and url.lower().endswith(files) and storage.is_file(url):
        return _around_file(url, place)
    if not storage.is_folder(url):
        kinds = "neither a folder nor" if files is None else f"no folder, no {files} file and not"
        raise UserError(f"{public_url(url)} is {kinds} an archive ({', '.join(ARCHIVES)}): check --source")
    entries = _entries(url)
    lists = _lists_beside(entries)
    if place == "table":
        return _table_source(url, entries, lists)
    if place == "around":
        found = [url, *_archives_around(entries)]
        return Source(public_url(url), tuple(found), place, None, below=_below_names(url, found), files=files)
    photos = _photos(url, entries) if place == "img" else _splits(url, entries, place)
    return Source(public_url(url), photos, place, lists)


def index(source: Source, staging: str, folder: str) -> list[Indexed]:
    """Read the index of each archive into a file of the folder, as tasks of Ray if it runs, else one after the other.

    staging: where compressed tars are unpacked. Raises UserError for an archive that cannot be read.
    """
    calls = [
        (
            *(number, url, source.place, staging, storage.join(folder, f"index-{number:05d}.parquet")),
            source.below[number] if source.below else "",
        )
        for number, url in enumerate(source.photos)
    ]
    if len(calls) == 1 or not ray.is_initialized():
        return [write_index(*call) for call in calls]
    task = ray.remote(_told)
    begun = [task.remote(*call) for call in calls]
    told: list[Indexed] = []
    for url, reference in zip(source.photos, begun, strict=True):
        try:
            answer = ray.get(reference)
        except DEATHS as error:
            raise UserError(
                f"the process that read the index of {public_url(url)} died ({type(error).__name__}), maybe for lack "
                "of memory: make more and smaller archives, or use hosts with more memory"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        told.append(answer)
    return told


def _told(*call: Any) -> Indexed | UserError | OSError:
    """Return what ``write_index`` returns, or its error: what is raised in a task comes with a traceback."""
    try:
        return write_index(*call)
    except UserError as error:
        return error
    except (OSError, BotoCoreError) as error:
        return OSError(f"{type(error).__name__}: {error}")


def write_index(
    number: int, url: str, place: PhotoPlace, staging: str, target: str, below: str = ""
) -> Indexed:
    """Read an archive's or a folder's index and write it as a Parquet file.

    below: what precedes the names in it when lists refer to them.
    Raises UserError if the archive is damaged, or holds a JSON file that is too large.
    """
    archive = open_archive(url, staging)
    if archive.kind == "table":
        return _write_table_index(number, archive, target)
    members, replaced = read_index(archive)
    listed = listed_names(members["name"], place)
    if below:
        listed = pc.binary_join_element_wise(below, listed, "")
    documents = 0
    if place == "split-images":
        is_document = pc.match_substring_regex(members["name"], _DOCUMENT)
        documents = pc.sum(is_document).as_py() or 0
        large = members.filter(pc.and_(is_document, pc.greater(members["size"], MAX_DOCUMENT_BYTES)))
        if len(large):
            raise UserError(
                f"{archive.uri(large['name'][0].as_py())} has {large['size'][0].as_py()} bytes, more than the "
                f"{MAX_DOCUMENT_BYTES} allowed for the annotations of one photo: check that the file is intact"
            )
        counted = members.filter(pc.invert(is_document))
    else:
        counted = members
    numbers = pa.array(np.full(len(members), number, np.int32))
    table = pa.table([numbers, *members.columns, listed, _first(listed)], schema=INDEX)
    with temporary_file() as file:
        with temporary_space():
            pq.write_table(table, file, row_group_size=INDEX_ROWS, compression="zstd")
        storage.put_file(file, target)
    size = pc.sum(counted["size"]).as_py() or 0
    return Indexed(archive, target, len(counted), size, documents, replaced)


def _write_table_index(number: int, archive: Archive, target: str) -> Indexed:
    """Write the index of a table of uris, with each photo once. Of several places of one photo the first is taken."""
    with database() as db:
        with registered(db, "photos", PHOTOS, read_table(archive)):
            db.execute(
                "CREATE TABLE members AS SELECT listed, min(name) AS name, arg_min_null(stored, name) AS stored, "
                f"coalesce(arg_min_null(stored, name), {GUESSED_BYTES}) AS size, count(*) > 1 AS several "
                "FROM (SELECT listed, name, min(stored) AS stored FROM photos GROUP BY ALL) GROUP BY listed"
            )
        count, size, several = db.execute(
            "SELECT count(*), coalesce(sum(size), 0), count(*) FILTER (several) FROM members"
        ).fetchall()[0]
        rows = batches(
            db,
            f"SELECT {number} AS archive, name, 0 AS start, size AS stop, stored, size, 0 AS method, NULL AS crc, "
            "NULL AS version, listed, true AS first FROM members",
            INDEX,
        )
        with temporary_file() as file:
            with (
                temporary_space(),
                pq.ParquetWriter(file, INDEX, compression="zstd", use_dictionary=False) as writer,
            ):
                for batch in regrouped(rows, INDEX_ROWS):
                    writer.write_batch(batch)
            storage.put_file(file, target)
    return Indexed(archive, target, count, int(size), 0, several)


def _first(listed: pa.ChunkedArray) -> pa.Array:
    """Return whether each name is the first of its kind; false where it is null."""
    codes = pc.fill_null(listed.combine_chunks().dictionary_encode().indices, -1).to_numpy()
    found, at = np.unique(codes, return_index=True)
    first = np.zeros(len(codes), bool)
    first[at[found >= 0]] = True
    return pa.array(first)


def list_files(
    source: Source,
    indexes: Sequence[Indexed],
    own: OwnOptions = OwnOptions(),  # noqa: B008
) -> ListFiles:
    """Return the annotation files of a source whose archives have been indexed, or of one that needs no index."""
    files = source.lists or {}
    tables = source.tables
    if source.place == "around" and not tables:
        tables = _files_around(source, indexes)
    elif source.lists is None and indexes:
        files = _lists_inside(indexes[0])

    def documents() -> Iterator[tuple[str, bytes]]:
        """Yield the URI and content of each JSON file, read ahead of the parser."""
        for found in indexes:
            if not found.documents:
                continue
            rows = select(found.file, lambda names: pc.match_substring_regex(names, _DOCUMENT))
            contents = ahead(read_members(found.archive, rows.select(MEMBERS.names)), 64)
            for member, data in zip(rows["name"].to_pylist(), contents, strict=True):
                if isinstance(data, BadPhoto):
                    raise UserError(f"{found.archive.uri(member)} cannot be read: {data.detail}")
                yield found.archive.uri(member), data

    photos: list[str] = []
    if source.place in (
        "splits",
        "around",
    ):  # whose folders stand for lists, or where names may mean many a place
        for found in indexes:
            photos += select(found.file, pc.is_valid, "listed")["listed"].to_pylist()
    return ListFiles(source.name, files, photos, documents, tables, own=own)


def select(url: str, wanted: Callable[[pa.ChunkedArray], pa.ChunkedArray], column: str = "name") -> pa.Table:
    """Return the rows of an index that a function chooses by a column; a part of the file is in memory at a time."""
    with storage.open(url) as file:
        parquet = pq.ParquetFile(file)
        parts = (parquet.read_row_group(i) for i in range(parquet.num_row_groups))
        chosen = [part.filter(wanted(part[column])) for part in parts]
    return pa.concat_tables([INDEX.empty_table(), *chosen])


def listed_names(names: pa.ChunkedArray, place: PhotoPlace) -> pa.ChunkedArray:
    """Return the names by which lists refer to members: the part from ``img/`` or from the split's folder on.

    A name without an ``img/`` is taken as relative to it, as in an unpacked ``img`` folder.
    """
    listed = pc.struct_field(pc.extract_regex(names, LISTED[place]), "listed")
    if place != "img":
        return listed
    return pc.binary_join_element_wise("img", pc.coalesce(listed, names), "/")


def _entries(url: str) -> dict[str, storage.Entry]:
    """List a folder by lower-cased name, since downloads differ in capitalisation.

    What macOS writes beside a file, ``._img.zip``, is left out.
    """
    found = reversed(storage.entries(url))
    return {entry.name.lower(): entry for entry in found if not entry.name.startswith("._")}


def _below(entries: dict[str, storage.Entry], name: str) -> dict[str, storage.Entry]:
    """List one of the folders among ``entries``; empty if it does not exist."""
    entry = entries.get(name)
    return _entries(entry.url) if entry is not None and entry.is_folder else {}


def _archives(entries: dict[str, storage.Entry]) -> tuple[str, ...]:
    """Return the URLs of the archives among the entries of a folder, by name."""
    found = [e for name, e in entries.items() if name.endswith(SOURCES) and not e.is_folder]
    return tuple(entry.url for entry in sorted(found))


def _table_source(
    url: str, entries: dict[str, storage.Entry], lists: dict[str, Callable[[], BinaryIO]]
) -> Source:
    """Find Parquet files of annotations, whose photos lie where their uris say, else in archives beside them."""
    found = [
        entry
        for name, entry in sorted(entries.items())
        if name.endswith(TABLE) and not entry.is_folder and not _PHOTOS.fullmatch(name)
    ]
    if not found:
        raise UserError(f"{public_url(url)} has no annotations: --source needs Parquet files of them")
    tables: dict[str, Callable[[], BinaryIO]] = {
        public_url(entry.url): partial(storage.open, entry.url) for entry in found
    }
    photos = tuple(entry.url for entry in found) if has_uris(found[0].url) else _photos(url, entries)
    if (labels := entries.get("labels.json")) is not None:
        lists = {**lists, "/labels.json": partial(storage.open, labels.url)}
    return Source(public_url(url), photos, "table", lists, tables)


def _around_file(url: str, place: PhotoPlace) -> Source:
    """Return the source of one annotation file: the photos are in ``images/`` beside it if there is one, or around it.

    In a folder ``annotations`` beside it means beside that folder.
    """
    folder = posixpath.dirname(url)
    root = posixpath.dirname(folder) if posixpath.basename(folder).lower() == "annotations" else folder
    entries = _entries(root)
    images = entries.get("images")
    photos = [images.url if images is not None and images.is_folder else root, *_archives_around(entries)]
    path = url[len(root) :].lstrip("/")
    return Source(
        public_url(root),
        tuple(photos),
        place,
        {},
        {path: partial(storage.open, url)},
        below=_below_names(root, photos),
    )


def _archives_around(entries: dict[str, storage.Entry]) -> list[str]:
    """Return the archives of a folder, and those in the folders where photos are usually kept."""
    found = [entries]
    found += [_below(entries, name) for name in ("images", "train", "val", "valid", "test")]
    return [
        entry.url
        for below in found
        for name, entry in sorted(below.items())
        if name.endswith(ARCHIVES) and not entry.is_folder
    ]


def _below_names(root: str, urls: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of folders and archives relative to the root, each with a slash; empty for the root itself."""
    paths = [url[len(root) :].strip("/") for url in urls]
    return tuple(f"{path}/" if path else "" for path in paths)


def _files_around(source: Source, indexes: Sequence[Indexed]) -> dict[str, Callable[[], BinaryIO]]:
    """Return the annotation files that lie among the photos, by their path relative to the source."""
    suffix = source.files
    assert suffix is not None
    files: dict[str, Callable[[], BinaryIO]] = {}
    for found in indexes:
        rows = select(found.file, lambda names: pc.ends_with(pc.utf8_lower(names), suffix))
        for row in rows.to_pylist():
            if any(part.startswith(".") or part == "__MACOSX" for part in row["name"].split("/")):
                continue
            opener = partial(open_member, found.archive, row)
            if found.archive.kind == "folder":
                opener = partial(storage.open, found.archive.file(row["name"]))
            files[row["listed"]] = opener
    return dict(sorted(files.items()))


def _splits(url: str, entries: dict[str, storage.Entry], place: PhotoPlace) -> tuple[str, ...]:
    """Return a folder that has one folder per split, or its archives. Raises UserError if it has neither."""
    folders = SPLIT_FOLDERS if place == "split-images" else ("train", "val", "test")
    archives = _archives(entries)
    if any(name in entries and entries[name].is_folder for name in folders):
        return (url,)
    if place == "splits" and (not archives or any(entry.is_folder for entry in entries.values())):
        return (url,)  # with folders around
    if archives:
        return archives
    raise UserError(f"{public_url(url)} has no photos: --source needs a folder train/ or a file train.zip")


def _photos(url: str, entries: dict[str, storage.Entry]) -> tuple[str, ...]:
    """Return the URLs of the photos in the source or its ``Img/``: archives, else the unpacked ``img/``.

    Archives are ``img.zip`` (or a tar, or a table of uris), or several, ``img-0.zip`` and so on, or all that are in the
    folder ``img/``.
    """
    inner = _below(entries, "img")
    for folder in (entries, inner):
        stems: dict[str, str] = {}
        for suffix in SOURCES:  # of img.zip and img.tar the first counts
            for name, entry in sorted(folder.items()):
                match = _PHOTOS.fullmatch(name)
                if match is not None and match["suffix"] == suffix:
                    stems.setdefault(match["stem"], entry.url)
        if stems:
            return tuple(stems[stem] for stem in sorted(stems))
    if (unpacked := inner.get("img", entries.get("img"))) is not None and unpacked.is_folder:
        below = _entries(unpacked.url)
        if not (archives := _archives(below)):
            return (unpacked.url,)
        if folders := [entry.name for entry in below.values() if entry.is_folder]:
            raise UserError(
                f"{public_url(unpacked.url)} holds archives and the folder {folders[0]}: leave either archives or "
                "unpacked photos there"
            )
        return archives
    names = ", ".join(f"img{suffix}" for suffix in SOURCES)
    raise UserError(
        f"{public_url(url)} has no photos: --source or its folder Img/ needs {names} (or several, img-0.zip and so "
        "on) or a folder img/"
    )


def _lists_beside(entries: dict[str, storage.Entry]) -> dict[str, Callable[[], BinaryIO]]:
    files: dict[str, Callable[[], BinaryIO]] = {}
    folders = {"": entries} | {name: _below(entries, name) for name in LIST_FOLDERS}
    for folder, below in folders.items():
        for name, entry in below.items():
            if not entry.is_folder and name.endswith(".txt"):
                files[f"{folder}/{name}"] = partial(storage.open, entry.url)
    return files


def _lists_inside(found: Indexed) -> dict[str, Callable[[], BinaryIO]]:
    files: dict[str, Callable[[], BinaryIO]] = {}
    texts = select(found.file, lambda names: pc.ends_with(pc.utf8_lower(names), ".txt"))
    for text in texts.select(MEMBERS.names).to_pylist():
        folder, file = posixpath.split(text["name"].lower())
        folder = posixpath.basename(folder)
        place = f"{folder if folder in LIST_FOLDERS else ''}/{file}"
        files.setdefault(place, partial(open_member, found.archive, text))
    return files
