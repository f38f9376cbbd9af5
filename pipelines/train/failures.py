"""Tells the driver of workers that failed, in one line each. Ray Train's controller imports this: nothing slow."""

from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

from glefld.redaction import redacted
from pipelines import metrics, ray_private
from pipelines.train.events import WorkersLost, tell

#: The longest reason in characters.
LENGTH = 300


class TellFailures(UserCallback):
    """Ray Train's callback that tells of failures as ``WorkersLost``, with the words of ``reason``."""

    def __init__(self, run: str, max_failures: int) -> None:
        """run: the run's name. max_failures: how often the group is started again."""
        self.run, self.left = run, max_failures

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in the controller, which nothing else of ours reaches before it asks for machines."""
        self.__dict__.update(state)
        ray_private.quiet_train_controller()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        again, self.left = self.left > 0, self.left - 1
        reasons = [f"worker {rank}: {reason(error)}" for rank, error in sorted(worker_exceptions.items())]
        tell(WorkersLost(self.run, reasons, again))
        metrics.failed(self.run, len(worker_exceptions))


def reason(error: Exception) -> str:
    """Return why a worker failed, in words: of many lines of Ray's, or of a traceback, what a user can go by."""
    failure = getattr(error, "health_check_failure", None)
    if isinstance(failure, RayActorError):
        return "its machine is lost" if "its node has died" in str(failure) else "its process died"
    if type(error).__name__ == "WorkerHealthCheckTimeoutError":
        return "it does not answer"
    lines = str(failure or error).strip().splitlines()
    return str(redacted(lines[-1].strip()))[:LENGTH] if lines else type(error).__name__
