"""Archives: the same bytes from every kind and place, few and frugal reads, damage told apart."""

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from glefld.errors import BadPhoto, UserError
from pipelines import archives, members
from pipelines.archives import open_archive, read_index
from pipelines.members import read_members
from tests.full_disk import on_full_disk
from tests.raw_layouts import write_archive


def some_files(seed: int, count: int = 40) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 60_000, count)
    return {f"img/Some_Dress/{i:05d}.jpg": rng.bytes(size) for i, size in enumerate(sizes)}


def contents(url: str, staging: str) -> dict[str, bytes | BadPhoto]:
    archive = open_archive(url, staging)
    index = read_index(archive).members
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
    index = read_index(archive).members
    for share in (0.01, 0.3, 0.7, 0.95, 1.0):
        chosen = index.take(np.sort(rng.choice(900, max(2, int(share * 900)), replace=False)))
        CountingFileSystem.reads = []
        found = list(read_members(archive, chosen))
        assert [len(data) for data in found] == chosen["size"].to_pylist()
        assert sum(CountingFileSystem.reads) <= 1.2 * sum(chosen["size"].to_pylist())
        assert max(CountingFileSystem.reads) <= (1 + members.MAX_WASTE) * members.BATCH_BYTES
        if share == 1.0:
            total = sum(chosen["size"].to_pylist())
            assert len(CountingFileSystem.reads) <= 1 + total // (members.BATCH_BYTES // 2)


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
    second = read_index(open_archive(str(path), "")).members.to_pylist()[1]
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
    index = read_index(archive).members
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
    with pytest.raises(UserError, match="download it again") as error:
        contents(str(path), str(tmp_path / "staging"))
    assert str(path) in str(error.value)
    assert not any(staged.stat().st_size for staged in tmp_path.glob("staging/*"))


def test_a_tar_cut_between_members_is_refused(tmp_path: Path) -> None:
    """The end mark tells a whole tar from one that ends where a member does."""
    path = write_archive(tmp_path / "a.tar", {"a": b"x" * 512, "b": b"y" * 512})
    path.write_bytes(path.read_bytes()[: 2 * tarfile.BLOCKSIZE])
    with pytest.raises(UserError, match="byte 1024"):
        read_index(open_archive(str(path), ""))


def test_a_tar_that_unpacks_to_far_more_than_photos_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decompression bomb does not fill the disk: unpacking stops at the limit, and nothing is left."""
    monkeypatch.setattr(archives, "FREE_UNPACKED_BYTES", 1 << 20)
    path = write_archive(tmp_path / "a.tar.gz", {"a.jpg": bytes(20 << 20)})
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="more than 20 times its size"):
        open_archive(str(path), str(tmp_path / "staging"))
    assert not (tmp_path / "staging").exists()


def test_a_tar_that_the_folder_for_temporary_files_cannot_hold(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.tar.gz", {"a.jpg": bytes(20 << 20)})
    told = on_full_disk(1 << 20, tmp_path / "tmp", open_archive, str(path), str(tmp_path / "staging"))
    assert told.startswith(f"OSError: no space for temporary files in {tmp_path / 'tmp'} (File too large)")
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
    with pytest.raises(UserError, match=r"is not a readable tar .*bytes at byte"):
        read_index(open_archive(str(path), ""))


def named(url: Path) -> dict[str, bytes | str]:
    """What each name of an archive holds: its bytes, or why they cannot be read."""
    found = contents(str(url), "")
    return {name: data if isinstance(data, bytes) else data.detail for name, data in found.items()}


def without_entries(path: Path, count: int) -> None:
    """Take the last entries out of a zip's directory, and leave their number in its end record."""
    data = path.read_bytes()
    end = data.index(b"PK\x05\x06")
    start, stop = int.from_bytes(data[end + 16 : end + 20], "little"), end
    for _ in range(count):
        stop = data.rindex(DIRECTORY, 0, stop)
    size = (stop - start).to_bytes(4, "little")
    path.write_bytes(data[:stop] + data[end : end + 12] + size + data[end + 16 :])


