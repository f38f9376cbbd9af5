"""Archives: the same bytes from every kind and place, few and frugal reads, damage told apart."""

import io
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from glefld.errors import BadPhoto
from pipelines import archives
from pipelines.archives import open_archive, read_index, read_members
from tests.raw_layouts import write_archive


def some_files(seed: int, count: int = 40) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 60_000, count)
    return {f"img/Some_Dress/{i:05d}.jpg": rng.bytes(size) for i, size in enumerate(sizes)}


def contents(url: str, staging: str) -> dict[str, bytes | BadPhoto]:
    archive = open_archive(url, staging)
    index = read_index(archive)
    return dict(zip(index["name"].to_pylist(), read_members(archive, index), strict=True))


@pytest.mark.parametrize("place", ["local", "memory"])
@pytest.mark.parametrize("name", ["a.zip", "deflated.zip", "a.tar", "a.tar.gz", "folder"])
def test_every_kind_gives_the_same_bytes(name: str, place: str, tmp_path: Path) -> None:
    """A zip, a tar, a compressed tar and a folder hold the same members, on a disk and elsewhere."""
    files = some_files(1) | {"notes/../../above.txt": b"a name that leads out", "img/long" + "g" * 200: b"x"}
    if name == "folder":
        del files["notes/../../above.txt"]
    compression = zipfile.ZIP_DEFLATED if name == "deflated.zip" else zipfile.ZIP_STORED
    path = write_archive(tmp_path / "source" / name, files, compression)
    before = sorted(tmp_path.rglob("*"))
    url, staging = str(path), str(tmp_path / "staging")
    if place == "memory":
        url, staging = f"memory://{tmp_path.name}/{name}", f"memory://{tmp_path.name}/staging"
        fsspec.filesystem("memory").put(str(path), url, recursive=True)
    assert contents(url, staging) == files
    unpacked = {tmp_path / "staging"} if name == "a.tar.gz" and place == "local" else set()
    assert {p for p in tmp_path.rglob("*") if p.parent.name != "staging"} == {*before, *unpacked}


def test_zip_written_as_a_stream(tmp_path: Path) -> None:
    """Local headers may lack sizes (data descriptors), have zip64 fields, and follow foreign bytes."""
    files = some_files(2, count=8)
    with (tmp_path / "a.zip").open("wb") as raw:
        raw.write(b"#!/bin/sh\n" * 9)
        stream = io.BytesIO()
        stream.seekable = lambda: False  # type: ignore[method-assign]
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("img")
            for name, data in files.items():
                with archive.open(name, "w", force_zip64=True) as member:
                    member.write(data)
        raw.write(stream.getvalue())
    assert contents(str(tmp_path / "a.zip"), "") == files


