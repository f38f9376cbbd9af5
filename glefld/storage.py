"""Files by URL: the same functions for local paths, ``s3://bucket/key`` and what else fsspec opens.

Credentials and the endpoint come from the environment (of S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL).
Writes are atomic: local files are renamed into place, and an object appears only when its upload is complete.
botocore and s3fs retry requests that fail, stall or are throttled, with exponential back-off.

Functions raise OSError or a botocore error when the storage fails, and UserError for a URL with an unknown scheme.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

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
from glefld.redaction import public_url, why
from glefld.temporary import temporary_file, temporary_space

logger = logging.getLogger(__name__)

#: Matches the name of a temporary file, which no other program gives.
_PART = re.compile("_part-[0-9a-f]{32}")
#: Matches a chain of filesystems, such as ``simplecache::s3://bucket/key``. Elsewhere colons belong to a file's name.
_CHAIN = re.compile("[a-z0-9]+::")
#: Kinds of URL, and the package that each needs and that is not installed with this one.
PACKAGES = dict.fromkeys(("gs", "gcs"), "gcsfs") | dict.fromkeys(("abfs", "abfss", "az"), "adlfs")
#: How object storage refuses a range that begins at the end of an object or behind it, as any of an empty one does.
_BEHIND_END = ("InvalidRange", "416")


def s3_options() -> dict[str, Any]:
    """Return the options for s3fs. The user's fsspec configuration (such as ``FSSPEC_S3``) takes precedence.

    On top of botocore's retries, s3fs retries broken reads and throttled requests five times.
    """
    config = {
        "retries": {
            "mode": os.environ.get("AWS_RETRY_MODE", "standard"),
            "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "6")),
        },
        "connect_timeout": 5,
        "read_timeout": 15,  # a stalled request is then retried
        # Several servers reject the checksums that newer clients add by default (HTTP 411).
        "request_checksum_calculation": os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
    }
    own = conf.get("s3", {})
    return {**own, "config_kwargs": config | own.get("config_kwargs", {})}


def is_s3(url: str) -> bool:
    """Return whether the URL is on S3 or another object storage that speaks its protocol."""
    return os.fspath(url).startswith(("s3://", "s3a://"))


def is_http(url: str) -> bool:
    return os.fspath(url).startswith(("http://", "https://"))


def arrow_filesystem(url: str) -> pyarrow.fs.FileSystem:
    """Return the URL's filesystem as a pyarrow filesystem."""
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(_split(url)[0]))


def is_local(url: str) -> bool:
    """Return whether the URL is a path or a URL on this machine."""
    return isinstance(_split(url)[0], LocalFileSystem)


