"""The command ``glefld``: what it lists, how it is found again when mistyped, completion, and the wheel it comes in."""

import ast
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glefld import __version__
from jobs import __main__ as command
from jobs import commands, completion

ROOT = Path(__file__).parents[2]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As the script in ``bin`` is called; a test adds the arguments."""
    argv = ["/somewhere/bin/glefld"]
    monkeypatch.setattr(sys, "argv", argv)
    return argv


def ended(line: str) -> int | str | None:
    """The exit status of ``glefld`` with these arguments."""
    sys.argv[1:] = line.split()
    with pytest.raises(SystemExit) as end:
        command.main()
    return end.value.code


def test_help_is_one_screen(called: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Of 80 columns and 24 lines, with the shell's next prompt. Without arguments it is printed too."""
    sys.argv[1:] = ["--help"]
    command.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("usage: glefld ")
    listed = {line.split()[0] for line in lines if line.startswith("  ")}
    assert listed == set(commands.COMMANDS)
    sys.argv[1:] = []
    command.main()
    assert capsys.readouterr().out.splitlines() == lines


def test_every_module_with_a_command_line_is_a_command() -> None:
    modules = {
        path.stem for path in (ROOT / "jobs").glob("*.py") if 'if __name__ == "__main__"' in path.read_text()
    }
    assert modules == {each.module for each in commands.COMMANDS.values()} | {"__main__"}


