"""The commands, as a person types them, each in a process of its own."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model_host import put_in_folder
from tests.running import Server, pdserve
from tests.tiny import build_inference_model, picture

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(picture(RED))
    (folder / "b.png").write_bytes(picture(GREEN))
    (folder / "more" / "c.png").write_bytes(picture(BLUE))
    (folder / "notes.txt").write_text("no image")
    return folder


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_help_and_version(tmp_path: Path) -> None:
    done = pdserve(tmp_path, "--help")
    assert done.returncode == 0
    for command in ("fetch", "convert", "alias", "serve", "predict", "doctor"):
        assert command in done.stdout
    assert pdserve(tmp_path, "--version").stdout.startswith("pdserve ")


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['pdserve', '--help']\n"
        "from pdserve.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'cv2', 'openvino', 'paddle', 'onnxruntime', 'fastapi', 'grpc', 'pydantic',"
        " 'requests', 'httpx', 'PIL', 'yaml', 'google.protobuf'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("serve", "classification", "--http-port", "x"),
        ("serve", "classification", "--engine", "nothing"),
        ("serve", "classification", "--gpu", "0", "--cpu"),
        ("serve", "classification", "--gpu", "first"),
        ("convert", "--dirname", "x"),
        ("convert", "--model", "a", "--dirname", "b", "--serving-server", "c", "--serving-client", "d"),
        ("convert", "--model", "a", "--feed-alias", "x=y"),
        ("alias", "x", "--feed", "nothing"),
        ("predict", "x.jpg", "--url", "nonsense"),
        ("predict", "x.jpg", "--local"),
        ("predict", "x.jpg", "--model", "tiny"),
        ("predict", "x.jpg", "--rpc", "--url", "http://127.0.0.1:80"),
        ("fetch", "--list", "no-such-name"),
    ],
)
def test_a_wrong_command_line_exits_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = pdserve(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_a_misspelt_name_gets_the_nearest_ones(tmp_path: Path) -> None:
    done = pdserve(tmp_path, "fetch", "resnet50vd")
    assert done.returncode == 2
    assert "ResNet50_vd" in done.stderr


def test_fetch_list(tmp_path: Path) -> None:
    done = pdserve(tmp_path, "fetch", "--list", "resnet50", "vd", "--json")
    names = {str(line["name"]) for line in lines(done.stdout)}
    assert "ResNet50_vd" in names
    assert all("resnet50" in name.lower() and "vd" in name.lower() for name in names)
    assert "ResNet50_vd" in pdserve(tmp_path, "fetch", "--list", "ResNet50_vd").stdout


def test_fetch_from_a_folder_and_from_the_second_mirror(tmp_path: Path) -> None:
    """Addresses and several mirrors, by the command line; what came is recorded, and another is refused."""
    for folder in (tmp_path / "a" / "net_infer", tmp_path / "b" / "net"):
        folder.mkdir(parents=True)
        build_inference_model(folder)
    mine = str(tmp_path / "a" / "net_infer")
    done = pdserve(tmp_path, "fetch", mine, "--json")
    (line,) = lines(done.stdout)
    assert (line["name"], line["action"], line["origin"], line["sha256"]) == ("net", "fetched", mine, None)
    refused = pdserve(tmp_path, "fetch", str(tmp_path / "b" / "net"))
    assert refused.returncode == 2
    assert f"`pdserve fetch {tmp_path / 'b' / 'net'} --force`" in refused.stderr
    put_in_folder(tmp_path / "mirror", "PP-LCNet_x1_0")
    mirrors = ("--mirror", str(tmp_path / "empty"), "--mirror", str(tmp_path / "mirror"))
    done = pdserve(tmp_path, "fetch", "PP-LCNet_x1_0", *mirrors, "--json")
    (line,) = lines(done.stdout)
    assert str(line["origin"]).startswith(str(tmp_path / "mirror"))
    done = pdserve(tmp_path, "convert", "--model", "net")
    assert done.returncode == 0


def test_convert_and_alias(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    build_inference_model(source)
    server, client = tmp_path / "server", tmp_path / "client"
    folders = ("--serving-server", str(server), "--serving-client", str(client))
    done = pdserve(tmp_path, "convert", "--dirname", str(source), *folders, "--json")
    assert done.returncode == 0
    (line,) = lines(done.stdout)
    assert line["feeds"] == {"x": "image"}  # by the task in its inference.yml
    ((fetch_name, alias),) = line["fetches"].items()  # type: ignore[attr-defined]
    assert alias == "prediction"

    done = pdserve(tmp_path, "alias", str(server), "--feed", "nothing=image")
    assert done.returncode == 1
    assert "x" in done.stderr
    patch = ("--feed", "x=picture", "--fetch", f"{fetch_name}=scores")
    assert pdserve(tmp_path, "alias", str(server), str(client), *patch).returncode == 0
    rows = lines(pdserve(tmp_path, "alias", str(server), str(client), "--json").stdout)
    assert [row["alias"] for row in rows] == ["picture", "scores"] * 2
    assert "picture" in pdserve(tmp_path, "alias", str(server)).stdout


def test_convert_of_what_is_not_fetched(tmp_path: Path) -> None:
    done = pdserve(tmp_path, "convert", "--model", "ResNet50_vd")
    assert done.returncode == 1
    assert "pdserve fetch ResNet50_vd" in done.stderr
    assert pdserve(tmp_path, "convert", "--model", "ResNet50_xx").returncode == 2
    assert pdserve(tmp_path, "convert").returncode == 2


@pytest.mark.parametrize("door", [(), ("--rpc",)])
def test_predict_json(tiny_home: Path, tiny_server: Server, pictures: Path, door: tuple[str, ...]) -> None:
    where = ("--url", tiny_server.target if door else tiny_server.url)
    done = pdserve(tiny_home, "predict", str(pictures), "--json", "--top-k", "1", *where, *door)
    assert (done.returncode, done.stderr) == (0, f"left out in {pictures}: notes.txt (is no image)\n")
    rows = lines(done.stdout)
    assert [Path(str(row["image"])).name for row in rows] == ["a.png", "b.png", "c.png"]
    labels = [row["labels"] for row in rows]
    assert [label[0]["label"] for label in labels] == ["red", "green", "blue"]  # type: ignore[index]
    assert set(labels[0][0]) == {"class_id", "label", "score"}  # type: ignore[index]


def test_predict_goes_on_after_a_bad_image(tiny_home: Path, tiny_server: Server, pictures: Path) -> None:
    images = [str(pictures / name) for name in ("a.png", "notes.txt", "missing.png", "b.png")]
    done = pdserve(tiny_home, "predict", *images, "--json", "--url", tiny_server.url)
    assert done.returncode == 1
    rows = lines(done.stdout)
    assert [row["image"] for row in rows] == images
    assert ["error" in row for row in rows] == [False, True, True, False]
    assert set(rows[1]) == {"image", "error"}
    done = pdserve(tiny_home, "predict", *images, "--url", tiny_server.url)
    assert done.returncode == 1
    assert "red" in done.stdout
    assert "missing.png" in done.stderr


def test_a_font_that_is_none_is_reported_before_the_work(tmp_path: Path) -> None:
    options = ("--url", "http://127.0.0.1:1", "--service", "classification", "--draw", str(tmp_path / "out"))
    done = pdserve(tmp_path, "predict", "x.jpg", *options, PDSERVE_FONT=str(tmp_path / "absent.ttf"))
    assert done.returncode == 2
    assert "PDSERVE_FONT" in done.stderr
    assert not (tmp_path / "out").exists()


def test_predict_standard_input_and_drawing(tiny_home: Path, tiny_server: Server, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    options = ("--json", "--draw", str(out), "--url", tiny_server.url)
    done = pdserve(tiny_home, "predict", "-", *options, stdin=picture(BLUE, (300, 200)))
    (row,) = lines(done.stdout)
    assert row["image"] == "-"
    drawn = Path(str(row["picture"]))
    assert drawn.parent == out
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_predict_local_needs_no_server(tiny_home: Path, pictures: Path) -> None:
    done = pdserve(tiny_home, "predict", str(pictures / "b.png"), "--local", "--model", "tiny", "--json")
    assert done.returncode == 0
    assert lines(done.stdout)[0]["labels"][0]["label"] == "green"  # type: ignore[index]


def test_predict_without_a_server(tiny_home: Path, pictures: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for where in (("--url", f"http://127.0.0.1:{port}"), ("--rpc", "--url", f"127.0.0.1:{port}")):
        done = pdserve(tiny_home, "predict", str(pictures), "--json", *where)
        assert done.returncode == 1
        assert done.stdout == ""
        left_out, error = done.stderr.splitlines()
        assert left_out == f"left out in {pictures}: notes.txt (is no image)"
        assert "pdserve serve classification" in error


def test_a_proxy_does_not_catch_local_requests(tiny_home: Path, tiny_server: Server, pictures: Path) -> None:
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "grpc_proxy"), "http://127.0.0.1:9")
    for where in (("--url", tiny_server.url), ("--rpc", "--url", tiny_server.target)):
        done = pdserve(tiny_home, "predict", str(pictures), "--json", *where, **proxies)
        assert done.returncode == 0


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" not in pdserve(tmp_path, "convert", "--model", "ResNet50_vd").stderr
    assert "Traceback" in pdserve(tmp_path, "convert", "--model", "ResNet50_vd", PDSERVE_DEBUG="1").stderr


def test_doctor(tmp_path: Path) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9"}
    rows = lines(pdserve(tmp_path, "doctor", "--json", **proxy).stdout)
    found = {str(row["name"]): row for row in rows}
    assert found["openvino on cpu"]["state"] == "ok"
    assert found["http_proxy"]["state"] == "note"
    assert found["http_proxy"]["remedy"]
    assert found["openvino on gpu:0"]["state"] != "ok"
    assert all(set(row) == {"area", "name", "state", "detail", "remedy"} for row in rows)
    done = pdserve(tmp_path, "doctor")
    assert done.returncode == 0
    assert "openvino on cpu" in done.stdout


@pytest.mark.parametrize("name", ["photo.jpg", "small.png", "photo.webp"])
def test_any_format_may_be_the_first_in_a_process(tiny_home: Path, name: str) -> None:
    image = Path(__file__).parent / "data" / "golden" / "images" / name
    done = pdserve(tiny_home, "predict", str(image), "--local", "--model", "tiny", "--json")
    assert done.returncode == 0, done.stdout


def _loop(folder: Path) -> str:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return "a/x"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (lambda folder: "x" * 300, "File name too long"),
        (_loop, "There is no index at"),
        (lambda folder: "~nobody-has-this-name/x", "There is no index at"),
        (lambda folder: "é\udce9", "There is no index at"),
    ],
)
def test_a_name_that_the_system_refuses_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Callable[[Path], str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x", "utf-8")
    done = pdserve(tmp_path / "home", "index", "info", "--index", name(tmp_path))
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "--model", ""),
        ("predict", ""),
        ("index", "build", "--gallery", "x", "--out", "", "--model", "y"),
        ("predict", "x.png", "--local", "--model="),
    ],
)
def test_an_empty_argument_means_nothing_else(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = pdserve(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is empty" in done.stderr
    assert done.stderr.count("\n") == 1
