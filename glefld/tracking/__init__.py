"""Everything that talks to MLflow: runs, what is logged to them, and models by name.

``server`` finds the tracking store and asks whether it answers. ``run`` opens and ends a run on the driver. ``log``
sends to it from any process, through ``outbox``, and keeps in ``unsent`` what the server has not taken.
``model_registry`` stores, registers and fetches models, ``pyfunc`` makes them ones that MLflow serves, ``notes`` has
what its pages say in words. Code outside this package imports from here. MLflow, which takes seconds to import, is
loaded with the first name that needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glefld.tracking.items import Scored
    from glefld.tracking.log import RunLog, logged_run
    from glefld.tracking.model_registry import Registration, fetch, find_by_digest
    from glefld.tracking.notes import model_note
    from glefld.tracking.run import (
        COMMIT,
        DataKey,
        Logged,
        RunHandle,
        command,
        finish,
        git_commit,
        history,
        start_run,
        where,
    )
    from glefld.tracking.server import connecting, require_answer, tracking_uri
    from glefld.tracking.system import system_metrics

__all__ = [
    "COMMIT",
    "DataKey",
    "Logged",
    "Registration",
    "RunHandle",
    "RunLog",
    "Scored",
    "command",
    "connecting",
    "fetch",
    "find_by_digest",
    "finish",
    "git_commit",
    "history",
    "logged_run",
    "model_note",
    "require_answer",
    "start_run",
    "system_metrics",
    "tracking_uri",
    "where",
]

_MODULES = {
    "items": ("Scored",),
    "log": ("RunLog", "logged_run"),
    "model_registry": ("Registration", "fetch", "find_by_digest"),
    "notes": ("model_note",),
    "run": (
        "COMMIT",
        "DataKey",
        "Logged",
        "RunHandle",
        "command",
        "finish",
        "git_commit",
        "history",
        "start_run",
        "where",
    ),
    "server": ("connecting", "require_answer", "tracking_uri"),
    "system": ("system_metrics",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
