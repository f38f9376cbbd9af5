"""Listing of folders and prefixes: every file once, in the order of the names' bytes, however it is divided."""

import contextlib
import http.server
import itertools
import os
import random
import threading
import urllib.parse
import xml.sax.saxutils
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from glefld import listing, storage

#: Names around the slash, in whose order a folder is not where its name would be: ``a-b`` comes before ``a/``.
PIECES = ("a", "b", "a-b", "a.b", "a b", "é", "A", "z", "0")


def some_names(seed: int, count: int) -> list[str]:
    """Paths of files at any depth; none is a folder of another."""
    rng = random.Random(seed)
    names: set[str] = set()
    for _ in range(count):
        parts = rng.choices(PIECES, k=rng.randint(0, 4))
        names.add("/".join([*parts, f"{rng.randint(0, 30)}.jpg"]))
    return sorted(names, key=str.encode)


def listed(url: str) -> pa.Table:
    return pa.concat_tables([listing.FILES.empty_table(), *listing.files(url)])


@pytest.mark.parametrize(("listers", "levels"), [(16, 3), (1, 1), (100, 9)])
def test_every_file_once_in_order(
    listers: int, levels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk and elsewhere, for any number of parts; sizes and versions are those of ``storage.find``."""
    monkeypatch.setattr(listing, "LISTERS", listers)
    monkeypatch.setattr(listing, "LEVELS", levels)
    monkeypatch.setattr(listing, "AHEAD", 3)
    monkeypatch.setattr(listing, "HELD_ROWS", 4)
    names = some_names(seed := random.randrange(1 << 31), 300)
    print("seed", seed)
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(i % 7))
    memory = f"memory://{tmp_path.name}-{listers}"
    fsspec.filesystem("memory").put(f"{tmp_path}/", memory, recursive=True)
    for url in (str(tmp_path), f"{tmp_path}/", memory):
        found = listed(url)
        assert found["name"].to_pylist() == names
        states = zip(found["size"].to_pylist(), found["version"].to_pylist(), strict=True)
        assert dict(zip(names, states, strict=True)) == storage.find(url)


def test_what_is_not_there_has_no_files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert len(listed(str(tmp_path / "empty"))) == len(listed(str(tmp_path / "absent"))) == 0


def test_names_that_are_not_utf8_are_marked(tmp_path: Path) -> None:
    """With an escape for each byte, as the files of a folder of such a name are."""
    folder = os.fsencode(tmp_path)
    os.mkdir(folder + b"/caf\xe9")
    for name in (b"caf\xe9/a.jpg", b"b\xff.jpg", b"c.jpg"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(b"x")
    found = listed(str(tmp_path))
    assert dict(zip(found["name"].to_pylist(), found["utf8"].to_pylist(), strict=True)) == {
        "b\\xff.jpg": False,
        "c.jpg": True,
        "caf\\xe9/a.jpg": False,
    }


def test_links_are_files(tmp_path: Path) -> None:
    """One to a file has its size; one to a folder, which might be above it, is not followed."""
    (tmp_path / "a.jpg").write_bytes(b"photo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "up.jpg").symlink_to(tmp_path)
    (tmp_path / "folder" / "b.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "folder" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    found = listed(str(tmp_path))
    assert found["name"].to_pylist() == ["a.jpg", "folder/b.jpg", "folder/gone.jpg", "folder/up.jpg"]
    assert found["size"].to_pylist()[:2] == [5, 5]


@contextlib.contextmanager
def bucket(names: list[str], page: int) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that lists a bucket of these keys as S3 does, and the requests it gets."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            prefix, slash = query.get("prefix", ""), query.get("delimiter")
            after = query.get("continuation-token", query.get("start-after", ""))
            found = [name for name in names if name.startswith(prefix) and name > after]
            entries: list[tuple[str, str]] = []
            for name in found[:page]:
                below = name[len(prefix) :]
                folder = prefix + below.partition("/")[0] + "/"
                key = xml.sax.saxutils.escape(urllib.parse.quote(folder if slash and "/" in below else name))
                entries.append(("CommonPrefixes", f"<Prefix>{key}</Prefix>"))
                if not slash or "/" not in below:
                    entries[-1] = (
                        "Contents",
                        f'<Key>{key}</Key><Size>{len(name)}</Size><ETag>"{key}"</ETag>',
                    )
            more = len(found) > page
            token = f"<NextContinuationToken>{found[page - 1]}</NextContinuationToken>" if more else ""
            body = "".join(f"<{tag}>{text}</{tag}>" for tag, text in dict.fromkeys(entries))
            answer = (
                f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
                f"<EncodingType>url</EncodingType>{body}</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # those remember another address
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()
            fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize("ranges", [256, 5])
def test_a_prefix_on_s3_is_cut_into_ranges_of_keys(ranges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key comes once and in order, and requests grow with the pages and the ranges, not with the prefixes."""
    page = 20
    monkeypatch.setattr(listing, "MOST_RANGES", ranges)
    names = [f"photos/{name}" for name in some_names(7, 1500)]
    others = ["photo", "photos", "photos-2/a.jpg", "photos.jpg", "photos/a/", "photos/é/"]
    keys = sorted([*names, *others], key=str.encode)
    with bucket(keys, page) as (address, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        found = listed("s3://bucket/photos")
        everything = listed("s3://bucket")
    below = [name.removeprefix("photos/") for name in names]
    assert found["name"].to_pylist() == below
    assert found["size"].to_pylist() == [len(name) for name in names]
    assert found["version"].to_pylist() == [urllib.parse.quote(name) for name in names]
    assert everything["name"].to_pylist() == [key for key in keys if not key.endswith("/")]
    starts = {query["start-after"][0] for query in map(_query, asked) if "start-after" in query}
    assert 4 <= len(starts) <= 2 * ranges
    assert len(asked) < 2 * (len(keys) / page + 2 * ranges + 2 * 17)


def _query(path: str) -> dict[str, list[str]]:
    return urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)


def test_a_digest_does_not_depend_on_the_division() -> None:
    """Of the same rows in tables of any length; another row, another order or another version is another digest."""
    rng = random.Random(1)
    names = some_names(1, 60)
    rows = pa.table([names, range(len(names)), names, [True] * len(names)], listing.FILES)

    def digest(table: pa.Table, cuts: list[int]) -> str:
        found = listing.Digest()
        pieces = [table.slice(a, b - a) for a, b in itertools.pairwise([0, *cuts, len(table)])]
        assert pa.concat_tables(found.passing(pieces)).equals(table)
        return found.hexdigest()

    whole = digest(rows, [])
    for _ in range(5):
        assert digest(rows, sorted(rng.choices(range(len(rows)), k=rng.randint(0, 9)))) == whole
    others = [rows.slice(1), rows.take(list(reversed(range(len(rows)))))]
    others.append(rows.set_column(2, "version", pa.array([*names[1:], "new"])))
    assert len({whole, *(digest(other, []) for other in others)}) == 4


@pytest.mark.parametrize("size", [1, 7, 100])
def test_regrouped_rows_are_the_rows(size: int) -> None:
    values = pa.table({"n": range(50)})
    pieces = [values.slice(a, b - a) for a, b in itertools.pairwise([0, 0, 3, 30, 31, 50])]
    batches = list(listing.regrouped(pieces, size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert pa.Table.from_batches(batches).equals(values)
