"""The commands on a terminal of 80 and of 120 columns: no progress display stands in the way of an answer."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.file_server import serve
from tests.models.test_archive import member, tar
from tests.running import Server
from tests.terminal import Seen, on_terminal
from tests.tiny import build_embedder, build_serving_model, picture

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminal of this kind"),
    pytest.mark.parametrize("columns", [80, 120]),
]

COLORS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "gallery"
    for name, (r, g, b) in COLORS.items():
        (folder / name).mkdir(parents=True)
        for n in range(4):
            (folder / name / f"{n}.png").write_bytes(picture((r - n, g - n, b)))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("terminal")
    build_serving_model(home / "models")
    build_embedder(home / "models")
    return home


@pytest.fixture(scope="module")
def mirror() -> Iterator[str]:
    model = tar(
        [
            member("ResNet50_vd_infer/inference.pdmodel", b"m" * 3_000_000),
            member("ResNet50_vd_infer/inference.pdiparams"),
        ]
    )
    with serve() as server:
        server.put("/dygraph/inference/ResNet50_vd_infer.tar", model)
        yield server.url


def words(done: Seen) -> set[str]:
    """Whole words on the terminal; no heading may be cut in two."""
    return set(" ".join(done.screen).split())


def test_predict_into_a_file(
    home: Path, tiny_server: Server, photos: Path, tmp_path: Path, columns: int
) -> None:
    out = tmp_path / "out.json"
    arguments = ("predict", str(photos), "--json", "--url", tiny_server.url)
    done = on_terminal(home, *arguments, columns=columns, stdout=out)
    assert done.returncode == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["labels"][0]["label"] for row in rows] == [
        path.parent.name for path in sorted(photos.rglob("*.png"))
    ]
    assert "predicting" in done.raw
    assert not any(done.screen)  # the bar is gone


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_predict_on_the_terminal(
    home: Path, tiny_server: Server, photos: Path, columns: int, options: tuple[str, ...]
) -> None:
    bad = photos / "red" / "none.png"
    arguments = ("predict", str(photos), str(bad), "--url", tiny_server.url, "--top-k", "1", *options)
    done = on_terminal(home, *arguments, columns=columns)
    assert done.returncode == 1
    assert "predicting" in done.raw
    shown = "\n".join(done.screen)
    assert "predicting" not in shown
    if options:
        assert [len(json.loads(line)) for line in done.screen if line] == [2] * 13
    else:
        assert [line for line in done.screen if line.endswith("png:")] == [
            f"{path}:" for path in sorted(photos.rglob("*.png"))
        ]
        assert [line for line in done.screen if line][
            -1
        ] == f"{bad}: Cannot read {bad}: No such file or directory."


def test_fetch(home: Path, mirror: str, columns: int, tmp_path: Path) -> None:
    done = on_terminal(tmp_path, "fetch", "ResNet50_vd", columns=columns, PDSERVE_MIRROR=mirror)
    assert done.returncode == 0
    (bar,) = done.lines("ResNet50_vd ")
    assert "3.0/3.0 MB" in bar
    assert len(bar) <= columns
    assert done.lines("ResNet50_vd: fetched, ")
    assert done.lines("Next: pdserve serve classification --model ResNet50_vd")


def test_show(home: Path, columns: int) -> None:
    done = on_terminal(home, "show", "tiny", columns=columns)
    assert done.returncode == 0
    at = done.screen[1].index("classification")  # of the task
    lines = [line.rstrip() for line in done.screen[1:] if line.strip()]
    assert max(map(len, lines)) <= columns
    # What is long goes on in its own column, and is cut between words.
    assert all(line[at - 2 : at] == "  " and line[at] != " " for line in lines)
    chain = next(i for i, line in enumerate(lines) if line.startswith("preprocessing"))
    assert lines[chain + 1].startswith(" " * at)
    joined = " ".join(line[at:] for line in lines)
    assert "ResizeImage(resize_short=" in joined
    assert " → ToCHWImage" in joined


@pytest.mark.full
def test_index(home: Path, photos: Path, tmp_path: Path, columns: int) -> None:
    index = str(tmp_path / "index")
    made = on_terminal(
        home, "index", "build", "--gallery", str(photos), "--out", index, "--model", "tiny_embedder",
        columns=columns,
    )  # fmt: skip
    assert made.returncode == 0
    assert [line for line in made.screen if line] == [f"{index}: version 1, 12 entries; 12 added"]
    out = tmp_path / "out.json"
    query = str(photos / "red" / "0.png")
    for command, options in (
        ("append", ("--gallery", str(photos))),
        ("remove", ("--label", "blue")),
        ("rollback", ()),
        ("check", ()),
        ("search", (query,)),
        ("info", ()),
        ("verify", ()),
    ):
        arguments = ("index", command, *options, "--index", index)
        done = on_terminal(home, *arguments, columns=columns)
        assert done.returncode == 0, done.screen
        assert all(len(line) <= columns for line in done.screen if index not in line)
        again = [each.replace("blue", "green") for each in arguments]
        done = on_terminal(home, *again, "--json", columns=columns, stdout=out)
        assert done.returncode == 0, done.screen
        assert all(isinstance(json.loads(line), dict) for line in out.read_text("utf-8").splitlines())


@pytest.mark.full
def test_optimize(home: Path, photos: Path, columns: int) -> None:
    arguments = ("--model", "tiny", "--precision", "bf16", "--images", str(photos))
    done = on_terminal(home, "optimize", *arguments, columns=columns)
    assert done.returncode in (0, 1)  # a processor without bf16 refuses
    assert all(len(line) <= columns for line in done.screen if str(home) not in line)


@pytest.mark.full
def test_tune(home: Path, columns: int, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ("tune", "--model", "tiny", "--seconds", "0.1", "--clients", "1", "--engine", "openvino")
    done = on_terminal(home, *arguments, columns=columns)
    assert done.returncode == 0, done.screen
    assert words(done) >= {"engine", "precision", "instances", "threads", "images/s", "p99", "ms", "rounds"}
    done = on_terminal(home, *arguments, "--json", columns=columns, stdout=out)
    assert any(json.loads(line)["best"] for line in out.read_text("utf-8").splitlines())


@pytest.mark.full
def test_bench(home: Path, tiny_server: Server, columns: int, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ("bench", tiny_server.url, "--requests", "4", "--clients", "1,2", "--warm-up", "0")
    done = on_terminal(home, *arguments, columns=columns)
    assert done.returncode == 0, done.screen
    assert all(len(line) <= columns for line in done.screen)
    assert words(done) >= {"route", "load", "images/s", "requests/s", "failed", "mean", "p50", "p99", "ms"}
    done = on_terminal(home, *arguments, "--json", columns=columns, stdout=out)
    assert len([json.loads(line) for line in out.read_text("utf-8").splitlines()]) == 2


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(("doctor",), marks=pytest.mark.full), ("fetch", "--list"), ("alias", "tiny_serving")],
)
def test_tables(home: Path, columns: int, arguments: tuple[str, ...]) -> None:
    arguments = tuple(str(home / "models" / each) if each == "tiny_serving" else each for each in arguments)
    done = on_terminal(home, *arguments, columns=columns)
    assert done.returncode == 0
    assert all(len(line) <= columns for line in done.screen if str(home) not in line)
    (head,) = [line for line in done.screen if line.split()[:1] in (["area"], ["name"], ["kind"])]
    # The catalog's table leaves out its last columns where they do not fit.
    assert head.split()[-1] in ("it", "accuracy" if columns == 80 else "family", "shape")


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_tables_on_other_terminals(home: Path, columns: int, environ: dict[str, str], tmp_path: Path) -> None:
    """Half as wide or twice as wide, and with standard error in a file."""
    notes = tmp_path / "notes"
    for width in (40,) if columns == 80 else (200,):
        done = on_terminal(home, "list", columns=width, stderr=notes, **environ)
        assert done.returncode == 0
        assert max(map(len, done.screen)) <= width
        assert words(done) >= {"model", "tiny", "tiny_embedder", "inference,"}
        assert notes.read_text("utf-8") == ""
        if environ.get("TERM") == "dumb":
            assert "\x1b" not in done.raw


def test_predict_with_its_notes_in_a_file(
    home: Path, tiny_server: Server, photos: Path, tmp_path: Path, columns: int
) -> None:
    notes, bad = tmp_path / "notes", tmp_path / "none.png"
    arguments = ("predict", str(photos), str(bad), "--json", "--url", tiny_server.url)
    done = on_terminal(home, *arguments, columns=columns, stderr=notes)
    assert [len(json.loads(line)) for line in done.screen if line] == [2] * 13
    assert notes.read_text("utf-8") == ""  # of what failed it is JSON that says so


def test_the_catalog_fits(tmp_path: Path, columns: int) -> None:
    """The least wanted columns are left out; the figures stay."""
    done = on_terminal(tmp_path, "fetch", "--list", columns=columns)
    heading = done.screen[0].split()
    assert (
        heading
        == ["name", "task", "Paddle", "MB", "accuracy", "metric", "family"][: 5 if columns == 80 else 7]
    )
    assert max(map(len, done.screen)) <= columns
    (row,) = done.lines("PP-HGNetV2-B0 ")
    assert row.split()[:5] == ["PP-HGNetV2-B0", "classification", "3", "21.4", "77.77"]
    (row,) = done.lines("PPLCNet_x1_0 ")
    assert row.split()[:5] == ["PPLCNet_x1_0", "classification", "2", "-", "71.32"]
