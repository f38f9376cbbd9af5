"""Run a job on a Ray cluster: submit it with this code, follow its log and exit with its exit status."""

import argparse
import asyncio
import dataclasses
import importlib
import logging
import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import NoReturn

import aiohttp
import ray.exceptions
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from glefld import tracking
from glefld.errors import UserError
from glefld.redaction import public_url, redacted
from glefld.temporary import temporary_folder
from jobs.cli import guard, parse_command, program
from jobs.commands import COMMANDS, SUBMITTED
from jobs.nearest import did_you_mean
from pipelines import ray_private

PACKAGES = ("glefld", "pipelines", "jobs")

#: Environment variables that are passed on to the job. Everyone with access to the cluster's dashboard can read them,
#: so keys, passwords and tokens are not among them: those belong in the environment that the cluster is started with.
PASSED = re.compile(
    "GLEFLD_ROOT|GLEFLD_DEBUG|GLEFLD_DETECTOR|MLFLOW_TRACKING_URI|AWS_ENDPOINT_URL(_S3)?|AWS_REGION|AWS_DEFAULT_REGION|AWS_RETRY_MODE"
    "|AWS_MAX_ATTEMPTS|AWS_REQUEST_CHECKSUM_CALCULATION|GLOO_SOCKET_IFNAME|NCCL_.*"
)
#: Stop jobs with SIGINT rather than SIGTERM, and give them time to end their MLflow run: they may wait up to
#: ``glefld.tracking.log.END_SECONDS`` for MLflow, and then store what it did not accept.
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "100"}

IDLE_SECONDS = 60.0  # without a line in the log, after which the job's status is polled
RECONNECT_SECONDS = 60.0
TOKEN = (
    "RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, or its file's path in RAY_AUTH_TOKEN_PATH"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a submission."""

    job: str
    arguments: list[str]
    """Command-line arguments of the job."""
    address: str | None
    stop_on_interrupt: bool


def run(options: Options) -> None:
    """Submit the job, follow its log and exit with its status. Raises UserError for a wrong option or cluster."""
    check(options.job, options.arguments)
    environment = job_environment()
    for word in options.arguments:
        require_no_password(word, f"an option of {options.job}")
    client = connect(options.address)
    with temporary_folder() as folder:
        pack(Path(folder))
        try:
            job_id = client.submit_job(
                entrypoint=shlex.join(
                    ["python", "-m", f"jobs.{COMMANDS[options.job].module}", *options.arguments]
                ),
                runtime_env={"working_dir": folder, "env_vars": environment},
            )
        except RuntimeError as error:  # what Ray's SDK raises if, for example, no agent has started yet
            raise ConnectionError(
                f"the cluster did not accept the job: {redacted(' '.join(str(error).split()))[:300]}"
            ) from None
    print(f"job        {job_id}", flush=True)
    at = f" --address {public_url(options.address)}" if options.address else ""
    try:
        log_end = follow(client, job_id, at)
    except KeyboardInterrupt:
        interrupted(client, job_id, at, stop=options.stop_on_interrupt)
    report_end(client.get_job_info(job_id), log_end)


def parse(argv: list[str]) -> Options:
    """Parse the command line (exit status 2 if it is wrong). Options that are not ours are the job's."""
    called = program(__file__)
    parser = argparse.ArgumentParser(
        prog=called,
        description=__doc__,
        epilog=f"All other options are the job's own: see `{called} JOB --help`. "
        f"Environment variables passed to the job: {PASSED.pattern.replace('|', ', ')}. Secrets are never passed: "
        "set them in the cluster's own environment. List, follow and stop jobs with `ray job list`, "
        "`ray job logs --follow ID` and `ray job stop ID`.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("job", nargs="?", metavar="JOB", help=f"Job to run: {', '.join(SUBMITTED)}.")
    parser.add_argument(
        "--address",
        metavar="URL",
        help="URL of the cluster's dashboard, http://HEAD:8265. Default: $RAY_API_SERVER_ADDRESS, else $RAY_ADDRESS.",
    )
    parser.add_argument(
        "--stop-on-interrupt",
        action="store_true",
        help="Make Ctrl-C stop the job. Default: Ctrl-C only stops following the log, and the job keeps running.",
    )
    ours, others = parser.parse_known_args(argv)
    if ours.job is None:
        if {"-h", "--help"} & set(others):
            parser.print_help()
            raise SystemExit(0)
        parser.error(f"name the job to run: {', '.join(SUBMITTED)}")
    if ours.job not in SUBMITTED:
        meant = did_you_mean(ours.job, SUBMITTED)
        parser.error(f"there is no job {ours.job!r} among {', '.join(SUBMITTED)}{meant}")
    return Options(ours.job, others, ours.address, ours.stop_on_interrupt)


def check(job: str, arguments: list[str]) -> None:
    """Parse a job's options before submitting it. Exits with 2 if they are wrong, and with 0 after ``--help``."""
    parse_command(importlib.import_module(f"jobs.{COMMANDS[job].module}"), arguments)


def job_environment() -> dict[str, str]:
    """Return the job's environment variables. Raises what ``require_no_password`` raises."""
    passed = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name) and value}
    for name, value in passed.items():
        require_no_password(value, name)
    return passed | STOPPING | {tracking.COMMIT: tracking.git_commit()}