@pytest.mark.parametrize("zip64", [False, True])
def test_a_zip_that_promises_more_files_than_it_lists_is_refused(
    zip64: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that has lost entries must not pass for a smaller data set. A zip64 counts in another place."""
    if zip64:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = write_archive(tmp_path / "a.zip", {f"{i:02d}.jpg": b"x" * 9 for i in range(20)})
    assert len(named(path)) == 20
    if zip64:
        data = bytearray(path.read_bytes())
        at = data.index(b"PK\x06\x06") + 32
        assert data[at] == 20
        data[at] = 32
        path.write_bytes(data)
    else:
        without_entries(path, 8)
    promised = r"lists 20 files where its end record promises 32" if zip64 else "12 files .* promises 20"
    with pytest.raises(UserError, match=promised) as error:
        read_index(open_archive(str(path), ""))
    assert str(path) in str(error.value)


def write_tar(path: Path, members: list[tuple[str, bytes, str | bytes]]) -> Path:
    """A tar of members: name, type, and content or a link's target."""
    with tarfile.open(path, "w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            data = content if isinstance(content, bytes) else b""
            info.linkname, info.size = content if isinstance(content, str) else "", len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


FILE, HARD, SOFT = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE
NO_TARGET = "a link to a file that is not in the archive"


def test_links_in_a_tar_are_the_files_that_they_name(tmp_path: Path) -> None:
    """Hard or symbolic, also through another link; what cannot be read stays and says why."""
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("./a/1.jpg", FILE, b"one"),
            ("a/hard.jpg", HARD, "./a/1.jpg"),
            ("hard-to-hard.jpg", HARD, "a/hard.jpg"),
            ("b/soft.jpg", SOFT, "../a/2.jpg"),
            ("hard-to-soft.jpg", HARD, "b/soft.jpg"),
            ("a/2.jpg", FILE, b"two"),
            ("a/too-early.jpg", HARD, "a/3.jpg"),
            ("a/3.jpg", FILE, b"three"),
            ("gone.jpg", SOFT, "nowhere.jpg"),
            ("absolute.jpg", SOFT, "/etc/passwd"),
            ("round.jpg", SOFT, "about.jpg"),
            ("about.jpg", SOFT, "round.jpg"),
            ("itself.jpg", SOFT, "itself.jpg"),
            ("folder", tarfile.DIRTYPE, b""),
            ("pipe.jpg", tarfile.FIFOTYPE, b""),
            ("device.jpg", tarfile.CHRTYPE, b""),
            ("unknown.jpg", b"Q", b"four"),
        ],
    )
    no_file = "a device, a pipe or another thing that is no file"
    assert named(path) == {
        **{"a/1.jpg": b"one", "a/hard.jpg": b"one", "hard-to-hard.jpg": b"one"},
        **{"a/2.jpg": b"two", "b/soft.jpg": b"two", "hard-to-soft.jpg": b"two", "a/3.jpg": b"three"},
        **dict.fromkeys(["gone.jpg", "absolute.jpg", "round.jpg", "about.jpg", "itself.jpg"], NO_TARGET),
        **{"a/too-early.jpg": NO_TARGET},
        **dict.fromkeys(["pipe.jpg", "device.jpg", "unknown.jpg"], no_file),
    }


def test_the_last_of_several_files_of_one_name_counts(tmp_path: Path) -> None:
    """As when the archive is unpacked; those before it are counted. A hard link means the one before it."""
    tar = [("a.jpg", FILE, b"1"), ("b.jpg", HARD, "a.jpg"), ("./a.jpg", FILE, b"2"), ("c.jpg", HARD, "a.jpg")]
    path = write_tar(tmp_path / "a.tar", [*tar, ("a.jpg", FILE, b"3")])
    assert named(path) == {"a.jpg": b"3", "b.jpg": b"1", "c.jpg": b"2"}
    assert read_index(open_archive(str(path), "")).replaced == 2
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in (("a.jpg", "1"), ("b.jpg", "1"), ("a.jpg", "2")):
            if name in archive.namelist():
                with pytest.warns(UserWarning, match="Duplicate"):
                    archive.writestr(name, data)
            else:
                archive.writestr(name, data)
    assert named(tmp_path / "a.zip") == {"a.jpg": b"2", "b.jpg": b"1"}
    assert read_index(open_archive(str(tmp_path / "a.zip"), "")).replaced == 1


def test_one_name_that_is_not_text_does_not_stop_the_others(tmp_path: Path) -> None:
    """It is named with an escape. A tar's file can be read all the same, a folder's is refused."""
    name = os.fsdecode(b"caf\xe9.jpg")
    tar = write_tar(tmp_path / "a.tar", [(name, FILE, b"1"), ("b.jpg", HARD, name), ("c.jpg", FILE, b"2")])
    assert named(tar) == {"caf\\xe9.jpg": b"1", "b.jpg": b"1", "c.jpg": b"2"}
    folder = write_archive(tmp_path / "folder", {name: b"1", "c.jpg": b"2"})
    assert named(folder) == {"caf\\xe9.jpg": "its name is not UTF-8: rename the file", "c.jpg": b"2"}
    # A zip says itself that a name is UTF-8, so it is damaged if the name is not.
    path = write_archive(tmp_path / "a.zip", {"cafü.jpg": b"1"})
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xe9\xe9"))
    with pytest.raises(UserError, match=r"the name b'caf\\xe9\\xe9\.jpg' in it is not UTF-8"):
        named(path)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="is not UTF-8: rename"):
        open_archive(str(tmp_path / name / "a.tar.gz"), str(tmp_path))


