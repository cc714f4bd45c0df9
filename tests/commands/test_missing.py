"""What a service's settings name and is not here is brought before it opens; what is here costs nothing."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pdserve import files
from pdserve.commands.missing import bring_service
from pdserve.engines.device import gpu_problem
from pdserve.errors import DeviceError, EngineMissingError, ModelError, OfflineError
from pdserve.index.edit import build
from pdserve.index.gallery import GalleryImage
from pdserve.models.download import Partial
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.embedder import open_embedder
from pdserve.progress import SILENT
from pdserve.settings import ModelSettings, ServiceSettings
from tests.conftest import GOLDEN
from tests.file_server import Fault, FileServer, serve
from tests.model_host import address_path, archive, put_tiny, tiny_archive
from tests.running import environment, start
from tests.terminal import on_terminal
from tests.tiny import build_embedder, build_inference_model, picture

NAME = "ResNet50_vd"
EMBEDDER = "general_PPLCNet_x2_5_lite_v1.0"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve() as running:
        put_tiny(running, NAME)
        yield running


@pytest.fixture
def home(tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PDSERVE_MIRROR", server.url)
    return Home(tmp_path / "home")


def recognition(**flags: str) -> ServiceSettings:
    return SERVICES["recognition"].settings({"detector": "none", **flags}, {})


def build_index(home: Home, model: str, folder: Path) -> None:
    """An index of one image."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    image = folder.parent / "red.png"
    image.write_bytes(picture((255, 0, 0)))
    with open_embedder(ModelSettings(model=model), home) as embedder:
        build([GalleryImage("red.png", "red", image)], folder, embedder, progress=SILENT)


def test_serve_on_an_empty_home(home: Home, server: FileServer) -> None:
    steps = (f"{NAME}: fetched from {server.url}{address_path(NAME)}", f"{NAME}: converted, ")
    with start(home.root, "--model", NAME, PDSERVE_MIRROR=server.url) as running:
        answer = httpx.post(f"{running.url}/v1/classification", content=picture((0, 0, 255)), trust_env=False)
        assert answer.json()["results"][0]["labels"][0]["label"] == "blue"
        assert [running.log.count(step) for step in steps] == [1, 1]
        assert running.log.index(steps[0]) < running.log.index(steps[1]) < running.log.index("ready: ")
        asked = len(server.asked)
        # A reload downloads nothing, whatever is missing by then.
        home.serving_model(NAME).rename(home.root / "away")
        if hasattr(signal, "SIGHUP"):
            running.interrupt(signal.SIGHUP)
            deadline = time.monotonic() + 30
            while "not reloaded, what runs goes on" not in running.log and time.monotonic() < deadline:
                time.sleep(0.05)
            assert f"type `pdserve convert --model {NAME}`" in running.log
    assert len(server.asked) == asked == 1
    (home.root / "away").rename(home.serving_model(NAME))
    with start(home.root, "--model", NAME, "--offline") as running:
        assert not any(step in running.log for step in steps)


def test_steps_and_a_bar_on_a_terminal(home: Home, server: FileServer, tmp_path: Path) -> None:
    image = tmp_path / "green.png"
    image.write_bytes(picture((0, 255, 0)))
    seen = on_terminal(home.root, "run", NAME, str(image), columns=120, PDSERVE_MIRROR=server.url)
    assert seen.returncode == 0
    (bar,) = seen.lines(f"{NAME} ━")
    assert f"/{len(tiny_archive(NAME)) / 1000:.1f} kB" in bar
    (fetched,), (converted,) = (
        seen.lines(f"{NAME}: fetched from {server.url}"),
        seen.lines(f"{NAME}: converted, "),
    )
    where = [seen.screen.index(each) for each in (fetched, converted, f"{image}:")]
    assert where == sorted(where)
    again = on_terminal(home.root, "run", NAME, str(image), columns=120, PDSERVE_MIRROR=server.url)
    assert again.screen[0] == f"{image}:"


@pytest.mark.posix
def test_an_interrupted_download_says_what_is_kept(home: Home, server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    build_inference_model(tmp_path / "model")
    (tmp_path / "model" / "more").write_bytes(os.urandom(300_000))
    body = archive(tmp_path / "model", f"{NAME}_infer")
    server.put(address_path(NAME), body, faults=[Fault(stop=200_000, linger=True)])
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pdserve", "serve", "classification", "--model", NAME],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment(home.root, PDSERVE_MIRROR=server.url, TERM="xterm"),
    )
    os.close(theirs)
    part = Partial(home.root / "downloads" / f"{NAME}.tar")
    deadline = time.monotonic() + 60
    while part.size < 100_000 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = b""
    try:
        while data := os.read(ours, 65536):
            said += data
    except OSError:  # Linux says so that the other end is closed
        pass
    os.close(ours)
    assert process.wait(30) != 0
    size = part.size
    kept = files.format_size(size)
    assert f"Interrupted; the {kept} that came are kept, and the same command goes on." in said.decode()
    with start(home.root, "--model", NAME, PDSERVE_MIRROR=server.url):
        assert server.ranges[-1] == f"bytes={size}-"


def test_what_is_missing_is_said_offline(home: Home, server: FileServer) -> None:
    with pytest.raises(OfflineError, match=f"^{NAME} is not here.*type `pdserve fetch {NAME}`"):
        bring_service(SERVICES["classification"].settings({"model": NAME, "offline": True}, {}), home)
    with pytest.raises(OfflineError, match=r"^drink_dataset_v1\.0 is not here"):
        bring_service(recognition(offline="1"), home)
    assert server.asked == []


