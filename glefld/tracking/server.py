"""Where the tracking store is, and whether it answers. Loads MLflow only for a server that does."""

import contextlib
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import requests

from glefld import storage
from glefld.errors import UserError
from glefld.redaction import redacted, why

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
    """Raise an error unless the tracking store can be used. A SQLite file that does not exist yet is not made.

    UserError if nothing answers there or it is not a store, ConnectionError if the server refuses us, as with a wrong
    password.
    """
    if "://" not in uri and not uri.startswith("databricks"):
        raise UserError(
            f"MLFLOW_TRACKING_URI={uri.rpartition('@')[2]} is not a URL: give http://host:5000 of a tracking server, or sqlite:////FILE"
        )
    if (file := _sqlite_file(uri)) is not None:
        named = f"MLFLOW_TRACKING_URI={uri}" if os.environ.get("MLFLOW_TRACKING_URI") else "--root"
        _require_database(file, f"{named}: MLflow's store")
        return
    if uri.startswith(("http://", "https://")):
        _require_server(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
    from sqlalchemy.exc import SQLAlchemyError

    from glefld.tracking.run import connect, unusable

    given = f"MLFLOW_TRACKING_URI={redacted(uri)} cannot be used"
    try:
        connect(uri).search_experiments(max_results=1)
    except UnsupportedModelRegistryStoreURIException as error:
        raise UserError(
            f"{given}: MLflow has no store of this kind. Give http://host:5000 of a tracking server, or sqlite:////FILE"
        ) from error
    except ImportError as error:
        raise UserError(
            f"{given}: the module {error.name}, which speaks to this database, is not installed. Install it, or give "
            "http://host:5000 of a tracking server"
        ) from error
    except SQLAlchemyError as error:
        # Its further lines show the statement.
        raise unusable(uri, OSError(str(error).partition("\n")[0])) from error
    except (MlflowException, requests.RequestException, OSError) as error:
        raise unusable(uri, error) from error


def missing_file(uri: str) -> str | None:
    """Return the path of the SQLite file that is the tracking store, if it does not exist yet; None otherwise."""
    file = _sqlite_file(uri)
    return file if file is not None and not os.path.exists(file) else None


def _sqlite_file(uri: str) -> str | None:
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    if not uri.startswith("sqlite:///") or not file or file.startswith("file:"):
        return None
    return os.path.abspath(file)


def _require_database(file: str, named: str) -> None:
    """Raise UserError unless a SQLite file can be made or written. MLflow, which is slow to import, is not needed."""
    storage.require_writable(file, named, folder=False)
    if not os.path.exists(file):
        return
    if not os.access(file, os.W_OK):
        raise UserError(f"{named} {file} cannot be written: give another place")
    try:
        # Not mode=ro: what a killed process left half-written is rolled back on opening, and that is a write.
        with contextlib.closing(sqlite3.connect(Path(file).as_uri() + "?mode=rw", uri=True)) as database:
            database.execute("SELECT name FROM sqlite_master")
    except sqlite3.Error as error:
        if error.sqlite_errorname != "SQLITE_BUSY":
            raise UserError(f"{named} {file} cannot be read ({error}): give another place") from error


def _require_server(uri: str) -> None:
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
            f"MLFLOW_TRACKING_URI={redacted(uri)} cannot be used"
            + (why(uri, error) or ": in a password, / is written as %2F, ? as %3F and # as %23")
        ) from error
