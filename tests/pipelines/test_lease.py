"""A run's folder is one process's at a time: who gets it, who loses it, and what is told to the others."""

import contextlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from glefld import storage
from glefld.errors import UserError
from pipelines import lease
from pipelines.lease import Lease, hold, newest
from tests.forks import forks


def claim_until_killed(folder: str, beat: float, printed: str) -> None:
    """What another process does: hold the run for ever."""
    os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT), 2)
    lease.BEAT_SECONDS = beat
    with hold(folder):
        Path(folder, "run.json").write_text("{}")
        time.sleep(100)


@contextlib.contextmanager
def other_owner(folder: Path, beat: float = 0.05) -> Any:
    """Another process that has the run."""
    process = forks().Process(target=claim_until_killed, args=(str(folder), beat, f"{folder}.printed"))
    process.start()
    deadline = time.monotonic() + 60
    while not (folder / "run.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def elsewhere(folder: Path, **more: Any) -> None:
    """Write the claim of a process on another machine."""
    record = {
        "token": "0",
        "host": "host-b",
        "pid": 7,
        "processes": "host-b",
        "started": 1,
        "beat": 0,
        **more,
    }
    storage.write_json(lease._url(str(folder), 1), record)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)


def test_of_many_that_claim_a_run_at_once_one_has_it(tmp_path: Path) -> None:
    together, ended = threading.Barrier(8), threading.Barrier(8)

    def claim(_: int) -> str:
        together.wait()
        try:
            with hold(str(tmp_path / "run")):
                ended.wait()
        except UserError as error:
            ended.wait()
            return str(error)
        return "had it"

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(claim, range(8)))
    refused = [line for line in told if line != "had it"]
    assert len(refused) == 7
    assert all(f"is being trained by process {os.getpid()} on " in line for line in refused)


def test_a_claim_that_is_just_being_written_is_told_with_its_owner(tmp_path: Path, short: None) -> None:
    """On a disk a file is there a moment before what stands in it."""
    claim = Path(lease._url(str(tmp_path / "run"), 1))
    claim.parent.mkdir(parents=True)
    claim.touch()
    writer = threading.Timer(0.2, elsewhere, [tmp_path / "run"])
    writer.start()
    with (
        pytest.raises(UserError, match="is being trained by process 7 on host-b"),
        hold(str(tmp_path / "run")),
    ):
        pass
    writer.join()


def test_a_run_that_another_process_has_is_refused_with_how_to_stop_it(tmp_path: Path) -> None:
    with other_owner(tmp_path / "run") as process:
        since = time.monotonic()
        with (
            pytest.raises(UserError, match=f"stop it with `kill -INT {process.pid}` on ") as told,
            hold(str(tmp_path / "run")),
        ):
            pass
        assert time.monotonic() - since < 1
        assert "\n" not in str(told.value)


def test_a_killed_owner_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    with other_owner(tmp_path / "run") as process:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        since = time.monotonic()
        while lease.started(process.pid) is not None:  # a zombie is dead too
            time.sleep(0.01)
        with hold(str(tmp_path / "run")) as mine:
            assert mine.number == 2
        assert time.monotonic() - since < 5
    assert [path.name for path in (tmp_path / "run" / "lease").iterdir()] == ["00000002.json"]


def test_a_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    """Numbers are used again: the owner is told by when it started."""
    elsewhere(tmp_path, pid=os.getpid(), processes=lease.process_table(), started=1)
    with hold(str(tmp_path)) as mine:
        assert mine.number == 2


@pytest.mark.usefixtures("short")
def test_an_owner_elsewhere_that_gives_no_sign_loses_the_run(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    since = time.monotonic()
    with hold(str(tmp_path)) as mine:
        assert mine.number == 2
        assert 1 <= time.monotonic() - since < 5


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("job", "stop"),
    [(None, "`kill -INT 7` on host-b"), ("raysubmit_x", "`ray job stop raysubmit_x`")],
)
def test_an_owner_elsewhere_that_gives_a_sign_keeps_it(job: str | None, stop: str, tmp_path: Path) -> None:
    """However its clock goes: what counts is that its file changes."""
    elsewhere(tmp_path, job=job)
    beats = threading.Timer(0.3, elsewhere, (tmp_path,), {"job": job, "beat": 1})
    beats.start()
    with pytest.raises(UserError, match=f"process 7 on host-b: stop it with {stop}"), hold(str(tmp_path)):
        pass
    beats.join()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"pid": "x", "processes": 3}', b"[" * 100_000])
def test_a_claim_that_cannot_be_read_is_one_of_a_dead_process(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between making the file and writing it."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.2)  # nobody is there to write it in time
    storage.write_bytes(lease._url(str(tmp_path), 1), data)
    with hold(str(tmp_path)) as mine:
        assert mine.number == 2


@pytest.mark.parametrize("pid", [None, "7", {}])
def test_a_claim_of_this_machine_without_a_process_is_free(pid: Any, tmp_path: Path) -> None:
    elsewhere(tmp_path, pid=pid, processes=lease.process_table())
    with hold(str(tmp_path)) as mine:
        assert mine.number == 2


def test_a_run_that_was_given_up_is_free_at_once(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with hold(str(tmp_path)) as mine:
            (tmp_path / "run.json").touch()
            assert mine.number == number
    assert [path.name for path in (tmp_path / "lease").iterdir()] == ["00000003.json"]


def test_a_run_that_came_to_nothing_leaves_no_folder(tmp_path: Path) -> None:
    """Its name is free again. A folder that was there before stays."""
    (tmp_path / "mine").mkdir()
    for name in ("run", "mine", "runs/run"):
        with contextlib.suppress(KeyError), hold(str(tmp_path / name)):
            assert (tmp_path / name / "lease").is_dir()
            raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.usefixtures("short")
def test_an_owner_that_lost_its_run_ends_itself(tmp_path: Path) -> None:
    """At its next beat, as if killed: what it would do on its way out is the new owner's now."""
    run = tmp_path / "run"
    with other_owner(run) as process:
        assert isinstance(process, BaseProcess)
        Lease(str(run), 1).require()
        claim = json.loads((run / "lease" / "00000001.json").read_text())
        storage.write_json(lease._url(str(run), 2), claim | {"pid": 8, "host": "host-c"})
        with pytest.raises(UserError, match="taken over by process 8 on host-c"):
            Lease(str(run), 1).require()
        process.join(10)
        assert process.exitcode == 1
    printed = Path(f"{run}.printed").read_text()
    assert printed.startswith(f"error: {run} has been taken over by process 8 on host-c")
    assert printed.count("\n") == 1
    assert (found := newest(str(run))) is not None
    assert found.number == 2
