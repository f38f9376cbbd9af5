"""What a submission refuses before any cluster is asked: the dashboard would show it to everybody."""

import re
from pathlib import Path

import pytest

from glefld.errors import UserError
from jobs import submit
from tests.mistakes import one_line
from tests.passwords import PLACES, passwords

CLUSTER = Path(__file__).parents[2] / "docs" / "cluster.md"

SECRETS = {
    "an option": ("--source https://someone:hunter2@host/photos.zip", {}),
    "an option with =": ("--source=https://someone:hunter2@host/photos.zip", {}),
    "a slash in the password": ("--source https://someone:hunter2/x@host/photos.zip", {}),
    "a signed address": ("--source https://host/photos.zip?X-Amz-Expires=60&X-Amz-Signature=hunter2", {}),
    "a password as a parameter": ("--source https://host/photos.zip?pwd=hunter2", {}),
    "a key by another name": ("--source https://host/photos.zip?auth=hunter2", {}),
    "a web token": ("--source https://host/photos.zip?jwt=hunter2", {}),
    "a token after ;": ("--source https://host/photos.zip;token=hunter2", {}),
    "a token after #": ("--source https://host/photos.zip#access_token=hunter2", {}),
    "the tracking server": ("--source /data", {"MLFLOW_TRACKING_URI": "http://someone:hunter2@mlflow:5000"}),
    "the database": (
        "--source /data",
        {"MLFLOW_TRACKING_URI": "postgresql://mlflow:hunter2/gh==@db:5432/mlflow"},
    ),
    "the object store": ("--source /data", {"AWS_ENDPOINT_URL": "http://token@store:9000"}),
}


@pytest.mark.parametrize("case", SECRETS)
def test_a_password_is_not_submitted(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused without being repeated."""
    line, environment = SECRETS[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = submit.parse(f"ingest --dataset fld {line} --address http://127.0.0.1:1".split())
    printed = one_line(lambda: submit.run(options), capsys)
    assert "a user, password or key in it" in printed
    assert "hunter2" not in printed


@pytest.mark.parametrize("place", PLACES)
def test_no_password_is_submitted(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its characters: in the arguments, alone and in a list, and in the environment."""
    for password in passwords(300):
        url = place.replace("{}", password)
        for word in (url, f"--source={url}", f"vgg16={url}"):
            with pytest.raises(UserError, match="an option is a URL with a user, password or key in it"):
                submit.require_no_password(word, "an option")
        if "\0" not in url:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is a URL with a user"):
                submit.job_environment()


@pytest.mark.parametrize(
    "word",
    [
        "--source=s3://bucket/raw/fld",
        "--checkpoint=models:/fld-gle@champion",
        "--input=/data/a:b@c.jpg?",
        "--weights=vgg16=s3://bucket/weights/vgg16-397923af.pth",
        "http://store:9000",
        "gle:modules=0",
    ],
)
def test_what_holds_no_secret_is_submitted(word: str) -> None:
    submit.require_no_password(word, "an option")


def test_a_wrong_option_names_a_command_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        submit.check("ingest", ["--nonsense"])
    assert "python -m jobs.ingest --help" in capsys.readouterr().err


class Refusing:
    """A cluster that takes no job, and repeats what it was given."""

    def submit_job(self, **_: object) -> str:
        raise RuntimeError("x" * 275 + " https://someone:12hunter2@host/photos.zip")


def test_a_long_answer_is_not_cut_within_a_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would be left of it no longer looks like one."""
    monkeypatch.setattr(submit, "connect", lambda _: Refusing())
    options = submit.parse(["ingest", "--dataset", "fld", "--source", "/data"])
    printed = one_line(lambda: submit.run(options), capsys)
    assert "the cluster did not accept the job" in printed
    assert "12" not in printed


def test_the_documentation_names_every_variable_that_is_passed_on() -> None:
    listed = re.search(r"only these variables are passed on:(.*?)\.\s+A URL", CLUSTER.read_text(), re.DOTALL)
    assert listed is not None
    named = set(re.findall(r"`([A-Z0-9_*]+)`", listed[1]))
    assert named == {
        name.replace(".*", "*")
        for pattern in submit.PASSED.pattern.split("|")
        for name in {pattern.replace("(_S3)?", ""), pattern.replace("(_S3)?", "_S3")}
    }
