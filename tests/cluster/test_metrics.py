"""The metrics of real jobs on a real Ray, scraped by a real Prometheus: every query of the dashboard is asked."""

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.cluster.hosts import REPOSITORY, Host, alive, secured, short_folder
from tests.cluster.servers import Server, free_port, require_programs, wait_until
from tests.raw_layouts import photos, rows, write_fld

#: Panels that have nothing to draw where nothing fails and there is no GPU.
MAY_BE_EMPTY = {"Lost", "Tasks that run again", "GPU"}
#: A job each, one after the other.
JOBS = """
import sys
from jobs import infer, ingest, train
root, source = sys.argv[1:]
ingest.run(ingest.Options("fld", source, root=root))
options = "--input-size 32 --epochs 3 --batch-size 8 --log-steps 2 --model.backbone test_resnet --model.width 8"
line = f"--dataset fld --root {root} --name run --num-workers 1 --random-weights --precision fp32 {options}"
train.run(train.parse(line.split()))
infer.run(
    infer.Options(f"{root}/runs/run", f"{source}/img.zip", root=root, shard_rows=4, num_workers="1-2", readers="1")
)
"""


class Prometheus:
    """Configured by infra/prometheus.yaml, but for the file with Ray's addresses and for how often it looks."""

    def __init__(self, folder: Path, addresses: Path) -> None:
        config = (REPOSITORY / "infra/prometheus.yaml").read_text()
        (found,) = yaml.safe_load(config)["scrape_configs"]
        (place,) = found["file_sd_configs"][0]["files"]
        config = config.replace(place, str(addresses)).replace(found["scrape_interval"], "1s")
        (folder / "prometheus.yaml").write_text(config)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.server = Server(
            [
                *("prometheus", f"--config.file={folder}/prometheus.yaml"),
                *(f"--storage.tsdb.path={folder}/series", f"--web.listen-address={self.url[7:]}"),
            ],
            folder / "prometheus.log",
        )
        self.server.start(self.is_up)

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.url}/-/ready", timeout=5).ok
        except requests.RequestException:
            return False

    def ask(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def values(self, query: str) -> dict[str, float]:
        """What a query gives now, by the values of its labels."""
        found = self.ask("query", query=query)
        return {" ".join(one["metric"].values()): float(one["value"][1]) for one in found}


@pytest.fixture
def cluster() -> Iterator[tuple[Host, str]]:
    """Ray on this machine, and its address. It tells its agent of a count within a second, not ten."""
    require_programs("prometheus", "prometheus")
    with short_folder() as folder:
        often = {"RAY_metrics_report_interval_ms": "1000", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
        host = Host("127.0.0.1", folder / "host", secured(folder, **often))
        port, head = free_port(), free_port()
        host.start_ray(
            *("--head", f"--port={head}", "--num-cpus=3", f"--temp-dir={folder}/ray"),
            *(f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}"),
            f"--ray-client-server-port={free_port()}",
        )
        host.wait_for_ray(lambda: alive(host, f"http://127.0.0.1:{port}"))
        yield host, f"127.0.0.1:{head}"
        host.kill()


@pytest.mark.slow
def test_every_panel_has_its_values(cluster: tuple[Host, str], empty_store: Path, tmp_path: Path) -> None:
    host, address = cluster
    prometheus = Prometheus(tmp_path, host.folder.parent / "ray/prom_metrics_service_discovery.json")
    try:
        root = tmp_path / "root"
        root.mkdir()
        shutil.copy(empty_store, root / "mlflow.db")
        listed = rows(40)
        source = write_fld(tmp_path / "raw", listed, photos(listed) | {listed[3].photo: b"no picture"})
        began = time.time()
        done = host.call(
            [sys.executable, "-c", JOBS, str(root), str(source)],
            RAY_ADDRESS=address,
            MLFLOW_TRACKING_URI=f"sqlite:///{root}/mlflow.db",
        )
        assert done.returncode == 0, done.stderr

        # The last counts come with the jobs' end, and are scraped within a second.
        outcomes = "sum by (command, outcome) (ray_glefld_rows_total)"
        expected = {
            "ingest ok": 39,
            "ingest unreadable_photo": 1,
            "infer ok": 39,
            "infer unreadable_photo": 1,
        }
        wait_until(lambda: prometheus.values(outcomes) == expected, f"{expected} in Prometheus", 30)
        assert prometheus.values("sum by (run) (ray_glefld_training_images_total)") == {"run": 3 * 27}
        assert prometheus.values("max by (run) (last_over_time(ray_glefld_training_epochs[10m]))") == {
            "run": 3
        }
        left = "sum by (command) (last_over_time(ray_glefld_rows_left[10m]))"
        assert prometheus.values(left) == {"ingest": 0, "infer": 0}
        assert prometheus.values("sum(ray_glefld_shard_seconds_count{command='infer'})") == {"": 10}

        dashboard = json.loads((REPOSITORY / "infra/grafana/glefld.json").read_text())
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        empty = set()
        for panel in panels:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "5s")
                series = prometheus.ask("query_range", query=query, start=began, end=time.time(), step=1)
                assert "$" not in query, query
                found = [float(value) for one in series for _, value in one["values"]]
                if not any(math.isfinite(value) for value in found):
                    empty.add(panel["title"])
        assert empty <= MAY_BE_EMPTY
        assert len(panels) > len(MAY_BE_EMPTY)
    finally:
        prometheus.server.stop()
