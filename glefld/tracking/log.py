"""What a run logs to MLflow, sent in the background: training never waits for the server, and nothing is lost.

While the server is away everything waits in memory and, from an epoch's end on, in ``<run>/unsent.jsonl`` and
``<run>/unsent/`` too: a worker or driver that comes after takes it up from there.
"""

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import requests
from botocore.exceptions import BotoCoreError, ClientError
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from glefld import storage
from glefld.models import checkpoint
from glefld.storage import redacted
from glefld.tracking import model_registry
from glefld.tracking.model_registry import Registration
from glefld.tracking.outbox import Item, Outbox
from glefld.tracking.run import RunHandle, connect

if TYPE_CHECKING:
    import matplotlib.figure
    import PIL.Image

logger = logging.getLogger(__name__)

METRICS_A_BATCH = 1000  # MLflow's own limit
SEND_SECONDS = 2.0
#: How long an epoch's end waits for a server that answers slowly; for one known to be away it does not wait.
FLUSH_SECONDS = 2.0
#: How long a run's end waits for a server that takes nothing.
END_SECONDS = 60.0
UNSENT = "unsent.jsonl"


class RunLog:
    """One process's side of a run. Nothing waits for the server but ``flush`` and ``end``, each for a bounded time.

    folder: the run's, for what could not be sent. Without one, ``end`` raises ConnectionError for it.
    """

    def __init__(self, handle: RunHandle, folder: str | None = None) -> None:
        self.handle, self.folder = handle, folder
        self._client = connect(handle.tracking_uri)
        self._outbox = Outbox(self._send, _is_refusal)
        # Made when a file is logged: training workers log none, and Ray ends them without a chance to tidy up.
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        self._collected: list[tuple[str, float, int, int]] = []
        self._last_collected = time.monotonic()
        self._kept: bool | None = None  # whether the folder holds something unsent; None: not looked yet

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log values of a step. A step logged again, after a restart, stands beside its first values."""
        now = int(time.time() * 1000)
        if len(self._collected) + len(metrics) > METRICS_A_BATCH:
            self._hand_over()
        self._collected += [(key, float(value), now, step) for key, value in metrics.items()]
        # One request a step would cost a small model's step several per cent.
        if time.monotonic() - self._last_collected > SEND_SECONDS:
            self._hand_over()

    def log_text(self, text: str, file: str) -> None:
        self._spooled(file).write_text(text)
        self._put_file(file)

    def log_dict(self, value: dict[str, Any], file: str) -> None:
        self.log_text(json.dumps(value, indent=2), file)

    def log_figure(self, figure: "matplotlib.figure.Figure", file: str) -> None:
        figure.savefig(self._spooled(file))
        self._put_file(file)

    def log_image(self, image: "PIL.Image.Image", file: str) -> None:
        image.save(self._spooled(file))
        self._put_file(file)

    def log_model(
        self,
        url: str,
        *,
        name: str,
        step: int,
        metrics: dict[str, float],
        registration: Registration | None = None,
    ) -> None:
        """Store a checkpoint, without its training state, as the run's model, and register it if asked for."""
        named = [registration.name, registration.alias] if registration is not None else None
        model = {"model": name, "model_id": None, "checkpoint": url, "step": step, "scores": metrics}
        self._put({**model, "register": named})

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Whether all that was logged is stored, after so long at most; what is not is kept in the run's folder too.

        Does not wait where the server has not answered before.
        """
        self._hand_over()
        sent = self._outbox.wait(0 if self._outbox.stuck(FLUSH_SECONDS) else seconds)
        if not sent:
            self._keep()
        elif self._kept:
            self._drop_kept()
        return sent

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the run. One warning says what could not be sent and where it is kept."""
        try:
            self._hand_over()
            self._put({"status": status})
        except (OSError, BotoCoreError) as error:
            # The run's folder cannot be read, perhaps the very thing that ends the run: MLflow is told all the same.
            logger.warning("what an earlier process of this run may have kept is not sent: %s", error)
            self._outbox.put({"status": status})
        if not self._outbox.drain(END_SECONDS):
            left = self._outbox.left()
            metrics = sum(len(item.get("metrics", ())) for item in left)
            others = sum("metrics" not in item for item in left)
            refusals = (item["error"] for item in left if "error" in item)
            why = redacted(" ".join(str(next(refusals, self._outbox.error or "no answer")).split()))[:300]
            words = f"{metrics} values and {others} other things are not in MLflow"
            if self.folder is None:
                raise ConnectionError(f"{words}: {why}")
            unsent = storage.join(self.folder, UNSENT)
            try:
                self._keep()
            except (OSError, BotoCoreError) as error:  # how the run ended matters more
                logger.warning("%s: %s. Nor could they be kept in %s: %s", words, why, unsent, error)
            else:
                logger.warning("%s; they are kept in %s, which --resume sends: %s", words, unsent, why)
        elif self._kept:
            self._drop_kept()
        if self._spool is not None:
            self._spool.cleanup()
            self._spool = None

    def _hand_over(self) -> None:
        if self._collected:
            self._put({"metrics": self._collected})
        self._collected, self._last_collected = [], time.monotonic()

    def _spooled(self, file: str) -> Path:
        if self._spool is None:
            self._spool = tempfile.TemporaryDirectory(prefix="glefld-unsent-")
        path = Path(self._spool.name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _put_file(self, file: str) -> None:
        self._put({"artifact": file, "file": str(self._spooled(file))})

    def _put(self, item: Item) -> None:
        if self._kept is None:
            self._take_up()
        self._outbox.put(item)

    def _take_up(self) -> None:
        """What an earlier process of this run could not send comes first; how it ended is no longer true."""
        self._kept = False
        if self.folder is None or not storage.exists(storage.join(self.folder, UNSENT)):
            return
        self._kept = True
        for line in storage.read_bytes(storage.join(self.folder, UNSENT)).splitlines():
            item = json.loads(line)
            item.pop("error", None)
            if "status" not in item:
                self._outbox.put(item)

    def _keep(self) -> None:
        if self.folder is None:
            return
        lines = []
        for item in self._outbox.left():
            if "artifact" in item:
                url = storage.join(self.folder, "unsent", item["artifact"])
                if item["file"] != url:
                    storage.put(item["file"], url)
                lines.append({**item, "file": url})
            else:
                lines.append(item)
        storage.write_bytes(
            storage.join(self.folder, UNSENT),
            "".join(f"{json.dumps(redacted(line))}\n" for line in lines).encode(),
        )
        self._kept = True

    def _drop_kept(self) -> None:
        assert self.folder is not None
        storage.remove_tree(storage.join(self.folder, UNSENT))
        storage.remove_tree(storage.join(self.folder, "unsent"))
        self._kept = False

    def _send(self, item: Item) -> None:
        """In the outbox's thread. Every kind may be sent twice and is then there once."""
        run_id = self.handle.run_id
        if "model" in item:
            self._send_model(item)
        elif "metrics" in item:
            self._client.log_batch(run_id, [Metric(*values) for values in item["metrics"]])
        elif "artifact" in item:
            file = PurePosixPath(item["artifact"])
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder, file.name)
                local.write_bytes(storage.read_bytes(item["file"]))
                below = str(file.parent) if file.parent.name else None
                self._client.log_artifact(run_id, str(local), below)
        else:
            self._client.set_terminated(run_id, item["status"])

    def _send_model(self, item: Item) -> None:
        # Remembered, and looked for, so that a second attempt goes on with the same model.
        if item["model_id"] is None:
            item["model_id"] = model_registry.find_model(self.handle, item["model"], item["step"])
        if item["model_id"] is None:
            item["model_id"] = model_registry.create_model(self.handle, item["model"])
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.export(item["checkpoint"], Path(folder))
            model_registry.store_model(
                self.handle, item["model_id"], Path(folder), step=item["step"], metrics=item["scores"]
            )
        if item["register"] is not None:
            model_registry.register(self.handle, item["model_id"], Registration(*item["register"]))


@contextlib.contextmanager
def to_its_end(handle: RunHandle, folder: str | None = None) -> Iterator[RunLog]:
    """The run ends with the block: FINISHED, FAILED by an error, KILLED by Ctrl-C."""
    log = RunLog(handle, folder)
    try:
        yield log
    except BaseException as error:
        try:
            log.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        except ConnectionError as lost:  # what ended the block matters more
            logger.warning("%s", lost)
        raise
    log.end("FINISHED")


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow has read what was sent and will not have it; anything else may pass."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    elif isinstance(error, ClientError):  # artifacts that go straight to object storage
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    elif isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:
        # boto3, which MLflow stores artifacts with, is not ours to import.
        passing = isinstance(error, OSError | BotoCoreError) or type(error).__module__.startswith("boto3.")
        return not passing
    # Without permission: a password may be put right while the run goes on.
    return 400 <= status < 500 and status not in (401, 403, 408, 409, 429)
