"""Latency of a served model: ``python -m tests.cluster.measure_serving URL PHOTO``, of a server that runs."""

import base64
import statistics
import sys
import time
from pathlib import Path

import requests

WARM_UP, REQUESTS = 3, 20

if __name__ == "__main__":
    server, photo = sys.argv[1:]
    request = {"dataframe_records": [{"photo": base64.b64encode(Path(photo).read_bytes()).decode()}]}
    milliseconds = []
    for _ in range(WARM_UP + REQUESTS):
        start = time.perf_counter()
        requests.post(f"{server}/invocations", json=request, timeout=60).raise_for_status()
        milliseconds.append(1000 * (time.perf_counter() - start))
    kept = sorted(milliseconds[WARM_UP:])
    print(f"{REQUESTS} requests: median {statistics.median(kept):.0f} ms, {kept[0]:.0f} to {kept[-1]:.0f}")
