"""What a run logs, item by item, and each item as a JSON object whose ``kind`` names its class."""

import dataclasses
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from glefld import storage
from glefld.tracking.model_registry import Registration
from glefld.tracking.run import DataKey

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Value(NamedTuple):
    """One value of a metric."""

    name: str
    value: float
    time: int
    """Unix time in milliseconds."""
    step: int


class Scored(NamedTuple):
    """What scores belong to besides the run: the model and its data set's split."""

    model_id: str
    data: DataKey


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Values of metrics, sent in one request."""

    values: tuple[Value, ...]
    scored: Scored | None = None

    def to_json(self) -> dict[str, Any]:
        return {"kind": "metrics", "values": self.values, "scored": self.scored}


@dataclasses.dataclass(frozen=True)
class Tag:
    """A tag of the run; a later one of the same name replaces it."""

    name: str
    value: str

    def to_json(self) -> dict[str, Any]:
        return {"kind": "tag", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A file of the run."""

    path: str
    """Where it goes, below the run's artifacts."""
    file: str
    """URL of its content."""

    def to_json(self) -> dict[str, Any]:
        """Without ``file``: a kept artifact lies at its path below the run's folder of unsent files."""
        return {"kind": "artifact", "path": self.path}


@dataclasses.dataclass
class LoggedModel:
    """A checkpoint to store as one of the run's models."""

    name: str
    checkpoint: str
    step: int
    scores: dict[str, float]
    registration: Registration | None
    data: DataKey | None = None
    """What the scores are of."""
    note: str = ""
    """Its description."""
    model_id: str | None = None
    """MLflow's id, set by the first attempt to send it: a second attempt continues with the same model."""

    def to_json(self) -> dict[str, Any]:
        return {"kind": "model", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Status:
    """How the run ended."""

    status: RunStatus

    def to_json(self) -> dict[str, Any]:
        return {"kind": "status", "status": self.status}


LogItem = Metrics | Tag | Artifact | LoggedModel | Status


def from_json(value: Any, files: str) -> LogItem:
    """The item that ``to_json`` wrote. ``files`` is the URL of the folder that holds the artifacts' contents.

    ValueError for anything else, and for an artifact outside that folder.
    """
    match value:
        case {"kind": "metrics", "values": list(values), **rest}:
            return Metrics(tuple(_value(item) for item in values), _scored(rest.get("scored")))
        case {"kind": "tag", "name": str(name), "value": str(value)}:
            return Tag(name, value)
        case {"kind": "artifact", "path": str(path)}:
            inside = PurePosixPath(path)
            if not inside.name or inside.is_absolute() or ".." in inside.parts:
                raise ValueError(f"the artifact {path!r} lies outside {files}")
            return Artifact(path, storage.join(files, path))
        case {
            "kind": "model",
            "name": str(name),
            "checkpoint": str(checkpoint),
            "step": int(step),
            "scores": dict(scores),
            "registration": registration,
            "model_id": str() | None as model_id,
            **rest,
        } if all(isinstance(score, float | int) and _is_float(score) for score in scores.values()):
            named = _registration(registration)
            data, note = _data(rest.get("data")), str(rest.get("note", ""))
            return LoggedModel(name, checkpoint, step, scores, named, data, note, model_id)
        case {"kind": "status", "status": "FINISHED" | "FAILED" | "KILLED" as status}:
            return Status(status)
    raise ValueError("not a line that this program writes")


def _value(item: Any) -> Value:
    match item:
        case [str(name), float() | int() as value, int(time), int(step)] if _is_float(value):
            return Value(name, value, time, step)
    raise ValueError(f"{item!r} is not a metric's name, value, time and step")


def _is_float(value: float) -> bool:
    """Whether a number of JSON, which may have any number of digits, fits a float."""
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _data(value: Any) -> DataKey | None:
    match value:
        case None:
            return None
        case [str(name), str(digest)]:
            return DataKey(name, digest)
    raise ValueError(f"{value!r} is not a data set's name and digest")


def _scored(value: Any) -> Scored | None:
    match value:
        case None:
            return None
        case [str(model_id), [_, _] as data] if (key := _data(data)) is not None:
            return Scored(model_id, key)
    raise ValueError(f"{value!r} is not a model and a data set")


def _registration(value: Any) -> Registration | None:
    match value:
        case None:
            return None
        case {"name": str(name), "alias": str() | None as alias}:
            return Registration(name, alias)
    raise ValueError(f"{value!r} is not a registered name and alias")