class CountingFileSystem(LocalFileSystem):
    """The local disk, counting what is asked of it."""

    protocol = "counted"
    reads: list[int]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("counted://"))  # which older releases leave there

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: object
    ) -> bytes:
        data = super().cat_file(path, start, end, **kwargs)
        type(self).reads.append(len(data))
        return data


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_reads_are_few_and_frugal(name: str, tmp_path: Path) -> None:
    """Any choice of members costs at most 1.2 times its bytes; neighbours come in large ranges."""
    seed = int(np.random.default_rng().integers(1 << 31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3_000, 40_000, 900)
    write_archive(tmp_path / name, {f"img/{i:05d}.jpg": rng.bytes(size) for i, size in enumerate(sizes)})
    fsspec.register_implementation("counted", CountingFileSystem, clobber=True)
    archive = open_archive(f"counted://{tmp_path}/{name}", "")
    index = read_index(archive)
    for share in (0.01, 0.3, 0.7, 0.95, 1.0):
        chosen = index.take(np.sort(rng.choice(900, max(2, int(share * 900)), replace=False)))
        CountingFileSystem.reads = []
        found = list(read_members(archive, chosen))
        assert [len(data) for data in found] == chosen["size"].to_pylist()
        assert sum(CountingFileSystem.reads) <= 1.2 * sum(chosen["size"].to_pylist())
        assert max(CountingFileSystem.reads) <= (1 + archives.MAX_WASTE) * archives.BATCH_BYTES
        if share == 1.0:
            total = sum(chosen["size"].to_pylist())
            assert len(CountingFileSystem.reads) <= 1 + total // (archives.BATCH_BYTES // 2)


def flip(path: Path, at: int, byte: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[at] = data[at] ^ 0xFF if byte is None else byte
    path.write_bytes(data)


DIRECTORY = b"PK\x01\x02"
DAMAGE = {
    "a flipped byte": (lambda p, m, d: flip(p, m["stop"] - 5), "unreadable_photo", "checksum"),
    "an overwritten header": (lambda p, m, d: flip(p, m["start"]), "unreadable_photo", "no member"),
    "a header that reaches too far": (
        lambda p, m, d: flip(p, m["start"] + 29, 9),
        "truncated_photo",
        "packed",
    ),
    "an encrypted member": (lambda p, m, d: flip(p, d + 8, 1), "unreadable_photo", "encrypted"),
    "an unknown packing": (lambda p, m, d: flip(p, d + 10, 14), "unreadable_photo", "zip method 14"),
    "a declared size too small": (lambda p, m, d: flip(p, d + 24, 1), "unreadable_photo", "another size"),
    "a declared size of gigabytes": (lambda p, m, d: flip(p, d + 27, 127), "picture_too_large", "bytes"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_member_is_told_and_the_others_read(case: str, compression: int, tmp_path: Path) -> None:
    damage, reason, detail = DAMAGE[case]
    files = {f"{i}.jpg": bytes(range(200)) * 50 for i in range(3)}
    path = write_archive(tmp_path / "a.zip", files, compression)
    second = read_index(open_archive(str(path), "")).to_pylist()[1]
    entry = path.read_bytes().index(DIRECTORY, path.read_bytes().index(DIRECTORY) + 1)
    damage(path, second, entry)
    first, bad, third = contents(str(path), "").values()
    assert first == third == files["0.jpg"]
    assert isinstance(bad, BadPhoto)
    if case == "a flipped byte" and compression == zipfile.ZIP_DEFLATED:
        assert bad.reason == "unreadable_photo"  # the packing breaks before the checksum is reached
    else:
        assert (bad.reason, detail in bad.detail) == (reason, True), bad


def test_empty_members_are_unreadable(tmp_path: Path) -> None:
    """An empty file has no range to ask for; its neighbours are not shifted by it."""
    files = {"a.jpg": b"aa", "b.jpg": b"", "c.jpg": b"ccc"}
    for name in ("a.tar", "folder"):
        a, b, c = contents(str(write_archive(tmp_path / name, files)), "").values()
        assert (a, c) == (b"aa", b"ccc")
        assert isinstance(b, BadPhoto)


def test_a_file_that_has_gone_is_missing(tmp_path: Path) -> None:
    archive = open_archive(str(write_archive(tmp_path / "folder", {"a.jpg": b"a", "b.jpg": b"b"})), "")
    index = read_index(archive)
    (tmp_path / "folder" / "a.jpg").unlink()
    gone, there = read_members(archive, index)
    assert isinstance(gone, BadPhoto)
    assert (gone.reason, there) == ("missing_photo", b"b")


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


UNREADABLE = [("a.zip", 0.9), ("a.tar", 0.5), ("a.tar", 0.75), ("a.tar.gz", 0.5), ("a.tar.gz", 0.0)]


@pytest.mark.parametrize(("name", "keep"), UNREADABLE)
def test_an_archive_cut_short_is_refused(name: str, keep: float, tmp_path: Path) -> None:
    """Half a download must not pass for a smaller data set."""
    path = write_archive(tmp_path / name, some_files(3))
    cut(path, keep)
    with pytest.raises(ValueError, match="download it again") as error:
        contents(str(path), str(tmp_path / "staging"))
    assert str(path) in str(error.value)
    assert not any(staged.stat().st_size for staged in tmp_path.glob("staging/*"))


def test_a_tar_cut_between_members_is_refused(tmp_path: Path) -> None:
    """The end mark tells a whole tar from one that ends where a member does."""
    path = write_archive(tmp_path / "a.tar", {"a": b"x" * 512, "b": b"y" * 512})
    path.write_bytes(path.read_bytes()[: 2 * tarfile.BLOCKSIZE])
    with pytest.raises(ValueError, match="byte 1024"):
        read_index(open_archive(str(path), ""))


def test_a_tar_that_unpacks_to_far_more_than_photos_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decompression bomb does not fill the disk: unpacking stops at the limit, and nothing is left."""
    monkeypatch.setattr(archives, "FREE_UNPACKED_BYTES", 1 << 20)
    path = write_archive(tmp_path / "a.tar.gz", {"a.jpg": bytes(20 << 20)})
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="more than 20 times its size"):
        open_archive(str(path), str(tmp_path / "staging"))
    assert not (tmp_path / "staging").exists()


def header(name: bytes, size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar's header block, its size field as given."""
    block = bytearray(tarfile.TarInfo(name.decode()).tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HOSTILE_TARS = {
    "a size that leads back to its own header": header(
        b"a", b"\xff" + (-512).to_bytes(11, "big", signed=True)
    ),
    "a negative size": header(b"a", b"\xff" + (-1).to_bytes(11, "big", signed=True)),
    "a name of 200 MiB": header(b"a", b"%011o\0" % (200 << 20), tarfile.GNUTYPE_LONGNAME) + bytes(1 << 20),
}


@pytest.mark.parametrize("case", HOSTILE_TARS)
@pytest.mark.timeout(30)
def test_a_hostile_tar_ends_in_one_line(case: str, tmp_path: Path) -> None:
    """Neither a loop without end nor memory as the header asks for it."""
    path = tmp_path / "a.tar"
    path.write_bytes(HOSTILE_TARS[case] + bytes(1024))
    with pytest.raises(ValueError, match=r"is not a readable tar .*bytes at byte"):
        read_index(open_archive(str(path), ""))


def test_another_download_is_not_taken_for_the_staged_one(tmp_path: Path) -> None:
    """What was unpacked of one compressed tar is not read in place of another."""
    staging = str(tmp_path / "staging")
    for name, data in (("one.tar.gz", b"1"), ("two.tar.gz", b"2")):
        assert contents(str(write_archive(tmp_path / name, {"a": data})), staging) == {"a": data}
