"""Files by URL: a local path and ``s3://bucket/key`` take the same code (fsspec).

Credentials and the endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).
A file is either whole or not there: local files are renamed into place, objects appear when their upload ends.
Requests that fail, stall or are throttled are retried with growing pauses by botocore and s3fs.
"""

import contextlib
import hashlib
import json
import os
import posixpath
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from fsspec.config import conf
from fsspec.implementations.local import LocalFileSystem

from glefld.errors import UserError

#: A URL within a text; another one that follows without a space is its own.
_URL = re.compile(r"[a-z][a-z0-9+.-]*://(?:(?![a-z][a-z0-9+.-]*://)\S)+", re.IGNORECASE)


def s3_options() -> dict[str, Any]:
    """How object storage is asked: s3fs' options, with a user's own (fsspec's configuration, ``FSSPEC_S3``) on top.

    s3fs tries broken reads and throttled requests five times beyond botocore's retries.
    """
    config = {
        "retries": {
            "mode": os.environ.get("AWS_RETRY_MODE", "standard"),
            "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "6")),
        },
        "connect_timeout": 5,
        "read_timeout": 15,  # a stalled connection is given up and tried again
        # The checksums that newer clients add by themselves are refused by several servers (HTTP 411).
        "request_checksum_calculation": os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
    }
    own = conf.get("s3", {})
    return {**own, "config_kwargs": config | own.get("config_kwargs", {})}


def is_s3(url: str) -> bool:
    return os.fspath(url).startswith(("s3://", "s3a://"))


def arrow_filesystem(url: str) -> pyarrow.fs.FileSystem:
    """The same file system for libraries that want pyarrow's."""
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(_split(url)[0]))


def is_local(url: str) -> bool:
    return isinstance(_split(url)[0], LocalFileSystem)


