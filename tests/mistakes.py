"""What a user sees of a mistake."""

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import guard
from tests import dots

#: MLFLOW_TRACKING_URI of a server that is down.
NO_SERVER = "http://127.0.0.1:1"


def one_line(action: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr in which the action ends, with exit status 1."""
    with pytest.raises(SystemExit) as end:
        guard(action)
    printed = capsys.readouterr().err
    assert end.value.code == 1
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


@contextlib.contextmanager
def answering(status: int, body: bytes = b"") -> Iterator[str]:
    """The address of a server that answers each request with this status and body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def forbid_ray(monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    """Let the test fail if a job comes to the point where it starts Ray, which takes longer than all checks."""

    def fail(**_: object) -> None:
        pytest.fail("the mistake was not told before Ray started")

    monkeypatch.setattr(f"jobs.{job}.start_ray", fail)


def write_wrong_files(folder: Path) -> None:
    """What a user may name by mistake: a text, and a photo where a data set or a checkpoint is wanted."""
    (folder / "notes.txt").write_text("shopping list: milk\n")
    (folder / "photos").mkdir()
    photo = dots.photo(dots.random_points(np.random.default_rng(0), (0, 0, 90, 70)), 90, 70)
    (folder / "photos" / "a.jpg").write_bytes(dots.encoded(photo, "JPEG"))


def everything(folder: Path) -> list[str]:
    """All files and folders below it: a mistake leaves none behind."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