def zip64_extra(path: Path, **fields: int) -> None:
    """Give the second entry of a zip's directory these 64-bit sizes and offset."""
    data = path.read_bytes()
    entry = data.index(DIRECTORY, data.index(DIRECTORY) + 1)
    values = [fields[name] for name in ("size", "stored", "offset") if name in fields]
    extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)
    head = bytearray(data[entry : entry + 46])
    for name, at in (("stored", 20), ("size", 24), ("offset", 42)):
        if name in fields:
            head[at : at + 4] = b"\xff" * 4
    head[30:32] = len(extra).to_bytes(2, "little")
    name_end = entry + 46 + int.from_bytes(head[28:30], "little")
    end = data.index(b"PK\x05\x06")
    size = (int.from_bytes(data[end + 12 : end + 16], "little") + len(extra)).to_bytes(4, "little")
    path.write_bytes(
        data[:entry]
        + head
        + data[entry + 46 : name_end]
        + extra
        + data[name_end : end + 12]
        + size
        + data[end + 16 :]
    )


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"size": 1 << 63}, "picture_too_large", "bytes"),
        ({"size": (1 << 64) - 2, "stored": 1 << 63}, "picture_too_large", "bytes"),
        ({"offset": 1 << 63}, "unreadable_photo", "offset outside"),
        ({"offset": 1 << 20}, "unreadable_photo", "offset outside"),
    ],
)
def test_numbers_beyond_the_archive_spoil_one_member(
    fields: dict[str, int], reason: str, detail: str, tmp_path: Path
) -> None:
    path = write_archive(tmp_path / "a.zip", {"a.jpg": b"a" * 99, "b.jpg": b"b" * 99, "c.jpg": b"c" * 99})
    zip64_extra(path, **fields)
    found = contents(str(path), "")
    bad = found.pop("b.jpg")
    assert found == {"a.jpg": b"a" * 99, "c.jpg": b"c" * 99}
    assert isinstance(bad, BadPhoto)
    assert (bad.reason, detail in bad.detail) == (reason, True)


def test_a_member_without_a_name_is_one_like_others(tmp_path: Path) -> None:
    files = {"a.jpg": b"a", "": b"nameless", "b.jpg": b"b"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in files.items():
            with archive.open(zipfile.ZipInfo(name), "w") as member:
                member.write(data)
    assert named(tmp_path / "a.zip") == files
    assert named(write_archive(tmp_path / "a.tar", files)) == files


def test_two_entries_may_share_their_bytes(tmp_path: Path) -> None:
    """Two names in a zip's directory with one offset are one file under two names."""
    path = write_archive(tmp_path / "a.zip", {"a.jpg": b"x" * 99, "b.jpg": b"x" * 99})
    data = bytearray(path.read_bytes())
    entry = data.index(DIRECTORY, data.index(DIRECTORY) + 1)
    data[entry + 42 : entry + 46] = bytes(4)
    path.write_bytes(data)
    assert named(path) == {"a.jpg": b"x" * 99, "b.jpg": b"x" * 99}


def test_a_link_to_a_folder_is_not_a_photo(tmp_path: Path) -> None:
    write_archive(tmp_path / "folder", {"a.jpg": b"a", "below/b.jpg": b"b"})
    (tmp_path / "folder" / "link.jpg").symlink_to("below")
    found = contents(str(tmp_path / "folder"), "")
    bad = found.pop("link.jpg")
    assert found == {"a.jpg": b"a", "below/b.jpg": b"b"}
    assert isinstance(bad, BadPhoto)
    assert bad.reason == "unreadable_photo"


def test_another_download_is_not_taken_for_the_staged_one(tmp_path: Path) -> None:
    """What was unpacked of one compressed tar is not read in place of another."""
    staging = str(tmp_path / "staging")
    for name, data in (("one.tar.gz", b"1"), ("two.tar.gz", b"2")):
        assert contents(str(write_archive(tmp_path / name, {"a": data})), staging) == {"a": data}
