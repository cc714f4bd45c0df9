import gzip
import io
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from pdserve.errors import ArchiveError, DiskError, FetchError
from pdserve.models import archive
from pdserve.models.archive import Limits, unpack


def member(name: str, data: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


MODEL = [member("m_infer/", b"", type=tarfile.DIRTYPE), member("m_infer/a"), member("m_infer/deep/b", b"yy")]


@pytest.fixture
def unpacked(tmp_path):
    """Unpack bytes; give the files that came, by name."""

    def run(data: bytes, **options: object) -> dict[str, bytes]:
        (tmp_path / "it.tar").write_bytes(data)
        folder = tmp_path / "out"
        folder.mkdir()
        try:
            unpack(tmp_path / "it.tar", folder, **options)  # type: ignore[arg-type]
        except ArchiveError:
            assert list(folder.iterdir()) == []
            raise
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return run


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("zipped", [False, True])
def test_top_folder_is_left_out(unpacked, tar_format, zipped):
    data = tar(MODEL, tar_format)
    assert unpacked(gzip.compress(data) if zipped else data) == {"a": b"x", "deep/b": b"yy"}


def test_leading_dot_folder(unpacked):
    assert unpacked(tar([member("./", b"", type=tarfile.DIRTYPE), member("./m/a")])) == {"a": b"x"}


def test_several_at_the_top_stay(unpacked):
    assert unpacked(tar([member("a"), member("m/b")])) == {"a": b"x", "m/b": b"x"}


def test_what_macos_adds_is_left_out(unpacked):
    members = [member("._m"), member("m/._a"), member("m/a"), member("m/.DS_Store")]
    assert unpacked(tar(members)) == {"a": b"x"}


def test_long_names_and_other_scripts(unpacked):
    long = "m/" + "d" * 120 + "/" + "饮料" * 20
    assert unpacked(tar([member(long)])) == {long[2:]: b"x"}


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../up", "m/../../up", "m/..", "C:/x", "C:x", "\\\\host\\x", "m\\..\\..\\x", "m/a\nb"],
)
def test_names_that_lead_elsewhere(unpacked, name):
    with pytest.raises(ArchiveError, match="outside its folder"):
        unpacked(tar([member("m/a"), member(name)]))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"?"]
)
def test_links_and_devices(unpacked, kind):
    members = [member("m/a"), member("m/b", b"", type=kind, linkname="/etc/passwd")]
    with pytest.raises(ArchiveError, match="link, a device"):
        unpacked(tar(members))


def test_sparse_file(unpacked):
    info, data = member("m/a", b"", type=tarfile.GNUTYPE_SPARSE)
    with pytest.raises(ArchiveError, match="sparse"):
        unpacked(tar([(info, data)], tarfile.GNU_FORMAT))


@pytest.mark.parametrize("names", [("m/a", "m/a"), ("m/a", "m/./a"), ("m/a", "m/a/b"), ("m/a/b", "m/a")])
def test_names_twice(unpacked, names):
    with pytest.raises(ArchiveError, match="two members of one name"):
        unpacked(tar(member(name) for name in names))


def test_folder_twice_is_harmless(unpacked):
    assert unpacked(tar([MODEL[0], MODEL[0], member("m_infer/a")])) == {"a": b"x"}


@pytest.mark.parametrize("name", [".", "./."])
def test_a_file_of_no_name(unpacked, name):
    with pytest.raises(ArchiveError, match="file of no name"):
        unpacked(tar([member("m/a"), member(name)]))


def test_too_many_files(unpacked):
    with pytest.raises(ArchiveError, match="more than 3 files"):
        unpacked(tar(member(f"m/{i}") for i in range(4)), limits=Limits(files=3))


def test_too_many_bytes(unpacked):
    with pytest.raises(ArchiveError, match=r"more than 2\.0 kB"):
        unpacked(tar([member("m/a", bytes(1500)), member("m/b", bytes(1500))]), limits=Limits(bytes=2000))


def test_bomb_stops_at_the_limit(unpacked):
    """A gigabyte of zeros in a megabyte; stated truly, then as a header that would be read whole."""
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", compresslevel=1) as out:
        info = tarfile.TarInfo("m/a")
        info.size = 1 << 30
        out.write(info.tobuf())
        for _ in range(64):
            out.write(bytes(1 << 20))
    with pytest.raises(ArchiveError, match=r"more than 100\.0 MB"):
        unpacked(bomb.getvalue(), limits=Limits(bytes=100_000_000))


