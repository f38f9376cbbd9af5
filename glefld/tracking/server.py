"""Where the tracking store is, and whether it answers. Loads MLflow only for a server that does."""

import contextlib
import os
import re
import threading
from collections.abc import Iterator

import requests

from glefld import storage
from glefld.errors import UserError
from glefld.storage import redacted

#: Seconds to wait for a connection to the server, and then for its answer. A job that cannot log is told at once.
WAIT = (2.0, 3.0)


def tracking_uri(root: str, on_cluster: bool) -> str:
    """MLFLOW_TRACKING_URI if it is set, else a SQLite file in the root.

    UserError if that file could not be shared (on a cluster, or with a root on object storage), or if a database's
    password has an @ in it.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        # SQLAlchemy ends a password at its first @. What follows would be shown as the host that cannot be found.
        user = re.match(r"(?!https?:)[^/:]+://([^/:]*(?::.*)?)@", uri, re.DOTALL)
        if user and "@" in user[1]:
            raise UserError(
                f"MLFLOW_TRACKING_URI={redacted(uri)} has an @ besides the one before the host: write it as %40"
            )
        return uri
    if on_cluster or not storage.is_local(root):
        where = "on a cluster" if on_cluster else f"with the root {root}"
        raise UserError(
            f"{where}, MLflow cannot use a local SQLite file: set MLFLOW_TRACKING_URI to a tracking server "
            "(http://host:5000)"
        )
    return f"sqlite:///{storage.local_path(storage.absolute(root))}/mlflow.db"


@contextlib.contextmanager
def connecting(uri: str) -> Iterator[None]:
    """Import MLflow and connect to the store in a thread, while the block starts Ray: each takes seconds.

    What fails is left to ``start_run``, which tells it.
    """

    def work() -> None:
        from glefld.tracking.run import first_connection

        with contextlib.suppress(Exception):
            first_connection(uri)

    thread = threading.Thread(target=work, name="connecting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def require_answer(uri: str) -> None:
    """Raise an error unless the tracking server answers. A store without a server is not asked: it may be made yet.

    UserError if nothing answers there, ConnectionError if the server refuses us, as with a wrong password.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=WAIT, allow_redirects=False)
    except requests.exceptions.SSLError:
        pass  # MLflow has settings of its own for certificates
    except (requests.ConnectionError, requests.Timeout) as error:
        raise UserError(
            f"MLflow at {redacted(uri)} cannot be used: nothing answers there. Start the tracking server, or correct "
            "MLFLOW_TRACKING_URI"
        ) from error
    except requests.RequestException as error:
        raise UserError(
            f"MLFLOW_TRACKING_URI={redacted(uri)} cannot be used: {redacted(str(error))}"
        ) from error
    from mlflow.exceptions import MlflowException

    from glefld.tracking.run import connect, unusable

    try:
        connect(uri).search_experiments(max_results=1)
    except (MlflowException, requests.RequestException) as error:
        raise unusable(uri, error) from error
