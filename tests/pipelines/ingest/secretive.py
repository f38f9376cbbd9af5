"""A filesystem whose URLs carry a password."""

from fsspec.implementations.local import LocalFileSystem


class SecretiveFileSystem(LocalFileSystem):
    """The local disk under URLs that carry a user's name and password."""

    protocol = "secretive"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.partition("@")[2] or path)
