"""Opening an ingested data set."""

from glefld import storage
from glefld.errors import UserError
from glefld.schema import Manifest

MANIFEST = "manifest.json"


def open_dataset(url: str) -> Manifest:
    """The manifest of the data set at this URL; UserError if it has none: then it is not finished."""
    try:
        value = storage.read_json(storage.join(url, MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{url} is not a finished data set, it has no {MANIFEST}: run `python -m jobs.ingest` first"
        ) from None
    return Manifest.from_json(value)