def require_access(url: str) -> None:
    """Raise UserError unless the bucket of an S3 URL can be listed, or the server of an HTTP URL answers.

    Neither the key nor the file needs to exist. Other kinds of URL are not checked.
    """
    fs, path = _split(url)
    if is_http(url):
        _require_answer(fs, path)
    if not is_s3(url):
        return
    bucket, prefix, _ = fs.split_path(path)
    if re.search(r"^(?!arn:)[^@]*:|@", bucket):
        raise UserError(
            f"{public_url(url)}: a user and a password in an S3 URL are not used: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    endpoint = public_url(given) or "Amazon S3"
    try:
        fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no bucket {bucket} at {endpoint}: create it, or check its name and AWS_ENDPOINT_URL"
        ) from error
    except PermissionError as error:
        raise UserError(
            f"{endpoint} refuses access to the bucket {bucket}{why(given, error)}: check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and the permissions of that key"
        ) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise UserError(
            f"no credentials for the bucket {bucket}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except (NoConnectionError, HTTPClientError) as error:
        raise UserError(
            f"{endpoint} cannot be reached: check AWS_ENDPOINT_URL and the network{why(given, error)}"
        ) from error
    except (OSError, ClientError, BotoCoreError) as error:
        raise UserError(f"the bucket {bucket} at {endpoint} cannot be used{why(given, error)}") from error


def _require_answer(fs: fsspec.AbstractFileSystem, url: str) -> None:
    try:
        fs.info(url)
    except FileNotFoundError as error:  # which fsspec makes of any failure
        status = getattr(error.__cause__, "status", None)
        if status is None:
            raise UserError(
                f"{public_url(url)} cannot be reached: check the address and the network{why(url, error.__cause__)}"
            ) from error
        if status not in (403, 404):  # a folder's page may be absent where its files are not
            raise UserError(
                f"{public_url(url)} cannot be read: its server answers with status {status}"
            ) from error


def join(url: str, *parts: str) -> str:
    """Append parts to a path or URL, with one slash before each."""
    return posixpath.join(url.rstrip("/"), *parts) if parts else url


def absolute(url: str) -> str:
    """Return a local path as an absolute path, with ``~`` expanded. URLs are returned unchanged."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def local_path(url: str) -> str:
    """Return the path within the URL's filesystem. For a local URL this is the absolute path."""
    return _split(url)[1]


def exists(url: str) -> bool:
    """Return whether there is a file or folder. On object storage a folder is any prefix of an object."""
    fs, path = filesystem(url)
    return fs.exists(path)


def is_file(url: str) -> bool:
    """Return whether there is a file."""
    fs, path = filesystem(url)
    return fs.isfile(path)


def is_folder(url: str) -> bool:
    """Return whether there is a folder, which on object storage is any prefix of an object."""
    fs, path = filesystem(url)
    return fs.isdir(path)


class Entry(NamedTuple):
    """A file or folder directly inside a folder."""

    name: str
    url: str
    is_folder: bool
    size: int


def entries(url: str) -> list[Entry]:
    """List a folder, not recursively, sorted by name. Empty if the folder does not exist."""
    fs, path = filesystem(url)
    if not fs.isdir(path):
        return []
    found = []
    for info in fs.ls(path, detail=True):
        name = posixpath.basename(info["name"].rstrip("/"))
        found.append(Entry(name, join(url, name), info["type"] == "directory", info.get("size") or 0))
    return sorted(found)


class State(NamedTuple):
    """A file's size in bytes, and its version: its ETag or time of change, empty if the filesystem has neither."""

    size: int
    version: str


def state(url: str) -> State:
    """Return the state of a file. Raises FileNotFoundError if it does not exist."""
    fs, path = filesystem(url)
    return state_of(fs.info(path))


def state_of(info: dict[str, Any]) -> State:
    """Return the state of a file of which its filesystem says this."""
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return State(info["size"], str(version).strip('"'))


def find(url: str) -> dict[str, State]:
    """Return the state of every file below the URL, by path relative to it. Empty if it does not exist."""
    fs, path = filesystem(url)
    if not fs.exists(path):
        return {}
    return {
        name[len(path) :].lstrip("/"): state_of(info) for name, info in fs.find(path, detail=True).items()
    }


def open(url: str, **options: Any) -> BinaryIO:
    """Open a file for reading. ``options`` are passed to fsspec's ``open``."""
    fs, path = _split(url)
    return cast(BinaryIO, fs.open(path, "rb", **options))


def read_bytes(url: str) -> bytes:
    """Read a whole file. Raises FileNotFoundError if it does not exist."""
    fs, path = _split(url)
    # s3fs retries an interrupted read, but not when it fetches the parts of a large object concurrently.
    return fs.cat_file(path, **({"max_concurrency": 1} if is_s3(url) else {}))


def read_ranges(
    urls: Sequence[str], starts: Sequence[int], stops: Sequence[int]
) -> list[bytes | BaseException]:
    """Fetch bytes [start, stop) of each file concurrently. A failed range is returned as its exception.

    What lies behind a file's end is left out, also where a server refuses such a range. An HTTP server's answers are
    FileNotFoundError, PermissionError or another OSError. All URLs must be on the same filesystem.
    """
    fs = _split(urls[0])[0]
    paths = [_split(url)[1] for url in urls]
    found = fs.cat_ranges(paths, list(starts), list(stops), on_error="return")
    return [
        _answer(url, data) if isinstance(data, BaseException) else data
        for url, data in zip(urls, found, strict=True)
    ]


def _answer(url: str, error: BaseException) -> bytes | BaseException:
    """Return what a server's refusal of a range means."""
    if isinstance(error.__cause__, ClientError):
        # The same OSError stands for many answers, and a bucket that is not there for a missing file.
        code = error.__cause__.response.get("Error", {}).get("Code")
        if code in _BEHIND_END:
            return b""
        return OSError(f"{public_url(url)}: {error}") if code == "NoSuchBucket" else error
    if (code := getattr(error, "code", None)) is not None and url.startswith(("gs://", "gcs://")):
        return b"" if int(code) == 416 else OSError(f"{public_url(url)}: {error}")  # gcsfs' own is none
    gone = isinstance(error, FileNotFoundError)  # with the URL's secrets
    if not is_http(url) or (isinstance(error, OSError) and not gone) or not isinstance(error, Exception):
        return error
    status = 404 if gone else getattr(error, "status", None)
    if status == 416:
        return b""
    kind = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}
    words = f"status {status}" if status else type(error).__name__
    answer = kind.get(status or 0, OSError)(f"{public_url(url)}: {words}")
    answer.__cause__ = error
    return answer


