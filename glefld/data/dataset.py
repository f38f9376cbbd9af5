"""Opening an ingested data set."""

from typing import Any

from glefld import storage
from glefld.errors import UserError
from glefld.schema import Manifest

#: Parquet readers skip names that begin with an underscore, so a whole output folder can be given to them.
MANIFEST = "_manifest.json"
#: The name before 0.1.0 was finished, still read.
FORMER_MANIFEST = "manifest.json"


def read_manifest(url: str) -> dict[str, Any] | None:
    """Return the manifest of an ingest's or an inference's output, None if the output is not finished.

    A file of the former name that lacks our fields belongs to another program. UserError if ours is not valid JSON.
    """
    for name in (MANIFEST, FORMER_MANIFEST):
        try:
            value = storage.read_json(storage.join(url, name))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except UserError:
            if name == FORMER_MANIFEST:
                continue
            raise
        if isinstance(value, dict) and {"shards", "content_hash"} <= set(value):
            return value
    return None


def open_dataset(url: str) -> Manifest:
    """Return the manifest of the data set at a URL.

    UserError if there is none, since the data set is then not finished, or if its schema version is another one.
    """
    value = read_manifest(url)
    if value is None or "landmark_set" not in value:
        raise UserError(f"{url} is not a finished data set: it has no {MANIFEST}. Run `glefld ingest` first")
    return Manifest.from_json(value)
