"""Whether the tracking server answers, told before anything is started for it."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from glefld.errors import UserError
from glefld.tracking import require_answer
from tests.mistakes import answering

NO_SERVER = {
    "nothing listens": ("http://someone:hidden@127.0.0.1:1", "nothing answers there"),
    "no such host": ("http://no.such.host.invalid:5000", "nothing answers there"),
    "no address": ("http://", "cannot be used"),
    "a port that is none": ("http://127.0.0.1:99999", "cannot be used"),
    "a slash in the password": (
        "http://someone:hidden/x@127.0.0.1:9",
        "used: in a password, / is written as %2F",
    ),
    "a question mark in the password": ("http://someone:hidden?x@127.0.0.1:9", "cannot be used"),
    "a number sign in the password": ("http://someone:hidden#x@127.0.0.1:9", "cannot be used"),
    "a backslash in the password": ("http://someone:hidden\\x@127.0.0.1:9", "cannot be used"),
    "no scheme": ("127.0.0.1:5000", "is not a URL: give http://host:5000"),
    "no scheme, but a password": ("someone:hidden@127.0.0.1:5000", "is not a URL: give http://host:5000"),
    "an unknown scheme": ("nonsense://x", "MLflow has no store of this kind"),
    "a folder that cannot be made": ("sqlite:////proc/x/mlflow.db", "/proc/x/mlflow.db cannot be written"),
    "a database without its module": (
        "postgresql://someone:hidden@127.0.0.1:9/x",
        "the module psycopg, which",
    ),
}


@pytest.mark.parametrize("case", NO_SERVER)
def test_a_server_that_is_not_there_is_the_users_to_mend(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, message = NO_SERVER[case]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=message) as told:
        require_answer(uri)
    assert "MLFLOW_TRACKING_URI" in str(told.value)
    assert "hidden" not in str(told.value)


def test_a_server_that_refuses_us_says_so() -> None:
    """As with a wrong password: it answers, but a training could not log to it."""
    with (
        answering(401) as address,
        pytest.raises(
            ConnectionError, match=r"MLflow at http://127\.0\.0\.1:.* cannot be used \(.*401"
        ) as told,
    ):
        require_answer(address.replace("://", "://someone:hidden@"))
    assert "hidden" not in str(told.value)


def test_a_store_without_a_server_is_not_made_by_asking(tmp_path: Path) -> None:
    require_answer(f"sqlite:///{tmp_path}/mlflow.db")
    assert not list(tmp_path.iterdir())


def test_a_store_that_a_killed_process_left_half_written_is_used(tmp_path: Path) -> None:
    written, left = tmp_path / "written.db", tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(written)) as database:
        database.execute("CREATE TABLE losses (loss)")
        database.execute("INSERT INTO losses VALUES (1)")
        database.commit()
        database.execute("PRAGMA cache_size = 1")  # pages go to the file before the commit
        database.executemany("INSERT INTO losses VALUES (?)", [("x" * 1000,)] * 100)
        for suffix in ("", "-journal"):  # as a kill at this point leaves them
            shutil.copyfile(f"{written}{suffix}", f"{left}{suffix}")
    require_answer(f"sqlite:///{left}")
    with contextlib.closing(sqlite3.connect(left)) as database:
        assert database.execute("SELECT loss FROM losses").fetchall() == [(1,)]


@pytest.mark.parametrize("uri", ["sqlite:///{}/mlflow.db", "file://{}"])
def test_a_file_that_is_no_store_says_so(uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("shopping list: milk\n")
    with pytest.raises((UserError, ConnectionError), match=r"MLflow.* cannot be (used|read)") as told:
        require_answer(uri.format(tmp_path))
    assert "SELECT" not in str(told.value)
