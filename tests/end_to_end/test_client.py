"""pdserve-client as it is installed: its wheel built, put into an empty environment, asking a server."""

import json
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pdserve import __version__
from pdserve.commands.table import COMMANDS
from tests.running import Server, environment
from tests.tiny import picture

ROOT = Path(__file__).parents[2]
LIMIT = 3_000_000
"""The most bytes of all that is installed beside grpcio, without Python's bytecode, which not every installer
writes."""
WITHOUT = ("numpy", "cv2", "faiss", "openvino", "paddle", "fastapi", "pydantic", "yaml", "google")

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

# Names and ports come as arguments; what each of the four clients answers is printed.
ASK = """
import asyncio, json, sys
from pathlib import Path
from pdserve.clients import AsyncHttpClient, AsyncRpcClient, HttpClient, RpcClient

url, target, *names = sys.argv[1:]
images = [Path(name).read_bytes() for name in names]

def read(answers):
    return [[each.label for each in answer] for answer in answers]

found = {}
for kind, where in ((HttpClient, url), (RpcClient, target)):
    with kind(where) as client:
        found[kind.__name__] = read(client.predict_batch(images, 1))

async def later():
    for kind, where in ((AsyncHttpClient, url), (AsyncRpcClient, target)):
        async with kind(where) as client:
            found[kind.__name__] = read(await client.predict_batch(images, 1))

asyncio.run(later())
print(json.dumps(found))
"""


