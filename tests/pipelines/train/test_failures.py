"""How failed training workers are told: a line each, in words that a user can go by."""

import logging
import pickle

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client

from pipelines.train import events
from pipelines.train.events import WorkersLost
from pipelines.train.failures import LENGTH, TellFailures, reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            WorkerHealthCheckFailedError("A worker health check failed.\n", ActorDiedError()),
            "its process died",
        ),
        (WorkerHealthCheckTimeoutError("hanging for 60.00 seconds"), "it does not answer"),
        (ValueError("Traceback:\n  File x\nRuntimeError: out of memory\n"), "RuntimeError: out of memory"),
        (ValueError("x" * 1000), "x" * LENGTH),
        (ValueError(), "ValueError"),
    ],
)
def test_why_a_worker_failed_is_one_line(error: Exception, words: str) -> None:
    assert reason(error) == words


def test_the_last_failure_is_not_followed_by_a_restart(capsys: pytest.CaptureFixture[str]) -> None:
    callback = TellFailures("first", 1)
    for _ in range(2):
        callback.after_exception(None, {1: ValueError("b"), 0: ValueError("a")})
    told = [events.parse(line) for line in capsys.readouterr().err.splitlines()]
    assert told == [WorkersLost("first", ["worker 0: a", "worker 1: b"], again) for again in (True, False)]


def test_a_request_that_went_unanswered_once_is_not_told() -> None:
    """The controller repeats it, and on a busy machine it comes and goes. It is quiet once the callback is there.

    Also after Ray Train has configured its loggers, which takes levels away.
    """
    logger = autoscaling_coordinator_client.logger
    before, filters = logger.level, list(logger.filters)
    try:
        pickle.loads(pickle.dumps(TellFailures("first", 1)))
        logger.setLevel(logging.NOTSET)  # as dictConfig leaves it
        warning, error = (
            logging.LogRecord(logger.name, level, "", 0, "", (), None)
            for level in (logging.WARNING, logging.ERROR)
        )
        assert not logger.filter(warning)
        assert logger.filter(error)
    finally:
        logger.setLevel(before)
        logger.filters = filters
