"""A claim on a run's folder, so that only one process at a time trains there.

    <run>/lease/<number>.json   who claimed it, rewritten every few seconds while that process lives

A claim is a new file of the next number. Storage creates it for one process only, however many try at once. The
greatest number holds the run. Its owner is dead if its process is gone from this machine or, seen from another one, if
the file does not change for ``LEASE_SECONDS``. Each side measures that on its own clock, so clocks need not agree.

An owner that was cut off from its storage for longer may find a greater number there. It then ends at once, as if it
had been killed, and its workers write no further checkpoint.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from glefld import storage
from glefld.errors import UserError
from pipelines import ray_private

logger = logging.getLogger(__name__)

#: How often the owner rewrites its claim, and after how long without a change others take it for dead. The difference
#: is what slow storage may cost.
BEAT_SECONDS = 5.0
LEASE_SECONDS = 30.0
FOLDER = "lease"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim as another process finds it."""

    number: int
    data: bytes

    @property
    def record(self) -> dict[str, Any]:
        """Who made it. Empty if its process died before it had written that."""
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(found := json.loads(self.data), dict):
                return found
        return {}

    @property
    def ended(self) -> bool:
        """Whether its owner has given the run up."""
        return bool(self.record.get("ended"))

    def owner(self) -> str:
        """Where its owner runs, in words."""
        job = f"Ray job {self.record['job']}, " if self.record.get("job") else ""
        return f"{job}process {self.record.get('pid', 'unknown')} on {self.record.get('host', 'unknown')}"

    def how_to_stop(self) -> str:
        """How to stop its owner, in words."""
        if job := self.record.get("job"):
            return f"stop it with `ray job stop {job}`"
        return f"stop it with `kill -INT {self.record.get('pid', 'PID')}` on {self.record.get('host', 'its host')}"


@dataclasses.dataclass(frozen=True)
class Lease:
    """A claim as its owner and the owner's workers have it."""

    folder: str
    number: int

    def require(self) -> None:
        """Raise UserError if another process has taken the run over."""
        if (claim := newest(self.folder)) is not None and claim.number > self.number:
            raise UserError(
                f"{self.folder} has been taken over by {claim.owner()}, as this training could not renew its claim for "
                f"{LEASE_SECONDS:.0f} s: it continues there"
            )


@contextlib.contextmanager
def hold(folder: str) -> Iterator[Lease]:
    """Claim a run's folder for the time of the block.

    Waits up to ``LEASE_SECONDS`` where it cannot be seen at once whether an earlier owner is dead. A folder that holds
    nothing but the claim when the block ends is removed.
    Raises UserError, which says where the owner runs and how to stop it, if it is alive.
    """
    record = {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": process_table(),
        "started": started(os.getpid()),
        "job": ray_private.submitted_job(),
        "beat": 0,
    }
    made = storage.missing_folders(folder)
    lease = Lease(folder, _claim(folder, record))
    ended = threading.Event()
    owner = threading.Thread(target=_keep, args=(lease, record, ended), name="lease", daemon=True)
    owner.start()
    try:
        yield lease
    finally:
        ended.set()
        owner.join()
        try:
            _release(lease, record, made)
        except (OSError, BotoCoreError, ClientError) as error:  # must not hide how the block ended
            logger.warning(
                "%s could not be released and stays claimed for %.0f s: %s", folder, LEASE_SECONDS, error
            )


def newest(folder: str) -> Claim | None:
    """Return the claim that holds a run, or None if nobody ever claimed it."""
    while (numbers := _numbers(folder)) and (number := max(numbers)):
        # It may be gone by now, replaced by a greater one.
        with contextlib.suppress(FileNotFoundError):
            return Claim(number, storage.read_bytes(_url(folder, number)))
    return None


def process_table() -> str:
    """Name the table that this process's id stands in: the host, its boot and the namespace. Empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> int | None:
    """Return when a process of this machine started, in ticks since boot. None if there is none, or it is dead."""
    try:
        # The name, in parentheses, may hold anything. State and start are fields 3 and 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _claim(folder: str, record: dict[str, Any]) -> int:
    """Claim the folder and return the claim's number. Raises UserError if it is held by a living process."""
    while True:
        found = newest(folder)
        if found is not None and _alive(folder, found):
            owner = newest(folder) or found  # a claim that was being written says by now whose it is
            raise UserError(
                f"{folder} is being trained by {owner.owner()}: {owner.how_to_stop()}, or choose another --name"
            )
        number = found.number + 1 if found is not None else 1
        try:
            storage.create(_url(folder, number), storage.json_bytes(record))
        except (FileExistsError, FileNotFoundError):  # another process was faster: look at its claim
            time.sleep(0.1)
        else:
            break
    for older in _numbers(folder):
        if older < number:
            storage.remove_file(_url(folder, older))
    storage.remove_unfinished(storage.join(folder, FOLDER))
    return number


def _alive(folder: str, claim: Claim) -> bool:
    """Return whether a claim's owner lives. On another machine, this takes until its next sign or ``LEASE_SECONDS``."""
    if claim.ended:
        return False
    record = claim.record
    if record.get("processes") and record["processes"] == process_table():
        pid = record.get("pid")
        since = started(pid) if isinstance(pid, int) else None
        return since is not None and since == record.get("started")
    logger.warning(
        "%s was last trained by %s: waiting up to %.0f s for a sign that it still is",
        folder,
        claim.owner(),
        LEASE_SECONDS,
    )
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, BEAT_SECONDS))
        if (now := newest(folder)) != claim:
            return now is not None and not now.ended
    return False


def _keep(lease: Lease, record: dict[str, Any], ended: threading.Event) -> None:
    """Rewrite the claim until ``ended``. Ends the process if another one has taken the run over."""
    told = False
    while not ended.wait(BEAT_SECONDS):
        try:
            lease.require()
            record["beat"] += 1
            storage.write_json(_url(lease.folder, lease.number), record)
            told = False
        except UserError as error:
            # Not an exception: whatever it would run on its way, such as ending the MLflow run, is the other's now.
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        except (OSError, BotoCoreError, ClientError) as error:
            if not told:
                logger.warning("the claim on %s could not be renewed, trying again: %s", lease.folder, error)
            told = True


def _release(lease: Lease, record: dict[str, Any], made: list[str]) -> None:
    """Say that the run is free or, if it has come to nothing, remove the claim, and the folders ``made`` for it."""
    if (claim := newest(lease.folder)) is None or claim.number != lease.number:
        return
    own = _url(lease.folder, lease.number)
    if list(storage.find(lease.folder)) != [f"{FOLDER}/{lease.number:08d}.json"]:
        storage.write_json(own, record | {"ended": True})
        return
    storage.remove_file(own)
    storage.remove_empty_folder(storage.join(lease.folder, FOLDER))
    for folder in made:
        storage.remove_empty_folder(folder)


def _numbers(folder: str) -> list[int]:
    names = (entry.name for entry in storage.entries(storage.join(folder, FOLDER)))
    return [int(found[1]) for name in names if (found := re.fullmatch(r"(\d{8,})\.json", name))]


def _url(folder: str, number: int) -> str:
    return storage.join(folder, FOLDER, f"{number:08d}.json")
