"""The tests' view of an S3 server: its addresses and keys, new buckets, and what lies in them."""

import dataclasses
import datetime
import itertools
from pathlib import Path
from typing import Any

import fsspec

from glefld import storage
from tests.cluster.ceph import Keys
from tests.cluster.fault_proxy import FaultProxy

_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class ObjectStore:
    """An S3 server, straight (``direct``) and through a proxy that can fail (``endpoint``), and who may use it."""

    endpoint: str
    direct: str
    keys: Keys
    proxy: FaultProxy

    @property
    def environment(self) -> dict[str, str]:
        return self.keys.environment(self.endpoint)

    def bucket(self) -> str:
        """The URL of a new, empty bucket."""
        name = f"bucket-{next(_numbers)}"
        self.keys.client(self.direct).create_bucket(Bucket=name)
        return f"s3://{name}"

    def names(self, url: str) -> dict[str, int]:
        """The keys below a URL, asked for without the proxy, with their sizes."""
        return {found["Key"]: found["Size"] for found in self._listed(url)}

    def written(self, url: str) -> dict[str, datetime.datetime]:
        """When each object below a URL was written, by its key."""
        return {found["Key"]: found["LastModified"] for found in self._listed(url)}

    def read(self, url: str) -> bytes:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return self.keys.client(self.direct).get_object(Bucket=bucket, Key=key)["Body"].read()

    def _listed(self, url: str) -> list[dict[str, Any]]:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        pages = (
            self.keys.client(self.direct)
            .get_paginator("list_objects_v2")
            .paginate(Bucket=bucket, Prefix=prefix)
        )
        return [found for page in pages for found in page.get("Contents", ())]


def upload(folder: str | Path, url: str) -> str:
    """Copy a folder to object storage; its URL again."""
    fs, path = fsspec.core.url_to_fs(url, **storage.s3_options())
    fs.put(f"{folder}/", f"{path}/", recursive=True)
    return url