def test_bomb_in_a_header(unpacked):
    info = tarfile.TarInfo("m/a")
    info.size, info.type = 1 << 30, tarfile.XHDTYPE
    with pytest.raises(ArchiveError, match="a header of"):
        unpacked(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20)))


def test_bomb_after_the_end(unpacked):
    data = tar(MODEL) + bytes(1 << 20)
    with pytest.raises(ArchiveError, match=r"more than 10 bytes"):
        unpacked(gzip.compress(data), limits=Limits(bytes=10, files=3))


def test_chain_of_headers_does_not_end_the_process(unpacked):
    info = tarfile.TarInfo("h")
    info.type, info.size = tarfile.XHDTYPE, 0
    with pytest.raises(ArchiveError):
        unpacked(info.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(1024))


@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_anywhere(tmp_path, zipped):
    """Cut at a member's border too, where tarfile sees a shorter archive and says nothing."""
    whole = tar([member("m/a", b"a" * 700), member("m/b", b"b" * 700)])
    end = whole.rindex(b"b") + 1
    data = gzip.compress(whole, mtime=0) if zipped else whole
    cuts = range(0, len(data)) if zipped else range(0, end + 324 + 1, 4)
    for cut in cuts:
        (tmp_path / "it.tar").write_bytes(data[:cut])
        folder = tmp_path / str(cut)
        folder.mkdir()
        with pytest.raises(ArchiveError):
            unpack(tmp_path / "it.tar", folder)
        assert list(folder.iterdir()) == []


def test_altered_anywhere(tmp_path):
    """gzip's checksum finds a flipped bit wherever it is, even behind the archive's end."""
    content = bytes(range(256)) * 4
    data = gzip.compress(tar([member("m/a", content)]), mtime=0)
    refused = 0
    # The first ten bytes are gzip's header: time, flags and system are not content.
    for at in range(10, len(data)):
        (tmp_path / "it.tar").write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        folder = tmp_path / str(at)
        folder.mkdir()
        try:
            unpack(tmp_path / "it.tar", folder)
        except ArchiveError:
            refused += 1
        else:  # zeros copied from another place are zeros all the same
            assert (folder / "a").read_bytes() == content
    assert refused > 0.9 * (len(data) - 10)


def test_broken_header_midway(unpacked):
    data = bytearray(tar(MODEL))
    data[data.index(b"m_infer/deep/b") + 3] ^= 1
    with pytest.raises(ArchiveError, match="truncated or altered"):
        unpacked(bytes(data))


@pytest.mark.parametrize("data", [b"", b"<!DOCTYPE html><title>Log in</title>" * 40, bytes(10240)])
def test_no_archive_at_all(unpacked, data):
    with pytest.raises(ArchiveError):
        unpacked(data)


def test_missing_archive(tmp_path):
    with pytest.raises(FetchError, match=r"Cannot read .*none\.tar: No such file"):
        unpack(tmp_path / "none.tar", tmp_path)


def test_no_room(unpacked):
    with pytest.raises(DiskError, match=r"needs 3 bytes .* only 2 bytes free"):
        unpacked(tar(MODEL), free=lambda path: 2)


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "it.tar").write_bytes(tar(MODEL))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").write_bytes(b"in the way")
    with pytest.raises(DiskError, match="Cannot write"):
        unpack(tmp_path / "it.tar", tmp_path / "out")


def test_cancelled(unpacked):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(FetchError, match="interrupted"):
        unpacked(tar(MODEL), cancel=cancel)


def test_address_is_what_messages_name(unpacked):
    with pytest.raises(ArchiveError, match=r"^http://host/m\.tar is "):
        unpacked(b"nothing", shown="http://host/m.tar")


def test_real_limits_admit_the_largest_public_model():
    archive.check_limits("it", 3_400_000_000, 4)
    with pytest.raises(ArchiveError, match=r"17\.2 GB"):
        archive.check_limits("it", 1 << 40, 1)


def test_the_real_archives(mirror, tmp_path):
    unpack(next(mirror.rglob("drink_dataset_v1.0.tar")), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"gallery", "index", "test_images"}
    assert (tmp_path / "gallery" / "drink_label.txt").read_text("utf-8").count("\t") > 20
    assert not any(p.is_symlink() for p in Path(tmp_path).rglob("*"))