def read_json(url: str) -> Any:
    """Read a JSON file. Raises UserError if it is not valid JSON."""
    return parse_json(read_bytes(url), url)


def parse_json(data: bytes, name: str) -> Any:
    """Parse JSON. Raises UserError, which names the file, if it is not valid JSON."""
    try:
        return json.loads(data)
    except (
        ValueError,
        RecursionError,
    ) as error:  # bad JSON, bad UTF-8, an endless number, or nesting too deep
        raise UserError(f"{name} is not valid JSON: {error}") from error


def put(local: str | Path, url: str) -> None:
    """Copy a local file to a URL atomically."""
    fs, path = _split(url)
    if isinstance(fs, LocalFileSystem):
        with _part(path) as part:
            shutil.copyfile(local, part)
        return
    fs.put_file(os.fspath(local), path)
    fs.invalidate_cache()


def put_file(file: IO[bytes], url: str) -> None:
    """Like ``put``, for an open temporary file, which may be unnamed."""
    with temporary_space():
        file.flush()
    # fsspec uploads files by name, and every open file has one under /dev/fd.
    put(f"/dev/fd/{file.fileno()}", url)


def copy(url: str, target: str) -> None:
    """Copy a file from one URL to another atomically, without holding it in memory."""
    with temporary_file() as local, open(url) as file:
        while data := file.read(8 << 20):
            with temporary_space():
                local.write(data)
        put_file(local, target)


def write_bytes(url: str, data: bytes) -> None:
    """Write a small file atomically."""
    fs, path = _split(url)
    if isinstance(fs, LocalFileSystem):
        with _part(path) as part:
            part.write_bytes(data)
        return
    fs.pipe_file(path, data)
    fs.invalidate_cache()


@contextlib.contextmanager
def _part(path: str) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to ``path`` when the block succeeds."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # If the process dies before the rename, readers of the folder skip the file for its leading underscore.
    part = Path(path).with_name(f"_part-{uuid.uuid4().hex}")  # as _PART matches
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as for a full disk
            error.filename = path
        raise
    finally:
        part.unlink(missing_ok=True)


def is_unfinished(name: str) -> bool:
    """Return whether a local file of this name is still being written, or was when its process died."""
    return _PART.fullmatch(name) is not None


def remove_unfinished(url: str) -> None:
    """Delete the temporary files that killed processes left in a local folder, but not in the folders below it.

    Object storage keeps none.
    """
    if is_local(url):
        for part in Path(local_path(url)).glob("_part-*"):
            if is_unfinished(part.name):
                part.unlink(missing_ok=True)


def create(url: str, data: bytes) -> None:
    """Write a small file that does not exist yet. Of several processes that try at the same time, one succeeds.

    On object storage this is a conditional write (``If-None-Match``). No two calls may write the same data.
    Raises FileExistsError if the file exists.
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("xb") as file:
            file.write(data)
        return
    try:
        fs.pipe_file(path, data, mode="create")
    except (OSError, ClientError):
        # The write may have succeeded all the same: its answer was lost, and when it was repeated, the file was there.
        if not exists(url):
            raise
    if read_bytes(url) != data:
        raise FileExistsError(f"{url} exists already")


def write_verified(url: str, data: bytes) -> dict[str, Any]:
    """Like ``write_bytes``, but read the file back and return its ``digest``.

    Raises OSError if the content differs: some clients lose a failed write silently.
    """
    write_bytes(url, data)
    expected = digest(data)
    if not exists(url) or digest(read_bytes(url)) != expected:
        raise OSError(f"{url} was written but reads back differently")
    return expected


def put_verified(local: str | Path, url: str) -> dict[str, Any]:
    """``write_verified`` of a local file's content."""
    return write_verified(url, Path(local).read_bytes())


