"""What MLflow has not taken yet, kept in the run's folder for its next process: a worker, the driver or a resumed job.

Each line of ``unsent.jsonl`` is an item; the contents of artifacts lie in ``unsent/``. Whoever may write there decides
what is sent, but never from where: only the run's own files and checkpoints are.
"""

import dataclasses
import json
import os

from glefld import storage
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.redaction import redacted
from glefld.tracking.items import Artifact, LoggedModel, LogItem, from_json
from glefld.tracking.outbox import Unsent


def location(folder: str) -> str:
    """URL of the run's ``unsent.jsonl``."""
    return storage.join(folder, "unsent.jsonl")


def read(folder: str) -> list[LogItem] | None:
    """The items that an earlier process of the run kept, in order; None if it kept none.

    UserError, with file and line, for a line that cannot be used.
    """
    url = location(folder)
    if not storage.exists(url):
        return None
    items = []
    for number, line in enumerate(storage.read_bytes(url).splitlines(), start=1):
        try:
            items.append(_from_here(from_json(json.loads(line), _files(folder)), folder))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{url}, line {number}, cannot be sent to MLflow: {error}. Delete the line, or the file"
            ) from error
    return items


def write(folder: str, unsent: list[Unsent[LogItem]]) -> None:
    """Keep these items, and the contents of their artifacts, in place of what was kept before. Holds no credentials."""
    lines = []
    for entry in unsent:
        if isinstance(entry.item, Artifact):
            url = storage.join(_files(folder), entry.item.path)
            if entry.item.file != url:
                storage.put(entry.item.file, url)
        item = entry.item
        if isinstance(item, LoggedModel):
            start = storage.join(folder, "")
            assert item.checkpoint.startswith(start), "a run logs its own checkpoints"
            item = dataclasses.replace(item, checkpoint=item.checkpoint.removeprefix(start))
        why = {"error": str(entry.error)} if entry.error is not None else {}
        lines.append(json.dumps(redacted({**item.to_json(), **why})) + "\n")
    storage.write_bytes(location(folder), "".join(lines).encode())


def remove(folder: str) -> None:
    """Delete what was kept."""
    storage.remove_tree(location(folder))
    storage.remove_tree(_files(folder))


def _from_here(item: LogItem, folder: str) -> LogItem:
    """The item with the URL of its checkpoint. ValueError if it names a file or a checkpoint that is not the run's."""
    if isinstance(item, LoggedModel):
        if not checkpoint.OF_A_RUN.fullmatch(item.checkpoint):
            raise ValueError(f"{item.checkpoint!r} is not a checkpoint of this run")
        return dataclasses.replace(item, checkpoint=storage.join(folder, item.checkpoint))
    if isinstance(item, Artifact) and storage.is_local(folder):
        inside = os.path.join(os.path.realpath(storage.local_path(folder)), "unsent", item.path)
        if os.path.realpath(storage.local_path(item.file)) != os.path.normpath(inside):
            raise ValueError(f"the artifact {item.path!r} is a link to another place")
    return item


def _files(folder: str) -> str:
    return storage.join(folder, "unsent")
