"""The commands of docs/cluster.md for one machine, word for word, on a host of its own."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset
import pytest
from mlflow import MlflowClient

from tests.cluster.hosts import (
    BIN,
    REPOSITORY,
    Host,
    Network,
    clean_environment,
    require_namespaces,
    short_folder,
)

#: The last line: `ray stop` must have ended what `ray start` began.
NOTHING_LEFT = """
python -c "import psutil; assert not {p.name() for p in psutil.process_iter()} & {'raylet', 'gcs_server'}"
"""


def commands() -> str:
    """The section's blocks: a new user's shell from the first line to the last."""
    text = (REPOSITORY / "docs" / "cluster.md").read_text()
    section = re.search(r"^## Try it on one machine$(.*?)^## ", text, re.M | re.S)
    assert section is not None
    return "".join(re.findall(r"^```$(.*?)^```$", section[1], re.M | re.S))


@pytest.fixture
def machine() -> Iterator[Host]:
    """One host, with an empty home."""
    require_namespaces()
    Path("/tmp/ray").mkdir(exist_ok=True)
    with short_folder() as folder:
        home = folder / "home"
        home.mkdir()
        network = Network(folder, clean_environment(HOME=str(home), RAY_worker_niceness="0"))
        yield network.add_host()
        network.remove()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_cluster_section_does_what_it_says(machine: Host, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for package in ("glefld", "pipelines", "jobs"):
        shutil.copytree(REPOSITORY / package, clone / package)
    (clone / ".venv").symlink_to(BIN.parent)
    # `ray stop` ends every Ray that it sees, so the host sees its own processes only. Job control gives `kill %1` its
    # meaning, as in a terminal.
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    words = [
        *apart,
        "bash",
        "-c",
        f"set -emx; cd {clone}; mount --bind {machine.folder}/ray /tmp/ray\n{commands()}{NOTHING_LEFT}",
    ]
    done = machine.call(words, seconds=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    root = clone / "cluster-data"
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-fld"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert client.get_model_version_by_alias("fld-fpn", "champion").run_id == run.info.run_id
    predictions = pyarrow.dataset.dataset(root / "predictions", exclude_invalid_files=True).to_table()
    assert len(predictions) == 400
    assert set(predictions["status"].to_pylist()) == {"ok"}
