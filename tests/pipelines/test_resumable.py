"""A shard whose worker dies each time ends the job in one line, and what was finished is kept."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.infer.run import InferenceWorkers, InferOptions, infer, make_plan
from pipelines.ingest.plan import IngestOptions
from pipelines.ingest.run import ingest, prepare
from pipelines.resumable import RETRIES
from tests import dots
from tests.meanwhile import meanwhile
from tests.raw_layouts import photos, rows, write_fld

pytestmark = pytest.mark.usefixtures("ray_cluster")


@contextlib.contextmanager
def killing(*words: str) -> Iterator[Callable[[], int]]:
    """SIGKILL each worker as soon as its title holds all the words. Yields how many it were."""
    killed: set[int] = set()

    def kill() -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                title = " ".join(process.cmdline())
                if process.pid not in killed and all(word in title for word in words):
                    process.kill()
                    killed.add(process.pid)

    with meanwhile(kill, pause=0.005):
        yield lambda: len(killed)


def test_an_ingest_task_that_always_dies(tmp_path: Path) -> None:
    listed = rows(60)
    source = write_fld(tmp_path / "source", listed, photos(listed, width=600, height=800))
    plan = prepare(IngestOptions("fld", str(source)), str(tmp_path / "data"))
    with killing("ray::", "_write") as killed, pytest.raises(ValueError, match="died 5 times"):
        ingest(plan, str(tmp_path / "data"), lambda *_: None)
    assert killed() > RETRIES
    assert sum(ingest(plan, str(tmp_path / "data"), lambda *_: None).splits.values()) == 60


def test_an_inference_task_that_always_dies(tmp_path: Path) -> None:
    model = dots.write_checkpoint(str(tmp_path / "checkpoint"))
    listed = rows(60)
    (tmp_path / "photos").mkdir()
    for name, data in photos(listed, width=600, height=800).items():
        (tmp_path / "photos" / Path(name).name).write_bytes(data)
    plan = make_plan(InferOptions(model, str(tmp_path / "photos")), str(tmp_path / "out"))
    workers = InferenceWorkers(number=1, threads=1, gpu=False, batch_size=4)
    with killing("ray::", "ShardWriter", "submit") as killed, pytest.raises(ValueError, match="died 5 times"):
        infer(plan, str(tmp_path / "out"), workers, lambda *_: None)
    assert killed() > RETRIES
