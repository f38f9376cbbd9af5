"""Every path is a URL: a local path and ``s3://bucket/key`` take the same code (fsspec).

Credentials and the endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).
A file is either whole or not there: local files are renamed into place, objects appear when their upload ends.
Requests that fail, stall or are throttled are tried again, with growing pauses, by botocore and s3fs.
"""

import hashlib
import json
import os
import posixpath
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

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


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it; UserError for a scheme that fsspec does not know."""
    try:
        fs, path = fsspec.core.url_to_fs(os.fspath(url), **(s3_options() if is_s3(url) else {}))
    except ImportError as error:
        raise UserError(f"{url}: reading this kind of URL needs another package ({error})") from error
    return fs, path


def is_s3(url: str) -> bool:
    return os.fspath(url).startswith(("s3://", "s3a://"))


def arrow_filesystem(url: str) -> pyarrow.fs.FileSystem:
    """The same file system for libraries that want pyarrow's."""
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem(url)[0]))


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def require_access(url: str) -> None:
    """OSError or UserError, in one line that says what to mend, unless a URL's place on S3 can be asked for.

    Other places are not looked at. Nothing needs to be there yet but the bucket.
    """
    fs, path = filesystem(url)
    if "s3" not in fs.protocol:
        return
    bucket, prefix, _ = fs.split_path(path)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
    try:
        fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no bucket {bucket} at {endpoint}: make it, or check its name and AWS_ENDPOINT_URL"
        ) from error
    except PermissionError as error:
        raise PermissionError(
            f"{endpoint} refuses access to the bucket {bucket} ({error}): check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and what they may do"
        ) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise PermissionError(
            f"no credentials for the bucket {bucket}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except (NoConnectionError, HTTPClientError) as error:
        raise OSError(
            f"{endpoint} cannot be reached: check AWS_ENDPOINT_URL and the network ({error})"
        ) from error
    except (OSError, ClientError, BotoCoreError) as error:
        raise OSError(f"the bucket {bucket} at {endpoint} cannot be used: {error}") from error


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
    # s3fs repeats a read that breaks off, but not where it reads the parts of a large object side by side.
    return fs.cat_file(path, **({"max_concurrency": 1} if "s3" in fs.protocol else {}))


def read_json(url: str) -> Any:
    """UserError if the file is not JSON."""
    try:
        return json.loads(read_bytes(url))
    except json.JSONDecodeError as error:
        raise UserError(f"{url} is damaged: {error}") from error


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


def put_verified(local: str | Path, url: str) -> dict[str, Any]:
    """As ``put``; the file's ``digest``. OSError if another is there: some clients lose a failed write silently."""
    put(local, url)
    expected = digest(Path(local).read_bytes())
    if not exists(url) or digest(read_bytes(url)) != expected:
        raise OSError(f"{url} was written but reads back differently")
    return expected


def digest(data: bytes) -> dict[str, Any]:
    """Size and SHA-256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def json_bytes(value: Any) -> bytes:
    """A JSON file's content, for a person to read too."""
    return (json.dumps(value, indent=2) + "\n").encode()


def write_json(url: str, value: Any) -> None:
    write_bytes(url, json_bytes(value))


def remove_tree(url: str) -> None:
    """Delete a folder and all below it; nothing happens where there is none."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    if fs.exists(path):
        fs.rm(path, recursive=True)


def redacted(value: Any) -> Any:
    """The same value without what URLs carry of user, password and signed query."""
    if isinstance(value, dict):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(://[^\s?]*)\?\S+", r"\1?...", re.sub(r"(://)[^\s/@]+@", r"\1", value))
    return value
