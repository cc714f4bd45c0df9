"""``pdserve index …`` as typed, with a tiny real embedder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pdserve.pipelines import SERVICES
from tests.extras import import_or_skip
from tests.running import pdserve
from tests.tiny import build_embedder, picture

DEFAULT = SERVICES["recognition"].roles["embedder"].default
COLORS = {"red": (200, 20, 20), "green": (20, 200, 20), "blau": (20, 20, 200)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    build_embedder(home / "models")
    return home


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set's folder with a gallery of six images."""
    for name, color in COLORS.items():
        folder = tmp_path / "data" / "gallery" / name
        folder.mkdir(parents=True)
        for n in range(2):
            shade = (color[0] + n, color[1], color[2])
            (folder / f"{n}.png").write_bytes(picture(shade))
    text = "".join(f"{name}/{n}.png\tcolour {name}\n" for name in COLORS for n in range(2))
    (tmp_path / "data" / "gallery" / "list.txt").write_text(text, "utf-8")
    return tmp_path / "data"


def run(home: Path, *arguments: object, code: int = 0) -> list[dict[str, Any]]:
    done = pdserve(home, "index", *map(str, arguments), "--json")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def index(home: Path, data: Path) -> Path:
    gallery = data / "gallery"
    (made,) = run(
        home, "build", "--gallery", gallery, "--labels", gallery / "list.txt", "--model", "tiny_embedder"
    )
    assert (made["count"], made["index_version"]) == (6, 1)
    assert Path(made["index"]) == data / "index"
    return data


def test_from_gallery_to_answer(home: Path, index: Path, tmp_path: Path) -> None:
    query = tmp_path / "query.png"
    query.write_bytes(picture((210, 25, 25)))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    found, failed = run(home, "search", query, broken, "--index", index, "--top-k", 2, code=1)
    assert [m["label"] for m in found["matches"]] == ["colour red", "colour red"]
    assert found["index_version"] == 1
    assert failed["image"] == str(broken)
    assert failed["error"]


def test_append_remove_rollback_info(home: Path, index: Path, tmp_path: Path) -> None:
    yellow = tmp_path / "yellow.png"
    yellow.write_bytes(picture((220, 220, 10)))
    (made,) = run(home, "append", yellow, "--label", "gelb", "--index", index)
    assert (made["added"], made["count"]) == (1, 7)
    assert run(home, "append", yellow, "--label", "gelb", "--index", index)[0]["present"] == 1
    (made,) = run(home, "remove", "--label", "colour red", "--image", yellow.as_posix(), "--index", index)
    assert (made["removed"], made["count"], made["index_version"]) == (3, 4, 3)
    (info,) = run(home, "info", "--index", index)
    assert (info["count"], info["labels"], info["type"], info["previous"]) == (4, 2, "Flat", 2)
    assert info["embedder"] == "tiny_embedder"
    assert len(run(home, "info", "--entries", "--index", index)) == 4
    assert run(home, "rollback", "--index", index)[0]["count"] == 7
    assert {finding["good"] for finding in run(home, "verify", "--index", index)} == {True}


def test_other_pictures_under_the_same_names_are_added(home: Path, index: Path, tmp_path: Path) -> None:
    more = tmp_path / "more" / "red"
    more.mkdir(parents=True)
    for n in range(2):
        (more / f"{n}.png").write_bytes(picture((150, 90 + n, 20)))
    append = ("append", "--gallery", more.parent, "--index", index)
    done = pdserve(home, "index", *map(str, append))
    assert "version 2, 8 entries; 2 added" in done.stdout.replace("\n", "")
    assert "Note: 2 of the added have the path of an entry of another image, and both stay" in done.stderr
    (more / "1.png").write_bytes(picture((140, 140, 20)))
    (made,) = run(home, *append, "--replace")
    assert (made["replaced"], made["removed"], made["count"], made["present"]) == (1, 0, 7, 1)


@pytest.mark.parametrize(
    "command",
    [("append", "a.png", "--label", "x"), ("remove", "--label", "red"), ("merge", "other"), ("rollback",)],
)
def test_what_changes_an_index_has_no_default(home: Path, command: tuple[str, ...]) -> None:
    done = pdserve(home, "index", *command)
    assert done.returncode == 2
    assert f"Which index should be changed? Type `pdserve index {command[0]} … --index NAME`" in done.stderr


