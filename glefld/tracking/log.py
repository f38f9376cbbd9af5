"""What a run logs, sent to MLflow in the background: training never waits for the server, and nothing is lost.

While the server is away, everything waits in memory. From the end of an epoch on it is also kept in the run's folder
(``glefld.tracking.unsent``), from where the run's next worker or driver sends it.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, assert_never

import requests
from botocore.exceptions import BotoCoreError, ClientError
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from glefld import storage
from glefld.errors import UserError
from glefld.models import checkpoint
from glefld.redaction import redacted
from glefld.temporary import temporary_folder
from glefld.tracking import model_registry, pyfunc, unsent
from glefld.tracking.items import (
    Artifact,
    LoggedModel,
    LogItem,
    Metrics,
    RunStatus,
    Scored,
    Status,
    Tag,
    Value,
)
from glefld.tracking.model_registry import Registration
from glefld.tracking.outbox import Outbox
from glefld.tracking.run import DataKey, RunHandle, connect

if TYPE_CHECKING:
    import matplotlib.figure
    import PIL.Image

logger = logging.getLogger(__name__)

METRICS_A_BATCH = 1000  # MLflow's own limit
SEND_SECONDS = 2.0
#: How long the end of an epoch waits for a slow server. It does not wait for one known to be away.
FLUSH_SECONDS = 2.0
#: How long the end of a run waits for a server that takes nothing.
END_SECONDS = 60.0


class RunLog:
    """One process's connection to a run. Only ``flush`` and ``end`` wait for the server, each for a bounded time.

    folder: the run's folder, for what could not be sent. Without one, ``end`` raises ConnectionError instead. The first
    call that logs something reads what an earlier process has kept there: UserError if it cannot be used.
    """

    def __init__(self, handle: RunHandle, folder: str | None = None) -> None:
        self.handle, self.folder = handle, folder
        self._client = connect(handle.tracking_uri)
        self._outbox: Outbox[LogItem] = Outbox(self._send, _is_permanent)
        # Created with the first file: training workers log none, and Ray kills them before they could delete it.
        self._spool = contextlib.ExitStack()
        self._spool_folder: str | None = None
        self._collected: list[Value] = []
        self._last_collected = time.monotonic()
        self._taken_up = folder is None  # whether what an earlier process kept is in the outbox
        self._kept = False  # whether the folder holds unsent items that the outbox holds too

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics of a step. A step that is repeated after a restart adds values and replaces none."""
        self._take_up()
        now = int(time.time() * 1000)
        if len(self._collected) + len(metrics) > METRICS_A_BATCH:
            self._send_collected()
        self._collected += [Value(name, float(value), now, step) for name, value in metrics.items()]
        # One request a step would make a small model's steps several per cent slower.
        if time.monotonic() - self._last_collected > SEND_SECONDS:
            self._send_collected()

    def sample(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics of a moment, from any thread."""
        now = int(time.time() * 1000)
        self._outbox.put(Metrics(tuple(Value(name, value, now, step) for name, value in metrics.items())))

    def log_scores(self, metrics: dict[str, float], scored: Scored) -> None:
        """Log what a model scores on a data set, which MLflow shows with both."""
        self._take_up()
        now = int(time.time() * 1000)
        self._outbox.put(
            Metrics(tuple(Value(name, value, now, 0) for name, value in metrics.items()), scored)
        )

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._take_up()
        self._outbox.put(Tag(name, value))

    def log_text(self, text: str, file: str) -> None:
        """Store a text as the run's artifact ``file``, a path below its artifacts."""
        self._spooled(file).write_text(text)
        self._put_file(file)

    def log_dict(self, value: dict[str, Any], file: str) -> None:
        """Store a value as JSON."""
        self.log_text(json.dumps(value, indent=2), file)

    def log_figure(self, figure: "matplotlib.figure.Figure", file: str) -> None:
        """Store a chart; the format follows from the file's name."""
        figure.savefig(self._spooled(file))
        self._put_file(file)

    def log_image(self, image: "PIL.Image.Image", file: str) -> None:
        """Store a picture; the format follows from the file's name."""
        image.save(self._spooled(file))
        self._put_file(file)

    def log_model(
        self,
        url: str,
        *,
        name: str,
        step: int,
        metrics: dict[str, float],
        data: DataKey | None = None,
        note: str = "",
        registration: Registration | None = None,
    ) -> None:
        """Store a checkpoint, without its training state, as one of the run's models, and register it if asked to.

        metrics: its scores on ``data``. note: its description, in Markdown.
        """
        self._take_up()
        self._outbox.put(LoggedModel(name, url, step, metrics, registration, data, note))

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until everything logged is stored, for at most ``seconds``. Returns whether it is.

        What is not stored is also kept in the run's folder. A server that did not answer before is not waited for.
        """
        self._send_collected()
        sent = self._outbox.wait(0 if self._outbox.stuck(FLUSH_SECONDS) else seconds)
        if not sent:
            self._keep()
        elif self._kept:
            self._drop_kept()
        return sent

    def end(self, status: RunStatus) -> None:
        """End the run. One warning says what could not be sent and where it is kept."""
        try:
            self._take_up()
        except (OSError, BotoCoreError, UserError) as error:
            # This may be the error that ends the run: still tell MLflow how it ended.
            logger.warning("what an earlier process of this run kept for MLflow was not sent: %s", error)
        self._send_collected()
        self._outbox.put(Status(status))
        if not self._outbox.drain(END_SECONDS):
            self._warn_and_keep()
        elif self._kept:
            self._drop_kept()
        self._spool.close()
        self._spool_folder = None

    def _warn_and_keep(self) -> None:
        left = self._outbox.unsent()
        values = sum(len(entry.item.values) for entry in left if isinstance(entry.item, Metrics))
        others = sum(not isinstance(entry.item, Metrics) for entry in left)
        refusals = (entry.error for entry in left if entry.error is not None)
        error = next(refusals, self._outbox.error or "no answer")
        why = redacted(" ".join(str(error).split()))[:300]
        missing = f"{values} metric values and {others} other items are not in MLflow"
        if self.folder is None:
            raise ConnectionError(f"{missing}: {why}")
        file = unsent.location(self.folder)
        try:
            self._keep()
        except (OSError, BotoCoreError, UserError) as failed:  # must not hide how the run ended
            logger.warning("%s: %s. They could not be kept in %s either: %s", missing, why, file, failed)
        else:
            logger.warning("%s: %s. They are kept in %s; --resume sends them", missing, why, file)

    def _send_collected(self) -> None:
        if self._collected:
            self._outbox.put(Metrics(tuple(self._collected)))
        self._collected, self._last_collected = [], time.monotonic()

    def _spooled(self, file: str) -> Path:
        if self._spool_folder is None:
            self._spool_folder = self._spool.enter_context(temporary_folder())
        path = Path(self._spool_folder, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _put_file(self, file: str) -> None:
        self._take_up()
        self._outbox.put(Artifact(file, str(self._spooled(file))))

    def _take_up(self) -> None:
        """Send first what an earlier process of this run kept, except how it ended: the run is open again."""
        if self._taken_up or self.folder is None:
            return
        found = unsent.read(self.folder)
        self._taken_up, self._kept = True, found is not None
        for item in found or ():
            if not isinstance(item, Status):
                self._outbox.put(item)

    def _keep(self) -> None:
        if self.folder is None:
            return
        self._take_up()  # else what an earlier process kept would be overwritten
        unsent.write(self.folder, self._outbox.unsent())
        self._kept = True

    def _drop_kept(self) -> None:
        assert self.folder is not None
        unsent.remove(self.folder)
        self._kept = False

    def _send(self, item: LogItem) -> None:
        """Send one item, in the outbox's thread. An item that is sent twice is stored once."""
        run_id = self.handle.run_id
        match item:
            case Metrics(values, scored):
                of = (scored.model_id, *scored.data, run_id) if scored is not None else ()
                self._client.log_batch(run_id, [Metric(*value, *of) for value in values])
            case Tag(name, value):
                self._client.set_tag(run_id, name, value)
            case Artifact(path, file):
                to = PurePosixPath(path)
                with temporary_folder() as folder:
                    local = Path(folder, to.name)
                    local.write_bytes(storage.read_bytes(file))
                    self._client.log_artifact(run_id, str(local), str(to.parent) if to.parent.name else None)
            case LoggedModel():
                self._send_model(item)
            case Status(status):
                self._client.set_terminated(run_id, status)
            case _:
                assert_never(item)

    def _send_model(self, model: LoggedModel) -> None:
        with temporary_folder() as temporary:
            folder = Path(temporary)
            checkpoint.export(model.checkpoint, folder)
            # The id is remembered, and looked up on the server, so that a second attempt continues with the same model.
            if model.model_id is None:
                digest = checkpoint.digest(temporary)
                model.model_id = model_registry.find_model(self.handle, model.name, model.step, digest)
                if model.model_id is None:
                    model.model_id = model_registry.create_model(self.handle, model.name, digest, model.note)
            card = checkpoint.read_card(temporary)
            pyfunc.write(folder, card, self.handle.run_id, model.model_id)
            model_registry.store_model(
                self.handle, model.model_id, folder, step=model.step, metrics=model.scores, data=model.data
            )
        if model.registration is not None:
            model_registry.register(self.handle, model.model_id, model.registration, model.note)


@contextlib.contextmanager
def logged_run(handle: RunHandle, folder: str | None = None) -> Iterator[RunLog]:
    """End the run with the block: as FINISHED, FAILED after an error, or KILLED after Ctrl-C.

    UserError, before the block, if what an earlier process kept in ``folder`` cannot be used.
    """
    log = RunLog(handle, folder)
    try:
        if folder is not None:
            # Fail here, on the driver, in one line: in a worker Ray would restart the group and fail again.
            unsent.read(folder)
        yield log
    except BaseException as error:
        try:
            log.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        except ConnectionError as lost:  # must not hide the error that ended the block
            logger.warning("%s", lost)
        raise
    log.end("FINISHED")


def _is_permanent(error: Exception) -> bool:
    """Whether sending again is useless: MLflow rejected the content, or the item itself cannot be read."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    elif isinstance(error, ClientError):  # artifacts that go straight to object storage
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    elif isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:
        # By name: MLflow stores artifacts with boto3, which is no dependency of this package.
        temporary = isinstance(error, OSError | BotoCoreError) or type(error).__module__.startswith("boto3.")
        return not temporary
    # 401 and 403 are retried too: the password may be corrected while the run continues.
    return 400 <= status < 500 and status not in (401, 403, 408, 409, 429)
