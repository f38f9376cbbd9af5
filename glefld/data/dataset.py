"""Opening an ingested data set."""

from glefld import storage
from glefld.errors import UserError
from glefld.schema import Manifest

MANIFEST = "manifest.json"


def open_dataset(url: str) -> Manifest:
    """Return the manifest of the data set at a URL.

    UserError if there is none, since the data set is then not finished, or if its schema version is another one.
    """
    try:
        value = storage.read_json(storage.join(url, MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{url} is not a finished data set: it has no {MANIFEST}. Run `python -m jobs.ingest` first"
        ) from None
    return Manifest.from_json(value)