def test_merge_and_check(home: Path, index: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run(
        home, "build", "--gallery", index / "gallery", "--out", other, "--type", "HNSW32", "--model",
        "tiny_embedder",
    )  # fmt: skip
    assert run(home, "merge", other, "--index", index)[0]["relabelled"] == 6
    (report,) = run(home, "check", "--index", other)
    assert report["recall_at_1"] == 1
    assert report["index_recall"]["at_1"] == 1


def test_the_picture_of_a_check(home: Path, index: Path, tmp_path: Path) -> None:
    import_or_skip("matplotlib", "plot")
    (report,) = run(home, "check", "--index", index, "--picture", tmp_path / "scores.png")
    assert report["picture"] == str(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_names_the_command_that_installs_it(home: Path, index: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pdserve.cli import main\n"
        f"sys.argv = ['pdserve', 'index', 'check', '--index', {str(index)!r}, '--picture', 'scores.png']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert 'pip install "pdserve[plot]"' in done.stderr
    assert not Path("scores.png").exists()


def test_for_people(home: Path, index: Path) -> None:
    for command in ("info", "verify", "check"):
        done = pdserve(home, "index", command, "--index", str(index))
        assert done.returncode == 0, done.stderr
        assert "6" in done.stdout
    done = pdserve(home, "index", "search", str(index / "gallery" / "red" / "0.png"), "--index", str(index))
    assert "colour red" in done.stdout


def test_verify_fails_on_a_broken_one(home: Path, index: Path) -> None:
    path = index / "index" / "id_map.pkl"
    path.unlink()
    path.write_bytes(b"broken")
    findings = run(home, "verify", "--index", index, code=1)
    assert [finding["what"] for finding in findings if finding["good"] is False] == ["id_map.pkl"]


def test_an_unreadable_image_is_skipped_or_stops(home: Path, data: Path) -> None:
    (data / "gallery" / "red" / "2.png").write_bytes(b"no image")
    build = ("build", "--gallery", data / "gallery", "--model", "tiny_embedder")
    (made,) = run(home, *build)
    assert made["count"] == 6
    assert [each["image"] for each in made["skipped"]] == ["red/2.png"]
    done = pdserve(home, "index", *map(str, build), "--strict")
    assert done.returncode == 1
    assert "red/2.png" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("build",), 2, "--gallery"),
        (("build", "--gallery", "nowhere", "--out", "x"), 1, "no gallery folder nowhere"),
        (("build", "--gallery", ".", "--labels", "nowhere.txt", "--out", "x"), 1, "nowhere.txt"),
        (("append", "a.png"), 2, "--label"),
        (("append", "--label", "x"), 2, "IMAGE"),
        (("append", "a.png", "--label", "x", "--gallery", "."), 2, "not with --gallery"),
        (("append", "a.png", "--label", "x"), 2, "pdserve index build"),
        (("remove",), 2, "--label, --image or --id"),
        (("info", "--index", "nowhere"), 2, "no index at 'nowhere'"),
        (("search", "a.png"), 2, "pdserve fetch drink_dataset_v1.0"),
        (("check", "--sample", "1"), 2, "--sample"),
        (("build", "--gallery", ".", "--type", "Tree"), 2, "--type"),
    ],
)
def test_a_wrong_command_line(tmp_path: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = pdserve(tmp_path, "index", *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_another_embedder_is_refused_by_name(home: Path, index: Path) -> None:
    build_embedder(index / "models", name="another")
    # The same model under another name makes the same vectors.
    query = str(index / "gallery" / "red" / "0.png")
    run(home, "search", query, "--index", index, "--model", index / "models" / "another_serving")
    described = json.loads((index / "index" / "index.json").read_text("utf-8"))
    described["embedder"]["fingerprint"] = "0" * 64
    (index / "index" / "index.json").write_text(json.dumps(described), "utf-8")
    done = pdserve(home, "index", "search", query, "--index", str(index))
    assert done.returncode == 1
    assert "was built with tiny_embedder (000000000000)" in done.stderr


def test_help_loads_no_faiss(home: Path) -> None:
    code = (
        "import sys; sys.argv = ['pdserve', 'index', '--help']\n"
        "from pdserve.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'faiss', 'cv2', 'PIL', 'filelock'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"


def test_exported_for_paddlex_and_served_from_there(home: Path, index: Path, tmp_path: Path) -> None:
    out = tmp_path / "paddlex"
    (made,) = run(home, "export", index, "--form", "paddlex", "--out", out)
    assert made == {
        "folder": str(out),
        "form": "paddlex",
        "index_version": 1,
        "type": "Flat",
        "metric": "IP",
        "dimension": 3,
        "count": 6,
        "files": ["vector.index", "id_map.yaml"],
        "images": False,
    }
    query = tmp_path / "query.png"
    query.write_bytes(picture((210, 25, 25)))
    (theirs,) = run(home, "search", query, "--index", out, "--model", "tiny_embedder", "--top-k", 2)
    (ours,) = run(home, "search", query, "--index", index, "--top-k", 2)
    # What nobody says is said: that the embedder is taken on trust, and whether it was named.
    words = f"Note: {out} does not say which embedder made it; tiny_embedder is taken for it."
    done = pdserve(home, "index", "search", str(query), "--index", str(out), "--model", "tiny_embedder")
    assert done.stderr == f"{words}\n"
    build_embedder(home / "models", DEFAULT)
    for command in (("search", str(query)), ("append", str(query), "--label", "red")):
        copy = shutil.copytree(out, tmp_path / command[0])
        done = pdserve(home, "index", *command, "--index", str(copy))
        assert f"made it; {DEFAULT} is taken for it, as --model names none.\n" in done.stderr
    for found, wanted in zip(theirs["matches"], ours["matches"], strict=True):
        assert found == wanted | {"image": f"paddlex/{wanted['id']}"}
    (info,) = run(home, "info", "--index", out)
    assert (info["count"], info["index_version"], info["embedder"]) == (6, 0, None)
    assert info["bytes"] == sum((out / name).stat().st_size for name in made["files"])
    done = pdserve(home, "index", "export", str(index), "--form", "paddlex", "--out", str(out))
    assert (done.returncode, done.stdout) == (2, "")
    assert "is there already; give --out a new folder" in done.stderr
    done = pdserve(home, "index", "export", str(index), "--form", "paddlex", "--out", str(tmp_path / "two"))
    assert "two: vector.index and id_map.yaml, 6 entries, Flat IP" in done.stdout.replace("\n", "")
    assert "Note: PaddleX's form has labels and no images' paths." in done.stderr
    assert run(home, "export", index, "--out", tmp_path / "three")[0]["form"] == "paddleclas"