@pytest.mark.skipif(gpu_problem(0) is None, reason="there is a GPU here")
def test_a_device_that_is_not_here_is_said_before_anything_comes(home: Home, server: FileServer) -> None:
    settings = SERVICES["classification"].settings({"model": NAME, "devices": ("gpu:0",)}, {})
    with pytest.raises(DeviceError, match="gpu:0 is not usable"):
        bring_service(settings, home)
    assert server.asked == []
    bring_service(settings, home, native=False)  # another runtime's devices are its own matter
    assert home.serving_model(NAME).is_dir()


def test_an_engine_that_is_not_here_is_said_before_anything_comes(
    home: Home, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "paddle", None)  # as where it is not installed
    settings = SERVICES["classification"].settings({"model": NAME, "engine": "paddle"}, {})
    with pytest.raises(EngineMissingError, match="pdserve\\[paddle\\]"):
        bring_service(settings, home)
    assert server.asked == []


def test_an_index_of_the_catalog_is_fetched(home: Home, server: FileServer, tmp_path: Path) -> None:
    build_embedder(home.models, EMBEDDER)
    build_index(home, EMBEDDER, tmp_path / "drinks" / "index")
    server.put(address_path("drink_dataset_v1.0"), archive(tmp_path / "drinks", "drink_dataset_v1.0"))
    settings = recognition()
    bring_service(settings, home)
    with_index = SERVICES["recognition"].open(settings, home)
    with_index.close()
    assert with_index.index is not None
    assert with_index.index.count == 1


def test_an_index_names_its_embedder(home: Home, server: FileServer, tmp_path: Path) -> None:
    build_embedder(home.models, "tiny_embedder")
    build_index(home, "tiny_embedder", home.index("mine"))
    settings = bring_service(recognition(index="mine"), home)
    assert settings.models["embedder"].model == "tiny_embedder"
    pipeline = SERVICES["recognition"].open(recognition(index="mine"), home)
    pipeline.close()
    assert pipeline.models["embedder"].name == "tiny_embedder"


def test_an_index_names_an_embedder_of_no_home_by_its_folder(home: Home, tmp_path: Path) -> None:
    build_embedder(tmp_path / "elsewhere", "own")
    folder = tmp_path / "elsewhere" / "own_serving"
    build_index(home, str(folder), home.index("mine"))
    assert bring_service(recognition(index="mine"), home).models["embedder"].model == str(folder)


def test_the_embedder_that_an_index_names_is_fetched(home: Home, server: FileServer, tmp_path: Path) -> None:
    made = Home(tmp_path / "other")
    build_embedder(made.models, EMBEDDER)
    build_index(made, EMBEDDER, tmp_path / "index")
    server.put(address_path(EMBEDDER), archive(made.inference_model(EMBEDDER), f"{EMBEDDER}_infer"))
    pipeline = SERVICES["recognition"].open(
        bring_service(recognition(index=str(tmp_path / "index")), home), home
    )
    pipeline.close()
    assert pipeline.models["embedder"].model.path == home.serving_model(EMBEDDER)


def test_an_embedder_that_cannot_be_had_is_named_with_its_index(home: Home, tmp_path: Path) -> None:
    made = Home(tmp_path / "other")
    build_embedder(made.models, "own")
    build_index(made, "own", home.index("mine"))
    with pytest.raises(ModelError, match=r"index mine was made by the embedder own, .*with --embedder"):
        bring_service(recognition(index="mine"), home)


def test_an_embedder_that_is_named_counts(home: Home, tmp_path: Path) -> None:
    for name in ("tiny_embedder", EMBEDDER):
        build_embedder(home.models, name)
    build_index(home, "tiny_embedder", home.index("mine"))
    config = tmp_path / "config.yml"
    config.write_text(
        f"http_port: 18081\nop: {{rec: {{local_service_conf: {{model_config: {EMBEDDER}}}}}}}\n"
    )
    entry = SERVICES["recognition"]
    for settings in (
        recognition(index="mine", embedder=EMBEDDER),
        entry.settings({"index": "mine", "detector": "none"}, {"PDSERVE_EMBEDDER": EMBEDDER}),
        entry.settings({"index": "mine", "detector": "none"}, {}, config),
    ):
        assert settings.sources.models >= {"embedder"}
        assert bring_service(settings, home).models["embedder"].model == EMBEDDER


@pytest.mark.parametrize(
    ("service", "options"),
    [
        ("classification", ("--model", "PP-HGNetV2-B0")),
        ("classification", ("--model", "ResNet50_vd")),
        ("recognition", ("--detector", "PP-ShiTuV2_det", "--embedder", "PP-ShiTuV2_rec")),
        ("embedding", ("--model", "PP-ShiTuV2_rec")),
    ],
)
def test_the_published_archives_on_an_empty_home(
    mirror: Path, tmp_path: Path, service: str, options: tuple[str, ...]
) -> None:
    """With a mirror's folder and no network; the data set's index was made by the same embedder."""
    variables = {"PDSERVE_MIRROR": str(mirror), "PDSERVE_OFFLINE": "1"}
    image = (GOLDEN / "images" / "exif6.jpg").read_bytes()
    with start(tmp_path, *options, service=service, **variables) as running:
        answer = httpx.post(f"{running.url}/v1/{service}", content=image, trust_env=False, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"][0][SERVICES[service].items]
        fetched = [line.split(":")[0] for line in running.log.splitlines() if ": fetched from " in line]
        data_set = ["drink_dataset_v1.0"] if service == "recognition" else []
        assert fetched == [*data_set, *options[1::2]]
