"""Everything that talks to MLflow: runs, what is logged to them, and models by name.

``run`` opens and ends a run on the driver. ``log`` sends to it from any process, through ``outbox``, and keeps in
``unsent`` what the server has not taken. ``model_registry`` stores, registers and fetches models. Code outside this
package imports from here.
"""

from glefld.tracking.log import RunLog, logged_run
from glefld.tracking.model_registry import Registration, fetch
from glefld.tracking.run import COMMIT, RunHandle, finish, git_commit, start_run, tracking_uri, where

__all__ = [
    "COMMIT",
    "Registration",
    "RunHandle",
    "RunLog",
    "fetch",
    "finish",
    "git_commit",
    "logged_run",
    "start_run",
    "tracking_uri",
    "where",
]