def require_access(url: str) -> None:
    """UserError, in one line that says what to do, unless a URL's bucket on S3 can be listed.

    Other places are not checked. Nothing but the bucket needs to exist yet.
    """
    fs, path = _split(url)
    if not is_s3(url):
        return
    bucket, prefix, _ = fs.split_path(path)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
    try:
        fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no bucket {bucket} at {endpoint}: make it, or check its name and AWS_ENDPOINT_URL"
        ) from error
    except PermissionError as error:
        raise UserError(
            f"{endpoint} refuses access to the bucket {bucket} ({error}): check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and what they may do"
        ) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise UserError(
            f"no credentials for the bucket {bucket}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except (NoConnectionError, HTTPClientError) as error:
        raise UserError(
            f"{endpoint} cannot be reached: check AWS_ENDPOINT_URL and the network ({error})"
        ) from error
    except (OSError, ClientError, BotoCoreError) as error:
        raise UserError(f"the bucket {bucket} at {endpoint} cannot be used: {error}") from error


def join(url: str, *parts: str) -> str:
    return posixpath.join(url.rstrip("/"), *parts) if parts else url


def absolute(url: str) -> str:
    """The same place, named so that it means the same in every working directory."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def local_path(url: str) -> str:
    """The path within the URL's filesystem: of a local URL, the file's absolute path."""
    return _split(url)[1]


def exists(url: str) -> bool:
    fs, path = _fresh(url)
    return fs.exists(path)


def is_file(url: str) -> bool:
    fs, path = _fresh(url)
    return fs.isfile(path)


def is_folder(url: str) -> bool:
    fs, path = _fresh(url)
    return fs.isdir(path)


def size(url: str) -> int:
    """Bytes of a file; FileNotFoundError if there is none."""
    fs, path = _fresh(url)
    return fs.size(path)


class Entry(NamedTuple):
    """What lies directly in a folder."""

    name: str
    url: str
    is_folder: bool
    size: int


def entries(url: str) -> list[Entry]:
    """What lies directly in a folder, by name; nothing if the folder is not there."""
    fs, path = _fresh(url)
    if not fs.isdir(path):
        return []
    found = []
    for info in fs.ls(path, detail=True):
        name = posixpath.basename(info["name"].rstrip("/"))
        found.append(Entry(name, join(url, name), info["type"] == "directory", info.get("size") or 0))
    return sorted(found)


def find(url: str) -> dict[str, int]:
    """Path below the URL and size in bytes of every file at any depth; nothing if the folder is not there."""
    fs, path = _fresh(url)
    if not fs.exists(path):
        return {}
    return {name[len(path) :].lstrip("/"): info["size"] for name, info in fs.find(path, detail=True).items()}


def open(url: str, **options: Any) -> BinaryIO:
    """A file to read, as a context manager. ``options`` are those of fsspec's ``open``."""
    fs, path = _split(url)
    return cast(BinaryIO, fs.open(path, "rb", **options))


def read_bytes(url: str) -> bytes:
    fs, path = _split(url)
    # s3fs repeats a read that breaks off, but not where it reads the parts of a large object side by side.
    return fs.cat_file(path, **({"max_concurrency": 1} if is_s3(url) else {}))


def read_ranges(
    urls: Sequence[str], starts: Sequence[int], stops: Sequence[int]
) -> list[bytes | BaseException]:
    """Bytes [start, stop) of each file, fetched side by side, or what went wrong. All on one filesystem."""
    fs = _split(urls[0])[0]
    paths = [_split(url)[1] for url in urls]
    return fs.cat_ranges(paths, list(starts), list(stops), on_error="return")


def read_json(url: str) -> Any:
    """UserError if the file is not JSON."""
    try:
        return json.loads(read_bytes(url))
    except json.JSONDecodeError as error:
        raise UserError(f"{url} is damaged: {error}") from error


def put(local: str | Path, url: str) -> None:
    """Copy a finished local file to a URL, so that it is there whole or not at all."""
    fs, path = _split(url)
    if isinstance(fs, LocalFileSystem):
        with _part(path) as part:
            shutil.copyfile(local, part)
        return
    fs.put_file(os.fspath(local), path)
    fs.invalidate_cache()


def put_file(file: IO[bytes], url: str) -> None:
    """As ``put``, for an open file that may have no name (``tempfile.TemporaryFile``)."""
    file.flush()
    # fsspec uploads files by name; this one is every open file's.
    put(f"/dev/fd/{file.fileno()}", url)


def write_bytes(url: str, data: bytes) -> None:
    """Write a small file whole or not at all."""
    fs, path = _split(url)
    if isinstance(fs, LocalFileSystem):
        with _part(path) as part:
            part.write_bytes(data)
        return
    fs.pipe_file(path, data)
    fs.invalidate_cache()


@contextlib.contextmanager
def _part(path: str) -> Iterator[Path]:
    """A new file beside a local path, renamed to it at the block's end."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # The leading underscore hides the file from readers of the folder if the process dies before the rename.
    part = Path(path).with_name(f"_part-{uuid.uuid4().hex}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_unfinished(url: str) -> None:
    """Delete what killed processes had begun to write below a folder. Object storage keeps no such beginnings."""
    if is_local(url):
        for part in Path(local_path(url)).glob("**/_part-*"):
            part.unlink(missing_ok=True)


def put_verified(local: str | Path, url: str) -> dict[str, Any]:
    """As ``put``; returns the file's ``digest``.

    OSError if it reads back differently: some clients lose a failed write silently.
    """
    put(local, url)
    expected = digest(Path(local).read_bytes())
    if not exists(url) or digest(read_bytes(url)) != expected:
        raise OSError(f"{url} was written but reads back differently")
    return expected


def digest(data: bytes) -> dict[str, Any]:
    """Size and SHA-256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def json_bytes(value: Any) -> bytes:
    """A JSON file's content, indented for people."""
    return (json.dumps(value, indent=2) + "\n").encode()


def write_json(url: str, value: Any) -> None:
    write_bytes(url, json_bytes(value))


def remove_tree(url: str) -> None:
    """Delete a folder and everything below it; nothing happens if it is not there."""
    fs, path = _fresh(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def public_url(url: str) -> str:
    """The URL without user name, password, query and fragment, each of which may hold a secret."""
    if "://" not in url:
        return url
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
    except ValueError:  # not a URL, and so not known where a password would stand
        return f"{scheme}://..."
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def redacted(value: Any) -> Any:
    """The same value with every URL in its texts replaced by its ``public_url``."""
    if isinstance(value, dict):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    if isinstance(value, str):
        return _URL.sub(lambda match: public_url(match[0]), value)
    return value


def _split(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URL and the path in it; UserError for a scheme that fsspec does not know."""
    try:
        fs, path = fsspec.core.url_to_fs(os.fspath(url), **(s3_options() if is_s3(url) else {}))
    except (ImportError, ValueError) as error:
        raise UserError(f"{public_url(url)}: this kind of URL cannot be read ({error})") from error
    return fs, path


def _fresh(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """As ``_split``, without what the filesystem remembers of its listings: others write there too."""
    fs, path = _split(url)
    fs.invalidate_cache()
    return fs, path