@dataclass
class Installed:
    """A Python environment, and the home of the servers that its commands look for."""

    folder: Path
    home: Path

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

    @property
    def command(self) -> Path:
        return self.python.with_name("pdserve-client")

    def run(self, *words: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
        # From elsewhere: the checkout is no part of the path.
        return subprocess.run(
            list(map(str, words)),
            capture_output=True,
            cwd=self.folder,
            env=_environment(self.home),
            text=True,
            timeout=600,
            check=check,
        )

    def pip(self, *words: object) -> None:
        done = self.run(sys.executable, "-m", "pip", "--python", self.python, *words, check=False)
        if "No matching distribution" in done.stderr or "Failed to establish a new conn" in done.stderr:
            pytest.skip(f"needs a package index: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr

    def files(self) -> dict[str, dict[str, int]]:
        """The installed distributions, and the bytes of each of their files; bytecode left out."""
        code = (
            "import importlib.metadata as m, json\n"
            "sizes = lambda d: {str(f): f.locate().stat().st_size for f in d.files if f.suffix != '.pyc'}\n"
            "print(json.dumps({d.metadata['Name'].lower(): sizes(d) for d in m.distributions()}))"
        )
        found: dict[str, dict[str, int]] = json.loads(self.run(self.python, "-c", code).stdout)
        return found


def _environment(home: Path) -> dict[str, str]:
    return {name: text for name, text in environment(home).items() if name != "PYTHONPATH"}


def _empty(folder: Path, home: Path) -> Installed:
    venv.create(folder, symlinks=sys.platform != "win32")
    return Installed(folder, home)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, the client's sdist, and the wheel that is made of that."""
    folder = tmp_path_factory.mktemp("build")
    tools = _empty(folder / "tools", folder)
    tools.pip("install", "--quiet", "hatchling", "pyyaml")

    def build(source: Path, kind: str) -> Path:
        out = folder / f"{len(list(folder.iterdir()))}"
        build = "import os, sys; os.chdir(sys.argv.pop()); from hatchling.cli import hatchling; hatchling()"
        tools.run(tools.python, "-c", build, "build", "-t", kind, "-d", out, source)
        (made,) = out.iterdir()
        return made

    sdist = build(ROOT / "client", "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return {
        "pdserve": build(ROOT, "wheel"),
        "client": build(ROOT / "client", "wheel"),
        "client of the sdist": build(unpacked, "wheel"),
    }


@pytest.fixture(scope="module")
def client(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, tiny_home: Path) -> Installed:
    installed = _empty(tmp_path_factory.mktemp("client") / "env", tiny_home)
    installed.pip("install", "--quiet", "--no-compile", wheels["client"])
    return installed


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{name}.png" for name in ("red", "blue")]
    for path, colour in zip(paths, ((250, 0, 0), (0, 0, 250)), strict=True):
        path.write_bytes(picture(colour))
    return paths


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_what_its_modules_import(wheels: dict[str, Path], client: Installed) -> None:
    found = content(wheels["client"])
    assert f"pdserve_client-{__version__}.dist-info/METADATA" in found
    modules = [
        name.removeprefix("pdserve_client/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in found
        if name.endswith(".py")
    ]
    assert 20 <= len(modules) <= 60
    modules.remove("pdserve.__main__")
    code = f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
    code += "from importlib.util import find_spec\n"
    code += f"print([name for name in {WITHOUT} if find_spec(name)])"
    assert client.run(client.python, "-c", code).stdout == "[]\n"
    for name in modules:  # each is the checkout's, byte by byte
        path = ROOT.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert found[f"pdserve_client/{path.relative_to(ROOT).as_posix()}"] == path.read_bytes()


def test_the_wheel_of_the_sdist_is_the_same(wheels: dict[str, Path]) -> None:
    assert content(wheels["client of the sdist"]) == content(wheels["client"])


def test_it_is_small(client: Installed) -> None:
    sizes = {name: sum(files.values()) for name, files in client.files().items()}
    assert {"pdserve-client", "grpcio", "httpx"} <= sizes.keys()
    assert sum(sizes.values()) - sizes["grpcio"] < LIMIT, sizes
    assert sizes["pdserve-client"] < 400_000


def test_the_python_clients(client: Installed, tiny_server: Server, images: list[Path]) -> None:
    done = client.run(client.python, "-c", ASK, tiny_server.url, tiny_server.target, *images)
    both = [["red"], ["blue"]]
    kinds = ("HttpClient", "RpcClient", "AsyncHttpClient", "AsyncRpcClient")
    assert json.loads(done.stdout) == dict.fromkeys(kinds, both)


@pytest.mark.parametrize("how", ["http", "rpc", "this machine", "module"])
def test_predict(client: Installed, tiny_server: Server, images: list[Path], how: str) -> None:
    program: list[object] = [client.python, "-m", "pdserve"] if how == "module" else [client.command]
    where = {"rpc": ["--rpc", "--url", tiny_server.target], "this machine": []}
    options = where.get(how, ["--url", tiny_server.url])
    # The folder: images are found without OpenCV. Without --url the register of the home says where.
    done = client.run(*program, "predict", images[0].parent, *options, "--json", "--top-k", "1")
    answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["labels"][0]["label"] for each in answers] == ["blue", "red"]
    assert done.stderr == ""


def test_what_it_lacks_is_said(
    client: Installed, tiny_server: Server, images: list[Path], tmp_path: Path
) -> None:
    def said(*words: object) -> str:
        done = client.run(client.command, *words, check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("pdserve: ")
        assert "pip install pdserve" in line
        return line

    assert "--draw needs" in said("predict", images[0], "--url", tiny_server.url, "--draw", tmp_path / "out")
    assert "--local needs" in said("predict", images[0], "--local")
    for name in COMMANDS:
        if name != "predict":
            assert f"The command {name} needs" in said(name)
    own = tmp_path / "shop.yml"
    own.write_text("help: x")
    assert "shop.yml" in said("predict", images[0], "--url", tiny_server.url, "--service", own)


def test_with_pdserve_in_one_environment(wheels: dict[str, Path], client: Installed, tmp_path: Path) -> None:
    where = "import pdserve.cli; print(pdserve.cli.__file__)"

    def place() -> str:
        return Path(client.run(client.python, "-c", where).stdout.strip()).parents[1].name

    assert place() == "pdserve_client"
    client.pip("install", "--quiet", "--no-compile", "--no-deps", wheels["pdserve"])
    files = client.files()
    assert not files["pdserve"].keys() & files["pdserve-client"].keys()
    assert place() == "site-packages"
    client.pip("uninstall", "--quiet", "--yes", "pdserve")
    assert place() == "pdserve_client"
    assert client.run(client.command, "--version").stdout == f"pdserve-client {__version__}\n"
    client.pip("install", "--quiet", "--no-compile", "--no-deps", wheels["pdserve"])
    client.pip("uninstall", "--quiet", "--yes", "pdserve-client")
    assert place() == "site-packages"
    assert client.python.with_name("pdserve").exists()
    assert client.run(client.python, "-c", "import pdserve.machine").returncode == 0


def test_where_a_pth_file_is_not_read_the_folder_can_be_named(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheels["client"]) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "import pdserve.clients; print(pdserve.clients.__file__)"],
        env=_environment(tmp_path) | {"PYTHONPATH": str(tmp_path / "pdserve_client")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
