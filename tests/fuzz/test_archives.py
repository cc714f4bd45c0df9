"""Tar files and wheels, which bring names, lengths and checksums of their own."""

import gzip
import io
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from pdserve.errors import ArchiveError, DiskError
from pdserve.models import wheel
from pdserve.models.archive import Limits, unpack
from tests.fuzz.guard import outcome
from tests.fuzz.mutation import mutated
from tests.models.test_archive import MODEL, member, tar

LIMITS = Limits(bytes=1 << 20, files=50)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
TARS = [tar(MODEL, tar_format) for tar_format in FORMATS]
TARS.append(tar([member("m/" + "d" * 120 + "/" + "饮料" * 20), member("m/b")]))
TARS.append(tar([member("m/a", pax_headers={"comment": "x", "size": "1"})]))
NAMES = st.one_of(
    st.sampled_from(
        (
            "m/a", "m/b", "a", "../a", "m/../../a", "/tmp/pdserve-a", "//a", "m//a", "m/./a", ".", "..", "",
            "m", "m/a/b", "C:a", "m\\a", "m/a\0b", "m/\ud800", "m/a\n", "m/" + "x" * 300, "x/" * 200 + "a",
            "~/a", "m/A", "m/ａ", ".DS_Store", "._a", "-", "m/..", "m/.../a", "con", "m/a ", "PaxHeader",
        )
    ),
    st.text(st.characters(codec="utf-8"), max_size=12),
)  # fmt: skip
KINDS = (b"0", b"\0", b"5", b"1", b"2", b"3", b"4", b"6", b"7", b"x", b"g", b"L", b"K", b"S", b"D", b"?")


@st.composite
def _tars(draw: DrawFn) -> bytes:
    """Tar files of odd members; then altered, most of them with checksums put right again."""
    members = []
    for _ in range(draw(st.integers(1, 5))):
        data = draw(
            st.sampled_from(
                (b"", b"x", b"yy" * 300, b"21 path=../../../up\n", b"30 GNU.sparse.size=99999999\n")
            )
        )
        info, data = member(draw(NAMES).encode("utf-8", "replace").decode(), data)
        info.type = draw(st.one_of(st.just(b"0"), st.sampled_from(KINDS)))
        info.linkname = draw(st.sampled_from(("", "/etc/passwd", "m/a")))
        info.mode = draw(st.sampled_from((0o644, 0, 0o7777)))
        info.pax_headers = draw(
            st.dictionaries(
                st.sampled_from(
                    ("path", "size", "GNU.sparse.map", "GNU.sparse.major", "linkpath", "mtime", "x")
                ),
                st.sampled_from(("../../up", "-5", "99999999999999999999", "1", "0,1,2", "", "nan", "é")),
                max_size=2,
            )
        )
        members.append((info, data))
    try:
        return tar(members, draw(st.sampled_from(FORMATS)))
    except (ValueError, UnicodeError):  # what tarfile itself does not write
        return TARS[0]


def _summed(data: bytes) -> bytes:
    """The checksum of each block that may be a header is made to fit it."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if b"ustar" in out[at + 250 : at + 270]:
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


@st.composite
def _altered_tars(draw: DrawFn) -> bytes:
    data = draw(st.one_of(_tars(), _tars().flatmap(lambda made: mutated([made, *TARS], SIZES, among=2048))))
    if draw(st.booleans()):
        data = _summed(data)
    if draw(st.booleans()):
        data = gzip.compress(data, 1, mtime=0)
        if draw(st.booleans()):
            data = draw(mutated([data]))
    return data


SIZES = (
    b"77777777777\0",
    b"\x80" + bytes(10) + b"\xff",
    b"\xff" * 12,
    b"-0000000001\0",
    bytes(512),
    b"ustar\0" + b"00",
)


@given(_altered_tars())
def test_tar(data: bytes) -> None:
    _into_a_folder(data, lambda path, folder: unpack(path, folder, limits=LIMITS))


def _wheel(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


WHEELS = [
    _wheel(**{"p/m/a": b"x", "p/m/b/c": b"yy" * 300, "p/n": b"z", "p-1.dist-info/RECORD": b""}),
    _wheel(**{"p/m/a": b""}),
]
ZIP_TOKENS = (
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"p/m/../../a",
    b"\x01\0\x10\0" + b"\xff" * 16,
)


@st.composite
def _wheels(draw: DrawFn) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for _ in range(draw(st.integers(1, 5))):
            name = draw(st.sampled_from(("p/m/", "p/", ""))) + draw(NAMES)
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode().replace("\0", "0") or "x")
            info.compress_type = draw(
                st.sampled_from(
                    (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
                )
            )
            info.external_attr = (
                draw(st.sampled_from((0o644, stat.S_IFLNK | 0o777, stat.S_IFDIR, stat.S_IFIFO, 0))) << 16
            )
            _write(archive, info, draw(st.sampled_from((b"", b"x", b"/etc/passwd", bytes(5000)))))
    data = bytearray(out.getvalue())
    # The lengths in the directory (central file header, 20 and 24) lie.
    if draw(st.booleans()) and (at := data.find(b"PK\x01\x02")) > 0:
        data[at + 20 : at + 28] = draw(st.binary(min_size=8, max_size=8))
    return bytes(data)


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, data: bytes) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a name that comes twice
        archive.writestr(info, data)


@given(
    st.one_of(
        _wheels(), mutated(WHEELS, ZIP_TOKENS), _wheels().flatmap(lambda made: mutated([made, *WHEELS]))
    )
)
def test_wheel(data: bytes) -> None:
    _into_a_folder(data, lambda path, folder: wheel.extract(path, "p/m", folder, LIMITS))


def _into_a_folder(data: bytes, extract: Callable[[Path, Path], Any]) -> None:
    """Nothing is written beside the folder, and nothing but files and folders into it, within the limits."""
    root = Path(tempfile.mkdtemp())
    try:
        path, folder = root / "archive", root / "in" / "out"
        path.write_bytes(data)
        folder.mkdir(parents=True)
        # A name can be too long, or of no meaning, for this disk.
        outcome(lambda: extract(path, folder), ArchiveError, DiskError, folder=folder)
        assert sorted(p.name for p in root.iterdir()) == ["archive", "in"]
        assert [p.name for p in (root / "in").iterdir()] == ["out"]
        there = list(folder.rglob("*"))
        assert not any(p.is_symlink() or not (p.is_file() or p.is_dir()) for p in there)
        assert sum(p.stat().st_size for p in there if p.is_file()) <= LIMITS.bytes
    finally:
        shutil.rmtree(root)