def digest(data: bytes) -> dict[str, Any]:
    """Return the size in bytes and the SHA-256 hash."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def json_bytes(value: Any) -> bytes:
    """Serialise to indented JSON."""
    return (json.dumps(value, indent=2) + "\n").encode()


def write_json(url: str, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_bytes(url, json_bytes(value))


def remove_file(url: str) -> None:
    """Delete a file, if it exists."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm_file(path)


def remove_empty_folder(url: str) -> None:
    """Delete a local folder if it is empty. Object storage has no folders."""
    if is_local(url):
        with contextlib.suppress(OSError):
            os.rmdir(local_path(url))


def missing_folders(url: str) -> list[str]:
    """Return the local folder and those above it, from the inside out, that do not exist yet."""
    if not is_local(url):
        return []
    path = Path(local_path(url))
    return [str(folder) for folder in (path, *path.parents) if not folder.exists()]


def remove_tree(url: str) -> None:
    """Delete a folder and everything below it, if it exists."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def refuse_http(url: str, option: str) -> None:
    """Raise UserError for an HTTP URL, as a place to write to. Its server is not asked."""
    if is_http(url):
        raise UserError(
            f"{option} {public_url(url)}: HTTP is for reading only, give a path or s3://bucket/prefix"
        )


def require_writable(url: str, option: str, *, folder: bool) -> None:
    """Raise UserError unless a local file can be written at the URL or, with ``folder``, files below it.

    Nothing is created. Object storage is not asked: it tells only when something is written.
    """
    refuse_http(url, option)
    if not is_local(url):
        return
    path = above = Path(local_path(url))
    try:
        if path.exists() and path.is_dir() != folder:
            kinds = ("file", "folder") if folder else ("folder", "file")
            raise UserError(f"{option} {url} is a {kinds[0]}: give a {kinds[1]}")
        while not above.exists() or above.is_file():
            above = above.parent
            if above.is_file():
                raise UserError(f"{option} {url} lies in {above}, which is a file: give another place")
        with tempfile.TemporaryFile(dir=above):  # it has no name; only the attempt shows what is allowed
            pass
    except OSError as error:
        raise UserError(f"{option} {url} cannot be written ({error.strerror}): give another place") from error


def _split(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the URL's filesystem and the path within it.

    Raises UserError for a scheme that fsspec cannot open, and for a path that no row could record.
    """
    try:
        os.fspath(url).encode()
    except UnicodeEncodeError:
        raise UserError(f"the path {url!r} is not UTF-8: rename the file or folder") from None
    package = PACKAGES.get(os.fspath(url).partition("://")[0])
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"{public_url(url)} needs the package {package}: install it on each machine")
    try:
        fs, path = _opened(os.fspath(url))
    except Exception as error:  # some filesystems connect here, and raise what their libraries do
        raise UserError(f"{public_url(url)}: this kind of URL cannot be read{why(url, error)}") from error
    return fs, path


def _opened(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    options = s3_options() if is_s3(url) else {}
    if "::" not in url or _CHAIN.match(url):
        return fsspec.core.url_to_fs(url, **options)
    # fsspec would take what stands before the colons for the whole name.
    kind = fsspec.get_filesystem_class(fsspec.core.split_protocol(url)[0] or "file")
    return kind(**kind._get_kwargs_from_urls(url), **options), kind._strip_protocol(url)


def text(name: str) -> str:
    """Return a file's name with each byte that is not UTF-8 as an escape such as ``\\xe9``."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the URL's filesystem and the path within it.

    The filesystem's cached listings are dropped: other processes write there too.
    """
    fs, path = _split(url)
    fs.invalidate_cache()
    return fs, path
