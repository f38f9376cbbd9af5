"""Every path is a URL: a local path and ``s3://bucket/key`` take the same code (fsspec).

Credentials and the endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).
A file is either whole or not there: local files are renamed into place, objects appear when their upload ends.
"""

import json
import os
import posixpath
import shutil
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it; ValueError for a scheme that fsspec does not know."""
    try:
        fs, path = fsspec.core.url_to_fs(os.fspath(url))
    except ImportError as error:
        raise ValueError(f"{url}: reading this kind of URL needs another package ({error})") from error
    return fs, path


def arrow_filesystem(url: str) -> pyarrow.fs.FileSystem:
    """The same file system for libraries that want pyarrow's."""
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem(url)[0]))


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def join(url: str, *parts: str) -> str:
    return posixpath.join(url.rstrip("/"), *parts) if parts else url


def absolute(url: str) -> str:
    """The same place named so that it means the same from every directory."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    fs.invalidate_cache()
    return fs.exists(path)


def folders(url: str) -> list[str]:
    """Names of the folders right below a URL; none where it is not there."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    if not fs.isdir(path):
        return []
    found = fs.ls(path, detail=True)
    return sorted(posixpath.basename(e["name"].rstrip("/")) for e in found if e["type"] == "directory")


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    return fs.cat_file(path)


def read_json(url: str) -> Any:
    """ValueError if the file is not JSON."""
    try:
        return json.loads(read_bytes(url))
    except json.JSONDecodeError as error:
        raise ValueError(f"{url} is damaged: {error}") from error


def put(local: str | Path, url: str) -> None:
    """Copy a finished local file to a URL, so that it is there whole or not at all."""
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        fs.put_file(os.fspath(local), path)
        fs.invalidate_cache()
        return
    # The leading underscore keeps readers of the folder out should the process die before the rename.
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    part = Path(path).with_name(f"_part-{uuid.uuid4().hex}")
    try:
        shutil.copyfile(local, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(url: str, data: bytes) -> None:
    """Write a small file whole or not at all."""
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, data)
        fs.invalidate_cache()
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    part = Path(path).with_name(f"_part-{uuid.uuid4().hex}")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(url: str, value: Any) -> None:
    write_bytes(url, (json.dumps(value, indent=2) + "\n").encode())


def remove_tree(url: str) -> None:
    """Delete a folder and all below it; nothing happens where there is none."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    if fs.exists(path):
        fs.rm(path, recursive=True)
