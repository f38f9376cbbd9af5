"""Jobs submitted to a running cluster with token authentication, as a user submits them: one node on loopback."""

import asyncio
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from ray.job_submission import JobDetails, JobStatus, JobType

from glefld.data.dataset import open_dataset
from glefld.tracking import log
from jobs import submit
from jobs.commands import COMMANDS, SUBMITTED
from tests.cluster.forks import Forks
from tests.cluster.hosts import Host, alive, clean_environment, secured, short_folder
from tests.cluster.servers import command_lines, free_port, wait_until
from tests.ingested import write_dataset
from tests.mistakes import one_line
from tests.raw_layouts import photos, rows, write_fld

LONG = (
    "--input-size 32 --epochs 1000 --batch-size 8 --model.backbone test_resnet --model.width 8 --random-weights "
    "--precision fp32 --num-workers 1"
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    host: Host
    address: str
    root: Path
    forks: Forks

    def submit(self, line: str, **more: str) -> subprocess.CompletedProcess[str]:
        arguments = [*line.split(), "--address", self.address]
        more = {"GLEFLD_ROOT": str(self.root), **more}
        if "RAY_AUTH_MODE" in more:  # which Ray reads as it is imported
            return self.host.call([sys.executable, "-m", "jobs.submit", *arguments], **more)
        return self.forks.run("jobs.submit", arguments, {**self.host.environment, **more})

    def jobs(self) -> list[dict[str, object]]:
        """What the dashboard shows of all jobs, newest first."""
        token = Path(self.host.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        answer = requests.get(
            f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}, timeout=10
        )
        answer.raise_for_status()
        found = [job for job in answer.json() if job["type"] == "SUBMISSION"]
        return sorted(found, key=lambda job: -job["start_time"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Cluster]:
    """Its own environment names the tracking store, with a password that no job may show."""
    root = tmp_path_factory.mktemp("root")
    shutil.copy(empty_store, root / "mlflow.db")
    with short_folder() as folder:
        host = Host("127.0.0.1", folder / "host", secured(folder))
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        host.start_ray(
            *("--head", f"--port={free_port()}", "--num-cpus=3", f"--temp-dir={folder}/ray"),
            *(f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}"),
            f"--ray-client-server-port={free_port()}",
        )
        host.wait_for_ray(lambda: alive(host, address))
        forks = Forks(host.environment)
        yield Cluster(host, address, root, forks)
        forks.stop()
        host.kill()


def test_help_lists_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        submit.parse(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(job in printed for job in SUBMITTED)


def test_all_jobs_can_be_submitted() -> None:
    """All but submit itself, doctor, which examines the machine it is called on, and the two that need no Ray."""
    assert {*COMMANDS} - {*SUBMITTED} == {"submit", "doctor", "predict", "export"}


def test_our_options_may_stand_anywhere() -> None:
    wanted = submit.Options("ingest", ["--dataset", "fld", "--margin=-1"], "http://a:1", True)
    ours = ["--address", "http://a:1"]
    assert submit.parse(["--stop-on-interrupt", *ours, "ingest", *wanted.arguments]) == wanted
    assert submit.parse(["ingest", *wanted.arguments, *ours, "--stop-on-interrupt"]) == wanted
    assert submit.parse(["ingest", "--dataset", "fld", *ours, "--margin=-1", "--stop-on-interrupt"]) == wanted


def test_only_code_is_packed(tmp_path: Path) -> None:
    """Three packages of Python files; nothing of what lies about in a checkout, and far from Ray's 100 MiB."""
    submit.pack(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path).parts[0] for path in files} == {"glefld", "pipelines", "jobs"}
    assert {path.suffix for path in files} == {".py"}
    assert sum(path.stat().st_size for path in files) < 5 << 20


def test_no_address_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray would look for any cluster of this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    options = submit.parse(["ingest", "--dataset", "fld", "--source", "/data"])
    assert "give --address http://HEAD:8265" in one_line(lambda: submit.run(options), capsys)


@pytest.mark.slow
def test_a_job_ends_as_it_would_here(cluster: Cluster) -> None:
    """Ingest: its log is followed, its status is 0, its data is there, and no secret travelled."""
    listed = rows(30)
    source = write_fld(cluster.root / "source", listed, photos(listed))
    with command_lines() as lines:
        done = cluster.submit(
            f"ingest --dataset fld --source {source}",
            AWS_SECRET_ACCESS_KEY="hunter2",
            MLFLOW_TRACKING_PASSWORD="hunter2",
            AWS_ENDPOINT_URL="http://store:9000",
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "rows per second" in done.stdout
    manifest = open_dataset(str(cluster.root / "data" / "fld"))
    assert manifest.rows_in == 30
    job = cluster.jobs()[0]
    assert job["submission_id"] in done.stdout
    assert job["status"] == "SUCCEEDED"
    assert "hunter2" not in json.dumps(job)
    passed = job["runtime_env"]["env_vars"]  # type: ignore[index]
    assert passed["AWS_ENDPOINT_URL"] == "http://store:9000"
    assert passed["GLEFLD_ROOT"] == str(cluster.root)
    token = Path(cluster.host.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert token not in json.dumps(job)
    assert any("-m jobs.ingest" in line for line in lines)
    assert not any(secret in line for line in lines for secret in ("hunter2", token))


def test_a_failed_job_is_its_own_line_and_status(cluster: Cluster) -> None:
    """A relative path means another place on each machine: the job says so, and so does the submission."""
    done = cluster.submit("ingest --dataset fld --source here/there")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert "--source is the relative path 'here/there'" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert cluster.jobs()[0]["status"] == "FAILED"


def test_a_wrong_option_is_told_before_anything_is_submitted(cluster: Cluster) -> None:
    before = len(cluster.jobs())
    done = cluster.submit("train --dataset fld --epochs many")
    assert done.returncode == 2
    assert "invalid literal" in done.stderr
    assert len(cluster.jobs()) == before


NO_ENTRY = {
    "no token": ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, "requires a token: set RAY_AUTH_MODE=token"),
    "authentication off": ({"RAY_AUTH_MODE": "disabled"}, "requires a token: set RAY_AUTH_MODE=token"),
    "a wrong token": ({"RAY_AUTH_TOKEN": uuid.uuid4().hex}, "rejects this token"),
}


@pytest.mark.parametrize("case", NO_ENTRY)
def test_without_the_token_nothing_runs(case: str, cluster: Cluster) -> None:
    environment, message = NO_ENTRY[case]
    before = len(cluster.jobs())
    done = cluster.submit("ingest --dataset fld --source /data", **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(cluster.jobs()) == before


def test_a_wrong_address_is_one_line(cluster: Cluster) -> None:
    elsewhere = dataclasses.replace(cluster, address=f"http://127.0.0.1:{free_port()}")
    done = elsewhere.submit("ingest --dataset fld --source /data")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"error: nothing answers at {elsewhere.address}" in done.stderr


def by_ray(
    cluster: Cluster, folder: str, entrypoint: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, as docs/cluster.md has it."""
    given = json.dumps({"env_vars": environment})
    words = ["ray", "job", "submit", "--address", cluster.address, "--working-dir", folder]
    return cluster.host.call([*words, "--runtime-env-json", given, "--", *entrypoint.split()])


@pytest.fixture(scope="module")
def packed() -> Iterator[str]:
    """A folder with what `jobs.submit` uploads."""
    with tempfile.TemporaryDirectory() as folder:
        submit.pack(Path(folder))
        yield folder


@pytest.mark.slow
def test_a_job_by_rays_own_means(cluster: Cluster, packed: str) -> None:
    """`ray job submit` runs one that trains and evaluates, two at a time, with the environment that it is given."""
    root = cluster.root / "own"
    write_dataset(root / "data/fld", {"train": 16, "val": 8})
    shutil.copy(cluster.root / "mlflow.db", root)
    done = by_ray(
        cluster,
        packed,
        "python -m jobs.compare --dataset fld --name own --models gle:modules=0 gle:modules=1 --parallel 2 "
        "--input-size 32 --epochs 1 --batch-size 8 --precision fp32 --num-workers 1 --cpus-per-worker 1",
        GLEFLD_ROOT=str(root),
        MLFLOW_TRACKING_URI=f"sqlite:///{root}/mlflow.db",
    )
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    assert cluster.jobs()[0]["status"] == "SUCCEEDED"
    assert len(json.loads((root / "runs/own/results-val.json").read_text())["results"]) == 2
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs(
        [e.experiment_id for e in client.search_experiments() if e.name == "glefld-fld"]
    )
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_mistake_by_rays_own_means_is_the_jobs_own_line(cluster: Cluster, packed: str) -> None:
    """Nothing is checked before: the job is there, says what is wrong, and its status is the command's."""
    done = by_ray(
        cluster, packed, "python -m jobs.ingest --dataset fld --source here/there", GLEFLD_ROOT="/data"
    )
    assert done.returncode == 1
    assert "--source is the relative path 'here/there'" in done.stdout + done.stderr
    assert cluster.jobs()[0]["status"] == "FAILED"


def test_every_job_runs_from_what_is_packed(packed: str) -> None:
    """With nothing else of the checkout within reach, each one's options can be read."""
    script = """
import runpy, sys
for job in sys.argv[1:]:
    sys.argv = [job, "--help"]
    try:
        runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert end.code in (None, 0), (job, end.code)
import jobs
print("packed", jobs.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *(COMMANDS[name].module for name in SUBMITTED)],
        cwd=packed,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("usage: ") == len(SUBMITTED)
    assert done.stdout.splitlines()[-1] == f"packed {packed}/jobs/__init__.py"


@dataclasses.dataclass
class Unreliable:
    """A cluster whose log breaks off after a while of talking; then it is had again from its beginning."""

    texts: list[str]
    breaks: list[int]
    status: JobStatus = JobStatus.SUCCEEDED

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for at, text in enumerate(self.texts):
            await asyncio.sleep(0.05)
            if self.breaks and at == self.breaks[0]:
                self.breaks.pop(0)
                raise RuntimeError("the connection was reset")
            yield text

    def get_job_status(self, job_id: str) -> JobStatus:
        if self.breaks:
            raise RuntimeError("not now")
        return self.status


def test_a_log_that_breaks_off_is_followed_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However long it was followed before, a lost connection is tried again, and every line is printed once."""
    monkeypatch.setattr(submit, "RECONNECT_SECONDS", 0.75)
    texts = [f"line {i}\n" for i in range(30)]
    end = submit.follow(Unreliable(texts, [20, 25]), "job", "")  # type: ignore[arg-type]
    assert capsys.readouterr().out == "".join(texts) == end


def test_a_cluster_that_is_gone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "RECONNECT_SECONDS", 0.5)
    with pytest.raises(ConnectionError, match=r"not answered .* `ray job logs --follow job --address there`"):
        submit.follow(Unreliable(["a\n"], [0] * 100), "job", " --address there")  # type: ignore[arg-type]


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 2), (77, 77), (-9, 1), (None, 1)])
def test_the_exit_status_is_the_jobs(code: int | None, expected: int) -> None:
    """A process that was killed has no status that a process could end with."""
    job = JobDetails(type=JobType.SUBMISSION, entrypoint="x", status=JobStatus.FAILED, driver_exit_code=code)
    with pytest.raises(SystemExit) as end:
        submit.report_end(job, "")
    assert end.value.code == expected


def test_a_stopped_job_has_time_to_end_its_run() -> None:
    """Longer than a run's end waits for MLflow, or SIGKILL would leave the run as running."""
    assert float(submit.STOPPING["RAY_JOB_STOP_WAIT_TIME_S"]) >= log.END_SECONDS + 30


@pytest.mark.slow
def test_interrupted_a_job_goes_on_or_stops(cluster: Cluster) -> None:
    """Ctrl-C only leaves the log, and says how to stop the job, whose MLflow run then ends as killed; with
    --stop-on-interrupt it stops the job in the same way."""
    write_dataset(cluster.root / "dots", {"train": 40, "val": 8})
    line = f"train --dataset fld --data {cluster.root}/dots {LONG} --name stopped"
    environment = {
        "GLEFLD_ROOT": str(cluster.root),
        "MLFLOW_TRACKING_URI": f"sqlite:///{cluster.root}/mlflow.db",
    }
    words = [sys.executable, "-m", "jobs.submit", *line.split(), "--address", cluster.address]
    leaving = cluster.host.run(words, **environment)
    wait_until((cluster.root / "runs/stopped/last.json").exists, "the first epoch", 240)
    leaving.send_signal(signal.SIGINT)
    assert leaving.wait(30) == 130
    job = cluster.jobs()[0]
    assert f"{job['submission_id']} is still running" in cluster.host.log.read_text()
    assert job["status"] == "RUNNING"
    told = re.search(r"stop it with `(ray job stop .*)`", cluster.host.log.read_text())
    assert told is not None
    stopped = cluster.host.call(told[1].split())  # as the user was told
    assert stopped.returncode == 0, stopped.stderr
    client = MlflowClient(f"sqlite:///{cluster.root}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "glefld-fld"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.tags["git_commit"] != "unknown"

    # What stops a job is the same: any one that takes long will do.
    line = f"synthesize --layout fld --count 100000 --output {cluster.root}/long"
    words = [sys.executable, "-m", "jobs.submit", *line.split(), "--address", cluster.address]
    stopping = cluster.host.run([*words, "--stop-on-interrupt"], **environment)
    wait_until(lambda: cluster.host.find("-m jobs.synthesize", "long"), "the job runs", 120)
    stopping.send_signal(signal.SIGINT)
    assert stopping.wait(60) == 130
    assert cluster.jobs()[0]["status"] == "STOPPED"
