"""Find the lists and photos of a raw data set, whatever the folder structure of its download."""

import dataclasses
import posixpath
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from glefld import storage
from glefld.data.prefetch import ahead
from glefld.datasets import PhotoPlace
from glefld.datasets.lists import ListFiles
from glefld.errors import BadPhoto, UserError
from glefld.redaction import public_url
from pipelines.archives import ARCHIVES, Archive, Index, open_archive, open_member, read_index, read_members

LIST_FOLDERS = ("anno", "anno_coarse", "anno_fine", "eval")
#: DeepFashion2's layout: one folder or zip per split, with photos in ``image`` and a JSON file for each in ``annos``.
SPLIT_FOLDERS = ("train", "validation", "test")
_DOCUMENT = rf"(?i)(^|[/:])({'|'.join(SPLIT_FOLDERS)})/annos/[^./][^/]*\.json$"
#: Limit on a JSON file of annotations; 64 of them are in memory at a time.
MAX_DOCUMENT_BYTES = 8 << 20
#: Extracts from a member's name the part by which lists name it, whatever folders the data set is nested in.
LISTED: dict[PhotoPlace, str] = {
    "img": r"(?i)^(?:.*/)?img/(?P<listed>.*)$",  # after the last img/, as downloads have Img/img/
    "splits": r"^(?:.*?/)??(?P<listed>(?:train|val|test)/.*)$",  # from the first one: a class may be named ``test``
    "split-images": rf"(?i)^(?:.*[/:])?(?P<listed>(?:{'|'.join(SPLIT_FOLDERS)})/image/[^/]*)$",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A raw data set: its lists, and the archive of its photos with its index.

    ``members`` has the columns of ``MEMBERS`` and ``listed``, the name by which lists refer to the member (null if
    they cannot). JSON annotations are not among them. ``replaced`` is that of the index.
    """

    lists: ListFiles
    archive: Archive
    members: pa.Table
    replaced: int


def open_source(url: str, staging: str, place: PhotoPlace) -> Source:
    """Open a folder, or a single archive that holds everything.

    staging: where a compressed tar is unpacked. place: where the layout has its photos.
    Raises UserError if the source cannot be read or holds no photos.
    """
    if url.lower().endswith(ARCHIVES) and storage.is_file(url):
        archive = open_archive(url, staging)
        index = read_index(archive)
        return _source(archive.name, _lists_inside(archive, index.members), archive, index, place)
    if not storage.is_folder(url):
        raise UserError(
            f"{public_url(url)} is neither a folder nor an archive ({', '.join(ARCHIVES)}): check --source"
        )
    entries = _entries(url)
    if place == "split-images":
        archive = _by_split(url, entries)
    else:
        archive = open_archive(_find_photos(url, entries) if place == "img" else url, staging)
    return _source(public_url(url), _lists_beside(entries), archive, read_index(archive), place)


def _source(
    name: str,
    files: dict[str, Callable[[], BinaryIO]],
    archive: Archive,
    index: Index,
    place: PhotoPlace,
) -> Source:
    members, replaced = index
    documents = members.slice(0, 0)
    if place == "split-images":
        document = pc.match_substring_regex(members["name"], _DOCUMENT)
        documents, members = members.filter(document), members.filter(pc.invert(document))

    large = documents.filter(pc.greater(documents["size"], MAX_DOCUMENT_BYTES))
    if len(large):
        name, size = large["name"][0].as_py(), large["size"][0].as_py()
        raise UserError(
            f"{archive.uri(name)} has {size} bytes, more than the {MAX_DOCUMENT_BYTES} allowed for the annotations "
            "of one photo: check that the file is intact"
        )

    def read() -> Iterator[tuple[str, bytes]]:
        """Yield the URI and content of each JSON file, read ahead of the parser."""
        contents = ahead(read_members(archive, documents), 64)
        for member, data in zip(documents["name"].to_pylist(), contents, strict=True):
            if isinstance(data, BadPhoto):
                raise UserError(f"{archive.uri(member)} cannot be read: {data.detail}")
            yield archive.uri(member), data

    listed = listed_names(members["name"], place)
    return Source(
        ListFiles(name, files, listed.drop_null().to_pylist(), read),
        archive,
        members.append_column("listed", listed),
        replaced,
    )


def listed_names(names: pa.ChunkedArray, place: PhotoPlace) -> pa.ChunkedArray:
    """Return the names by which lists refer to members: the part from ``img/`` or from the split's folder on.

    A name without an ``img/`` is taken as relative to it, as in an unpacked ``img`` folder.
    """
    listed = pc.struct_field(pc.extract_regex(names, LISTED[place]), "listed")
    if place != "img":
        return listed
    return pc.binary_join_element_wise("img", pc.coalesce(listed, names), "/")


def _entries(url: str) -> dict[str, storage.Entry]:
    """List a folder by lower-cased name, since downloads differ in capitalisation."""
    return {entry.name.lower(): entry for entry in reversed(storage.entries(url))}


def _below(entries: dict[str, storage.Entry], name: str) -> dict[str, storage.Entry]:
    """List one of the folders among ``entries``; empty if it does not exist."""
    entry = entries.get(name)
    return _entries(entry.url) if entry is not None and entry.is_folder else {}


def _by_split(url: str, entries: dict[str, storage.Entry]) -> Archive:
    """Open a folder that has one folder, or one zip, per split, as one archive. Raises UserError if it has neither."""
    if any(name in entries and entries[name].is_folder for name in SPLIT_FOLDERS):
        return Archive(url, public_url(url), "folder")
    if any(f"{name}.zip" in entries for name in SPLIT_FOLDERS):
        return Archive(url, public_url(url), "zips")
    raise UserError(f"{public_url(url)} has no photos: --source needs a folder train/ or a file train.zip")


def _find_photos(url: str, entries: dict[str, storage.Entry]) -> str:
    """Return the URL of ``img.zip`` (or a tar) in the source or its ``Img/``, else of the unpacked ``img/``."""
    inner = _below(entries, "img")
    for folder in (entries, inner):
        for suffix in ARCHIVES:
            if (found := folder.get(f"img{suffix}")) is not None:
                return found.url
    if (unpacked := inner.get("img", entries.get("img"))) is not None and unpacked.is_folder:
        return unpacked.url
    names = ", ".join(f"img{suffix}" for suffix in ARCHIVES)
    raise UserError(
        f"{public_url(url)} has no photos: --source or its folder Img/ needs {names} or a folder img/"
    )


def _lists_beside(entries: dict[str, storage.Entry]) -> dict[str, Callable[[], BinaryIO]]:
    files: dict[str, Callable[[], BinaryIO]] = {}
    folders = {"": entries} | {name: _below(entries, name) for name in LIST_FOLDERS}
    for folder, below in folders.items():
        for name, entry in below.items():
            if not entry.is_folder and name.endswith(".txt"):
                files[f"{folder}/{name}"] = partial(storage.open, entry.url)
    return files


def _lists_inside(archive: Archive, members: pa.Table) -> dict[str, Callable[[], BinaryIO]]:
    files: dict[str, Callable[[], BinaryIO]] = {}
    texts = members.filter(pc.ends_with(pc.utf8_lower(members["name"]), ".txt"))
    for text in texts.to_pylist():
        folder, file = posixpath.split(text["name"].lower())
        folder = posixpath.basename(folder)
        place = f"{folder if folder in LIST_FOLDERS else ''}/{file}"
        files.setdefault(place, partial(open_member, archive, text))
    return files


def match_photos(photos: pa.ChunkedArray, members: pa.Table) -> tuple[pa.Table, int]:
    """Return the member of each listed photo (null if missing), and how many were matched by ignoring case."""
    keys = members["listed"]
    exact = pc.index_in(photos, value_set=keys)
    # The capitalisation of folders differs between the benchmark's lists and its archive.
    loose = pc.index_in(pc.utf8_lower(photos), value_set=pc.utf8_lower(keys))
    capitals = pc.sum(pc.and_(pc.is_null(exact), pc.is_valid(loose))).as_py() or 0
    return members.take(pc.coalesce(exact, loose)), capitals
