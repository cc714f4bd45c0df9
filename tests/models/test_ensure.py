"""What is missing is fetched and converted, once; what is here is left alone."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdserve.errors import DiskError, ModelError, OfflineError, UsageError
from pdserve.models.ensure import ensure, is_ready
from pdserve.models.fetch import fetch
from pdserve.models.find import open_model
from pdserve.models.home import Home
from tests.file_server import FileServer, serve
from tests.model_host import address_path, put_in_folder, put_tiny, tiny_archive
from tests.running import environment

NAME = "ResNet50_vd"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve() as running:
        put_tiny(running, NAME)
        yield running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("PDSERVE_MIRROR", "PDSERVE_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return Home(tmp_path / "home")


def test_an_empty_home_gets_the_model_in_two_steps(home: Home, server: FileServer) -> None:
    lines: list[str] = []
    assert not is_ready(NAME, home)
    wanted = ensure(NAME, home, mirrors=[server.url], report=lines.append)
    model = open_model(wanted, home)
    assert (model.name, model.config.feeds[0].alias) == (NAME, "image")
    assert [line.split(",")[0] for line in lines] == [
        f"{NAME}: fetched from {server.url}{address_path(NAME)}",
        f"{NAME}: converted",
    ]
    assert is_ready(NAME, home)
    assert ensure(f"{NAME}_serving", home, report=lines.append) == f"{NAME}_serving"
    assert len(lines) == 2
    assert len(server.asked) == 1


def test_a_fetched_model_is_converted_without_the_network(home: Home, server: FileServer) -> None:
    fetch(NAME, home, mirrors=[server.url])
    lines: list[str] = []
    ensure(NAME, home, offline=True, report=lines.append)
    assert lines == [f"{NAME}: converted, {home.serving_model(NAME)}"]


def test_a_model_that_was_fetched_again_is_converted_again(home: Home, server: FileServer) -> None:
    ensure(NAME, home, mirrors=[server.url])
    inode = home.serving_model(NAME).stat().st_ino
    fetch(NAME, home, mirrors=[server.url], force=True)  # the same one
    ensure(NAME, home)
    assert home.serving_model(NAME).stat().st_ino == inode
    server.put(address_path(NAME), tiny_archive(NAME, "another"), etag='"2"')
    fetch(NAME, home, mirrors=[server.url], force=True)
    lines: list[str] = []
    ensure(NAME, home, report=lines.append)
    assert lines == [f"{NAME}: converted, {home.serving_model(NAME)}"]
    assert "# another" in (home.serving_model(NAME) / "inference.yml").read_text()


def test_what_was_done_to_a_serving_model_is_not_lost(home: Home, server: FileServer) -> None:
    ensure(NAME, home, mirrors=[server.url])
    description = home.serving_model(NAME) / "inference.yml"
    description.write_text(description.read_text() + "# mine\n")
    server.put(address_path(NAME), tiny_archive(NAME, "another"), etag='"2"')
    fetch(NAME, home, mirrors=[server.url], force=True)
    lines: list[str] = []
    ensure(NAME, home, report=lines.append)
    assert "# mine" in description.read_text()
    assert len(lines) == 1
    assert f"`pdserve convert --model {NAME} --force` converts it again" in lines[0]


def test_an_address_is_fetched_from_and_means_that_model_from_then_on(home: Home, server: FileServer) -> None:
    address = server.put("/own/mine_infer.tar", tiny_archive("mine"))
    lines: list[str] = []
    with pytest.raises(ModelError, match=f"type `pdserve fetch {address}`"):
        open_model(address, home)
    for _ in range(2):
        model = open_model(ensure(address, home, report=lines.append), home)
        assert (model.name, model.config.feeds[0].alias) == ("mine", "image")
    assert [line.split()[1] for line in lines] == ["fetched", "converted,"]
    assert open_model("mine", home) == model
    assert len(server.asked) == 1


def test_a_model_from_elsewhere_is_not_taken_for_an_address(home: Home, server: FileServer) -> None:
    first, second = (server.put(f"/{each}/mine_infer.tar", tiny_archive("mine", each)) for each in "ab")
    ensure(first, home)
    with pytest.raises(ModelError, match=f"mine is here already, from {first}, and not from {second}; type"):
        open_model(ensure(second, home), home)


def test_an_archive_of_this_machine_is_read_again_when_it_was_written_again(
    home: Home, tmp_path: Path
) -> None:
    path = tmp_path / "mine_infer.tar"
    lines: list[str] = []
    archives = {note: tiny_archive("mine", note) for note in "ab"}
    for note, steps in (("a", 2), ("a", 0), ("b", 2), ("b", 0)):
        path.write_bytes(archives[note])
        lines.clear()
        model = open_model(ensure(str(path), home, offline=True, report=lines.append), home)
        assert model.name == "mine"
        assert f"# {note}" in (model.path / "inference.yml").read_text()
        assert len(lines) == steps


def test_an_address_of_another_kind(home: Home) -> None:
    with pytest.raises(UsageError, match="ftp://host/x"):
        ensure("ftp://host/x.tar", home)


def test_offline_says_what_is_missing_and_the_command(home: Home, server: FileServer) -> None:
    with pytest.raises(OfflineError, match=f"^{NAME} is not here, .* type `pdserve fetch {NAME}` where"):
        ensure(NAME, home, mirrors=[server.url], offline=True)
    assert server.asked == []


def test_the_environment_forbids_the_network(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDSERVE_OFFLINE", "1")
    with pytest.raises(OfflineError):
        ensure(NAME, home)


def test_a_folder_is_no_network(home: Home, tmp_path: Path) -> None:
    put_in_folder(tmp_path / "mirror", NAME)
    ensure(NAME, home, mirrors=[str(tmp_path / "mirror")], offline=True)
    assert open_model(NAME, home).name == NAME


def test_names_that_cannot_be_brought(home: Home) -> None:
    with pytest.raises(ModelError, match="did you mean ResNet50_vd"):
        ensure("ResNet50vd", home)
    with pytest.raises(ModelError, match=r"drink_dataset_v1\.0 is a data set"):
        ensure("drink_dataset_v1.0", home)
    assert not home.root.exists()


def test_a_home_that_is_a_file(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="Cannot write"):
        ensure(NAME, Home(tmp_path / "file"), mirrors=[server.url])


def test_two_processes_ensure_one_name(home: Home, server: FileServer) -> None:
    code = (
        "import sys, pathlib\n"
        "from pdserve.models.ensure import ensure\n"
        "from pdserve.models.find import open_model\n"
        "from pdserve.models.home import Home\n"
        "home = Home(pathlib.Path(sys.argv[1]))\n"
        "sys.stdin.readline()\n"
        f"open_model(ensure('{NAME}', home, report=print), home)\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(home.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(home.root, PDSERVE_MIRROR=server.url),
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60) for process in both]
    assert [error for _, error in said] == [b"", b""]
    words = [line.split()[1] for out, _ in said for line in out.decode().splitlines()]
    assert sorted(words) == ["converted,", "fetched"]
    assert len(server.asked) == 1