def words(path: Path) -> Iterator[str]:
    """The texts of a module that a user may read: all but docstrings, and the docstring of a command, its help."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    inner = {node.body[0].value for node in nodes if path.parent.name != "jobs" or node is not tree}  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
            yield node.value


def test_messages_name_commands_as_they_are_typed() -> None:
    """``glefld train``, as the documentation does, and not the module that runs it."""
    own = [path for name in ("glefld", "pipelines", "jobs") for path in (ROOT / name).rglob("*.py")]
    modules = "|".join(c.module for c in commands.COMMANDS.values())
    # What an f-string fills in follows "jobs." at the end of its text.
    named = re.compile(rf"\s\(?jobs\.({modules}|$)")
    wrong = [
        f"{path.relative_to(ROOT)}: {text}" for path in own for text in words(path) if named.search(text)
    ]
    assert not [line for line in wrong if not re.search(r"(python -m|import) jobs\.", line)]


def test_the_version(called: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It is the package's."""
    sys.argv[1:] = ["--version"]
    command.main()
    assert capsys.readouterr().out == f"glefld {__version__}\n"
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("trian --dataset fld", "did you mean train?"),
        ("Evaluate", "did you mean evaluate?"),
        ("--print-completion bsh", "did you mean bash?"),
        ("submit ingets --source x", "did you mean ingest?"),
        ("train --dataset deepfasion", "did you mean --dataset deepfashion?"),
        ("train --dataset fld --model fnp", "did you mean --model fpn?"),
        ("train --dataset fld --preset papre", "did you mean --preset paper?"),
        ("train --datset fld", "did you mean --dataset?"),
        ("evaluate --dataset fld --checkpoint x --split tset", "did you mean --split test?"),
    ],
)
def test_a_mistyped_name_gets_the_right_one(
    line: str, meant: str, called: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(line) == 2
    assert meant in capsys.readouterr().err


def test_what_is_like_no_name_gets_none(called: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("xyzzy") == 2
    printed = capsys.readouterr().err
    assert "did you mean" not in printed
    assert "glefld --help" in printed
    assert ended("train --dataset xyzzy") == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("job", ["ingest", "train", "submit", "submit train"])
def test_messages_name_the_command_as_it_was_called(
    job: str, called: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(f"{job} --no-such-option 1") == 2 if job != "submit" else ended("submit") == 2
    printed = capsys.readouterr().err
    assert f"glefld {job.split()[-1]}" in printed
    assert "python -m" not in printed


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completion of bash."""
    path = tmp_path_factory.mktemp("completion") / "glefld"
    path.write_text(completion.script("bash"))
    return path


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("glefld tr", "glefld train "),
        ("glefld train --da", "glefld train --data"),
        ("glefld train --datas", "glefld train --dataset "),
        ("glefld train --dataset deepfashion-f", "glefld train --dataset deepfashion-fine "),
        ("glefld train --model san", "glefld train --model sanl"),
        ("glefld submit ing", "glefld submit ingest "),
        ("glefld submit ingest --sou", "glefld submit ingest --source "),
        ("glefld infer --input ./a-ph", "glefld infer --input ./a-photo.jpg "),
    ],
)
def test_bash_completes(typed: str, completed: str, script: Path, tmp_path: Path) -> None:
    """A real one at a terminal: what is typed before the tab key is completed as far as it is certain."""
    (tmp_path / "a-photo.jpg").touch()
    ours, theirs = pty.openpty()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PS1": "> ",
        "TERM": "dumb",
        "INPUTRC": os.devnull,
    }
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        os.write(ours, f"source {script}; echo rea''dy\n".encode())
        wait_for(ours, "\nready")
        os.write(ours, f"{typed}\t".encode())
        assert wait_for(ours, completed)
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)


def wait_for(terminal: int, wanted: str) -> bool:
    """Read from a terminal until the wanted text is there."""
    seen = ""
    until = time.monotonic() + 60
    while wanted not in seen.replace("\r", "").replace("\a", ""):  # bash beeps where it is not certain
        assert time.monotonic() < until, f"{wanted!r} is not in {seen!r}"
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 4096).decode()
    return True


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_scripts(shell: str) -> None:
    """They are not installed here, so only what the scripts know is looked at."""
    text = completion.script(shell)
    assert "--dataset" in text
    assert all(name in text for name in commands.COMMANDS)


@pytest.mark.parametrize("arguments", [["--print-completion", "bash"], ["doctor"]])
def test_nothing_is_printed_when_the_reader_has_left(arguments: list[str], tmp_path: Path) -> None:
    """As with ``| head``, from the first line on: by print, and by rich."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "GLEFLD_ROOT": str(tmp_path)},
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed that is built from what this repository holds, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = ROOT / ".tools" / "bin" / "uv"
    if not uv.exists():
        pytest.skip("no .tools/bin/uv: run make setup")
    copy = folder / "source"
    for package in ("glefld", "pipelines", "jobs"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    python = ["--python", sys.executable, "--offline", "--quiet"]
    subprocess.run(
        [uv, "build", "--wheel", "--no-build-isolation", *python, "--out-dir", folder / "dist", copy],
        check=True,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run(
        [uv, "pip", "install", "--no-deps", *python, "--target", folder / "site", wheel], check=True
    )
    return folder / "site"


def test_the_wheel_works_by_itself(installed: Path, tmp_path: Path) -> None:
    """The script in it, from a folder that is not the repository: help, version and a job."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GLEFLD_")}
    environment["PYTHONPATH"] = str(installed)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [installed / "bin" / "glefld", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert run("--version") == f"glefld {__version__}\n"
    assert run("--help").startswith("usage: glefld COMMAND")
    assert run("synthesize", "--layout", "fld", "--count", "2", "--output", "raw").rstrip().endswith("┘")
    assert (tmp_path / "raw" / "img.zip").exists()


def test_the_wheel_holds_the_three_packages(installed: Path) -> None:
    """And all their modules, but nothing else of the repository."""
    packages = {path.name for path in installed.iterdir() if path.is_dir() and "." not in path.name}
    assert packages == {"glefld", "pipelines", "jobs", "bin"}
    for package in ("glefld", "pipelines", "jobs"):
        ours = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        theirs = {str(path.relative_to(installed)) for path in (installed / package).rglob("*.py")}
        assert theirs == ours