def require_no_password(text: str, what: str) -> None:
    """Raise UserError, without repeating the secret, if a URL in the text has a part that may hold one.

    That is all that messages leave out: no list of parameters' names knows every key.
    """
    if redacted(text) != text:
        raise UserError(
            f"{what} is a URL with a user, password or key in it (before an @, or after a ?, # or ;), which everyone "
            "who sees the cluster's jobs could read: remove it, and set it where the cluster is started "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
        )


def pack(folder: Path) -> None:
    """Copy only the project's packages to a folder that Ray uploads."""
    root = Path(__file__).parents[1]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))


def connect(address: str | None) -> JobSubmissionClient:
    """Connect to the cluster's job API.

    Raises UserError if no cluster is named or it rejects the token, and ConnectionError if no dashboard answers.
    """
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not named:
        raise UserError("no cluster is named: give --address http://HEAD:8265, or set RAY_ADDRESS to it")
    if address:
        # Set the variable instead of passing an argument: in Ray the variable takes precedence.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    for name in ray_private.SUBMISSION_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    shown = public_url(named)
    try:
        return JobSubmissionClient()
    except ray.exceptions.AuthenticationError as error:
        problem = "rejects this token" if "invalid" in error.message else "requires a token"
        raise UserError(f"the cluster at {shown} {problem}: set {TOKEN}") from None
    except ConnectionError:
        raise ConnectionError(
            f"nothing answers at {shown}: check that --address is a cluster's dashboard"
        ) from None
    except (OSError, RuntimeError, ValueError, KeyError, ray.exceptions.RayError) as error:
        hint = "" if "://" in named else "; add http://, or the address is taken for Ray's own, port 6379"
        raise ConnectionError(f"no Ray dashboard answers at {shown} ({error}){hint}") from None


@dataclasses.dataclass
class Log:
    """A job's log, as printed so far.

    printed: number of characters. end: the last of them. heard: the time of the cluster's last reply.
    """

    printed: int = 0
    end: str = ""
    heard: float = dataclasses.field(default_factory=time.monotonic)

    async def follow(self, client: JobSubmissionClient, job_id: str) -> bool:
        """Print new lines until the log ends (True) or nothing arrives for ``IDLE_SECONDS`` (False)."""
        at = 0
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(IDLE_SECONDS) as idle:
                async for text in client.tail_job_logs(job_id):  # always starts at the log's beginning
                    idle.reschedule(clock() + IDLE_SECONDS)
                    self.heard = time.monotonic()
                    new = text[max(0, self.printed - at) :]
                    at += len(text)
                    self.printed += len(new)
                    self.end = (self.end + new)[-4000:]
                    print(new, end="", flush=True)
        except TimeoutError:
            return False
        return True


LOST = (OSError, aiohttp.ClientError, RuntimeError)


def follow(client: JobSubmissionClient, job_id: str, at: str) -> str:
    """Print the job's log to its end and return its last characters. A lost connection is re-established.

    Once the job is over, waits at most ``RECONNECT_SECONDS`` for the rest of the log.
    Raises ConnectionError if the cluster does not answer for ``RECONNECT_SECONDS``.
    """
    log = Log()
    over_since = None
    while True:
        ended, problem = False, None
        try:
            ended = asyncio.run(log.follow(client, job_id))
        except LOST as error:
            problem = error
        try:
            over = client.get_job_status(job_id).is_terminal()
            log.heard = time.monotonic()
        except LOST as error:
            over, problem = False, error
        now = time.monotonic()
        if over:
            over_since = over_since or now
            if ended or now - over_since > RECONNECT_SECONDS:
                return log.end
        elif problem is not None and now - log.heard > RECONNECT_SECONDS:
            raise ConnectionError(
                f"the cluster has not answered for {RECONNECT_SECONDS:.0f} s ({problem}). If {job_id} is still "
                f"running, follow it with `ray job logs --follow {job_id}{at}`"
            )
        time.sleep(1)


def interrupted(client: JobSubmissionClient, job_id: str, at: str, *, stop: bool) -> NoReturn:
    """After Ctrl-C, stop the job or print how to do so. Exits with status 130."""
    if not stop:
        print(
            f"{job_id} is still running: follow it with `ray job logs --follow {job_id}{at}`, "
            f"stop it with `ray job stop {job_id}{at}`",
            file=sys.stderr,
        )
        raise SystemExit(130)
    client.stop_job(job_id)
    while not (status := client.get_job_status(job_id)).is_terminal():
        time.sleep(0.5)
    print(f"{job_id}: {status.value.lower()}", file=sys.stderr)
    raise SystemExit(130)


def report_end(job: JobDetails, log_end: str) -> None:
    """If the job did not succeed, print why in one line and exit with its status."""
    if job.status == JobStatus.SUCCEEDED:
        return
    name, code = job.submission_id, job.driver_exit_code
    if job.status == JobStatus.STOPPED:
        print(f"{name} was stopped", file=sys.stderr)
        raise SystemExit(130)
    told = re.findall(r"^error: (.*)", log_end, re.MULTILINE)
    if told:
        reason = told[-1]
    elif code is not None:
        reason = f"its process ended with status {code}; see the end of the log above"
    else:
        reason = " ".join((job.message or "it never started").split())
    print(f"error: {name} failed: {redacted(reason)}", file=sys.stderr)
    raise SystemExit(code if code and 0 < code < 256 else 1)


if __name__ == "__main__":
    guard(lambda: run(parse(sys.argv[1:])))
