"""``pdserve rm``: asks, removes all forms of a name, and nothing that is in use or outside the home."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from pdserve.errors import UsageError
from pdserve.index.edit import build
from pdserve.locks import try_file_lock
from pdserve.models import trash
from pdserve.models.home import Home
from pdserve.models.inventory import check_name, usage
from tests.index.galleries import GridEmbedder, write_gallery
from tests.running import environment, pdserve, start
from tests.terminal import on_terminal
from tests.tiny import build_serving_model


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a model, and an index that it is said to have made."""
    where = Home(tmp_path / "home")
    build_serving_model(where.models)
    build(write_gallery(tmp_path / "gallery"), where.index("drinks"), GridEmbedder(name="tiny"))
    return where


def left(home: Home) -> list[str]:
    """Names of what is in the home's folders, hidden ones too."""
    return sorted(path.name for folder in (home.models, home.indexes) for path in folder.iterdir())


MODEL = ["tiny_client", "tiny_infer", "tiny_serving"]


def test_a_model_with_all_its_forms(home: Home) -> None:
    (home.serving_model("tiny") / ".pdserve").mkdir()
    (home.serving_model("tiny") / ".pdserve" / "a.onnx").write_bytes(bytes(3000))
    whole = usage(home.models.iterdir())
    os.link(home.inference_model("tiny") / "inference.yml", home.root / "kept.yml")
    kept = (home.root / "kept.yml").stat().st_size
    done = pdserve(home.root, "rm", "tiny", "--yes", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"name": "tiny", "what": "model", "bytes": whole - kept}
    assert left(home) == ["drinks"]


def test_an_index(home: Home) -> None:
    done = pdserve(home.root, "rm", "drinks", "-y")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("drinks: removed, ")
    assert left(home) == MODEL


def test_without_a_terminal_it_refuses(home: Home) -> None:
    done = pdserve(home.root, "rm", "tiny", stdin=b"y\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--yes" in done.stderr
    assert left(home) == ["drinks", *MODEL]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminal")
@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1)])
def test_the_question(home: Home, typed: str, code: int) -> None:
    seen = on_terminal(home.root, "rm", "tiny", columns=120, typed=typed)
    assert seen.returncode == code, seen.raw
    assert seen.lines("tiny: inference, serving, client, ")
    assert seen.lines("The index drinks is neither served nor added to without tiny.")
    assert "Remove tiny, " in seen.raw
    assert "Traceback" not in seen.raw
    assert left(home) == (["drinks"] if code == 0 else ["drinks", *MODEL])


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminal")
def test_an_index_that_goes_too_needs_no_model(home: Home) -> None:
    seen = on_terminal(home.root, "rm", "tiny", "drinks", columns=120, typed="y\n")
    assert seen.returncode == 0
    assert "without" not in seen.raw
    assert "Remove tiny and drinks, " in seen.raw
    assert left(home) == []


def test_what_a_server_uses_stays(home: Home) -> None:
    with start(home.root, "--model", "tiny") as server:
        done = pdserve(home.root, "rm", "drinks", "tiny", "--yes")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"pdserve: tiny is in use by classification at {server.url} (pid {server.process.pid}); "
            "stop it first.\n"
        )
        assert left(home) == ["drinks", *MODEL]
        server.process.kill()
        server.wait()
        assert pdserve(home.root, "rm", "drinks", "tiny", "--yes").returncode == 0
    assert left(home) == []


@pytest.mark.parametrize("name", ["..", "../outside", "models/tiny", "/etc", "tiny_infer", "~"])
def test_what_is_no_name_here(home: Home, name: str) -> None:
    done = pdserve(home.root, "rm", name, "--yes")
    assert (done.returncode, done.stdout) == (2, "")
    assert "pdserve list" in done.stderr
    assert left(home) == ["drinks", *MODEL]


@pytest.mark.parametrize("name", ["..", ".", "", "/", "a/b", ".tiny", "a\\b", "C:x", "..\\x", "a\0b", "~"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="is no name"):
        check_name(name)


def test_one_unknown_name_keeps_all(home: Home) -> None:
    assert pdserve(home.root, "rm", "tiny", "other", "--yes").returncode == 2
    assert left(home) == ["drinks", *MODEL]


def test_a_name_of_two(home: Home) -> None:
    shutil.copytree(home.index("drinks"), home.index("tiny"))
    done = pdserve(home.root, "rm", "tiny", "--yes")
    assert (done.returncode, "--only model" in done.stderr) == (2, True)
    assert pdserve(home.root, "rm", "tiny", "--yes", "--only", "index").returncode == 0
    assert left(home) == ["drinks", *MODEL]


def test_links_lead_nobody_out(home: Home, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(home.inference_model("tiny"), outside)
    files = sorted(path.name for path in outside.iterdir())
    try:
        home.inference_model("tiny").symlink_to(outside)
        (home.serving_model("tiny") / "out").symlink_to(outside)
    except OSError:
        pytest.skip("no links here")
    assert pdserve(home.root, "rm", "tiny", "--yes").returncode == 0
    assert left(home) == ["drinks"]
    assert sorted(path.name for path in outside.iterdir()) == files


def test_what_is_being_written_stays(home: Home) -> None:
    (home.root / "downloads").mkdir()
    (home.root / "downloads" / "tiny.lock").touch()
    with ExitStack() as held:
        assert try_file_lock(home.root / "downloads" / "tiny.lock", held)
        assert try_file_lock(home.index("drinks") / ".lock", held)
        for name in ("tiny", "drinks"):
            done = pdserve(home.root, "rm", name, "--yes")
            assert (done.returncode, "try again when it has done" in done.stderr) == (1, True)
    assert left(home) == ["drinks", *MODEL]


_KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from pdserve.models import trash
renames = int(sys.argv[1])
rename = Path.rename
def count(path, target):
    global renames
    if not renames:
        os.kill(os.getpid(), signal.SIGKILL)
    renames -= 1
    return rename(path, target)
Path.rename = count
shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
trash.remove([Path(each) for each in sys.argv[2:]])
"""


@pytest.mark.posix
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_kill_leaves_each_folder_whole_or_gone(home: Home, renames: int) -> None:
    folders = [home.models / name for name in MODEL]
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(renames), *map(str, folders)], env=environment(home.root)
    )
    assert killed.returncode == -signal.SIGKILL
    whole = [path.name for path in folders if path.exists()]
    assert whole == MODEL[renames:]
    assert len([name for name in left(home) if name.endswith(".trash")]) == renames
    done = pdserve(home.root, "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert left(home) == ["drinks", *whole]


def test_a_failing_rename_takes_back_the_others(home: Home) -> None:
    folders = [home.models / name for name in (*MODEL, "absent")]
    with pytest.raises(Exception, match="absent"):
        trash.remove(folders)
    assert left(home) == ["drinks", *MODEL]
