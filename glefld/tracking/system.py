"""The load of a machine while a run lasts, measured by MLflow's own monitors and sent as all that a run logs."""

import contextlib
import logging
import threading
from collections.abc import Iterator

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from glefld.tracking.log import RunLog

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def system_metrics(log: RunLog, node: str | None = None) -> Iterator[None]:
    """Log CPU, memory, disk, network and GPUs of this machine while the block runs, each 10 seconds.

    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is another time. node: the machine's name within the metrics'
    (``system/NODE/cpu_utilization_percentage``). GPUs are there if the package nvidia-ml-py is.
    MLflow's monitor would send for itself, and stop for good when the server is away for a moment.
    """
    monitor = SystemMetricsMonitor(log.handle.run_id, node_id=node, tracking_uri=log.handle.tracking_uri)
    prefix = f"system/{monitor.node_id}/" if monitor.node_id else "system/"
    ended = threading.Event()

    def measured() -> dict[str, float]:
        monitor.collect_metrics()
        found = {prefix + name: value for name, value in monitor.aggregate_metrics().items()}
        for part in monitor.monitors:
            part.clear_metrics()
        return found

    def work() -> None:
        measured()  # the CPU's is that since the last time, and 0 at first
        step = 0
        while not ended.wait(monitor.sampling_interval):
            log.sample(measured(), step)
            step += 1

    thread = threading.Thread(target=work, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if not log.flush() and log.folder is None:
            logger.warning("MLflow did not take all of this machine's system metrics")
