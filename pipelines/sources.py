"""Finding the lists and the photos of a raw data set, wherever its download has put them."""

import dataclasses
import posixpath
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from glefld import storage
from glefld.ahead import ahead
from glefld.datasets.lists import ListFiles
from glefld.photos import BadPhoto
from pipelines.archives import (
    ARCHIVES,
    Archive,
    open_archive,
    open_member,
    public_url,
    read_index,
    read_members,
)

LIST_FOLDERS = ("anno", "anno_coarse", "anno_fine", "eval")
#: DeepFashion2's layout: a folder or zip a split, with the photos in ``image`` and a JSON for each in ``annos``.
SPLIT_FOLDERS = ("train", "validation", "test")
_DOCUMENT = rf"(?i)(^|[/:])({'|'.join(SPLIT_FOLDERS)})/annos/[^./][^/]*\.json$"
_PHOTO_OF_SPLIT = rf"(?i)^(?:.*[/:])?(?P<photo>(?:{'|'.join(SPLIT_FOLDERS)})/image/[^/]*)$"


@dataclasses.dataclass(frozen=True)
class Source:
    """A raw data set: its list files, and the index of the archive that has its photos, without their JSONs."""

    lists: ListFiles
    archive: Archive
    members: pa.Table


def open_source(url: str, staging: str) -> Source:
    """A folder, or one archive that holds everything; ``staging`` is where a compressed tar is unpacked.

    A folder has ``img.zip`` or its like, or a folder or zip a split. ValueError if it has no photos.
    """
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    if url.lower().endswith(ARCHIVES) and fs.isfile(path):
        archive = open_archive(url, staging)
        members = read_index(archive)
        return _with_documents(_lists_inside(archive, members), archive, members)
    if not fs.isdir(path):
        raise ValueError(f"{public_url(url)} is neither a folder nor one archive ({', '.join(ARCHIVES)})")
    entries = _entries(url)
    archive = _by_split(url, entries) or open_archive(_find_photos(url, entries), staging)
    return _with_documents(_lists_beside(url, entries), archive, read_index(archive))


def _entries(url: str) -> dict[str, dict[str, Any]]:
    """What lies directly in a folder, by lower-cased name, with its URL: downloads differ in capitals."""
    fs, path = storage.filesystem(url)
    entries = {}
    for entry in sorted(fs.ls(path, detail=True), key=lambda e: e["name"], reverse=True):
        name = posixpath.basename(entry["name"].rstrip("/"))
        entries[name.lower()] = {**entry, "url": storage.join(url, name)}
    return entries


def _by_split(url: str, entries: dict[str, dict[str, Any]]) -> Archive | None:
    """The folder as an archive if it has a folder, or else a zip, a split; None if it has neither, or an ``img``."""
    if any(name.removesuffix(suffix) == "img" for name in entries for suffix in ("", *ARCHIVES)):
        return None
    if any(entries.get(name, {}).get("type") == "directory" for name in SPLIT_FOLDERS):
        return Archive(url, public_url(url), "folder")
    if any(f"{name}.zip" in entries for name in SPLIT_FOLDERS):
        return Archive(url, public_url(url), "zips")
    return None


def _find_photos(url: str, entries: dict[str, dict[str, Any]]) -> str:
    """``img.zip`` (or a tar) in the source or in its ``Img/``, else the unpacked ``img/`` or ``Img/img/``."""
    inner = _entries(entries["img"]["url"]) if entries.get("img", {}).get("type") == "directory" else {}
    for folder in (entries, inner):
        for suffix in ARCHIVES:
            if (found := folder.get(f"img{suffix}")) is not None:
                return found["url"]
    if (unpacked := inner.get("img", entries.get("img"))) is not None and unpacked["type"] == "directory":
        return unpacked["url"]
    names = ", ".join(f"img{suffix}" for suffix in ARCHIVES)
    raise ValueError(
        f"{public_url(url)} has no photos: {names} or a folder img was expected there or in Img/, or train.zip "
        "or a folder train"
    )


def _lists_beside(url: str, entries: dict[str, dict[str, Any]]) -> ListFiles:
    files: dict[str, Callable[[], BinaryIO]] = {}
    folders = {"": entries}
    for name in LIST_FOLDERS:
        if entries.get(name, {}).get("type") == "directory":
            folders[name] = _entries(entries[name]["url"])
    for folder, below in folders.items():
        for name, entry in below.items():
            if entry["type"] == "file" and name.endswith(".txt"):
                fs, path = storage.filesystem(entry["url"])
                files[f"{folder}/{name}"] = partial(fs.open, path, "rb")
    return ListFiles(public_url(url), files)


def _lists_inside(archive: Archive, members: pa.Table) -> ListFiles:
    files: dict[str, Callable[[], BinaryIO]] = {}
    texts = members.filter(pc.ends_with(pc.utf8_lower(members["name"]), ".txt"))
    for text in texts.to_pylist():
        folder, file = posixpath.split(text["name"].lower())
        folder = posixpath.basename(folder)
        place = f"{folder if folder in LIST_FOLDERS else ''}/{file}"
        files.setdefault(place, partial(open_member, archive, text))
    return ListFiles(archive.name, files)


def _with_documents(lists: ListFiles, archive: Archive, members: pa.Table) -> Source:
    """The source with its annotations of single photos: neighbours are read together, and ahead of the parser."""
    document = pc.match_substring_regex(members["name"], _DOCUMENT)
    found = members.filter(document)

    def read() -> Iterator[tuple[str, bytes]]:
        contents = ahead(read_members(archive, found), 64)
        for member, data in zip(found["name"].to_pylist(), contents, strict=True):
            if isinstance(data, BadPhoto):
                raise ValueError(f"{archive.uri(member)} cannot be read: {data.detail}")
            yield archive.uri(member), data

    photos = members.filter(pc.invert(document))
    return Source(dataclasses.replace(lists, documents=read), archive, photos)


def match_photos(photos: pa.ChunkedArray, members: pa.Table) -> tuple[pa.Table, int]:
    """The member of each listed photo (null where there is none), and how many differ in capitals only.

    A photo is listed as ``img/...``. That may lie deeper in an archive; an unpacked folder is that ``img``.
    Or it is listed as ``train/image/...``, which may lie deeper too.
    """
    at_img = pc.extract_regex(members["name"], r"(?i)^(?:.*/)?img/(?P<below>.*)$")
    below = pc.coalesce(pc.struct_field(at_img, "below"), members["name"])
    of_split = pc.struct_field(pc.extract_regex(members["name"], _PHOTO_OF_SPLIT), "photo")
    keys = pc.coalesce(of_split, pc.binary_join_element_wise("img", below, "/"))
    exact = pc.index_in(photos, value_set=keys)
    # Folder capitals differ between the benchmark's lists and its archive.
    loose = pc.index_in(pc.utf8_lower(photos), value_set=pc.utf8_lower(keys))
    capitals = pc.sum(pc.and_(pc.is_null(exact), pc.is_valid(loose))).as_py() or 0
    return members.take(pc.coalesce(exact, loose)), capitals
