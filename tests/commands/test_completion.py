"""Completion of names: which, where, in each shell, and in a real bash."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import platformdirs
import pytest

from pdserve.commands.completion import answer, candidates
from pdserve.models import catalog
from pdserve.models.home import Home
from tests.running import environment
from tests.tiny import build_serving_model

SCRIPT = shutil.which("pdserve", path=str(Path(sys.executable).parent))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home with a model, a fetched model, and an index."""
    where = Home(tmp_path)
    build_serving_model(where.models)
    where.inference_model("tinier").mkdir()
    where.index("tins").mkdir(parents=True)
    where.index("$(touch x)").mkdir()
    monkeypatch.setenv("PDSERVE_HOME", str(tmp_path))
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    return where


def asked(line: str) -> list[str] | None:
    *words, last = line.split(" ")
    return candidates(words, last)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("rm ti", ["tinier", "tiny", "tins"]),
        ("rm tiny ti", ["tinier", "tins"]),
        ("rm --yes ti", ["tinier", "tiny", "tins"]),
        ("show tins", ["tins"]),
        ("show PP-ShiTuV2_de", ["PP-ShiTuV2_det"]),
        ("fetch PP-ShiTuV2_de", ["PP-ShiTuV2_det"]),
        ("fetch tiny", []),
        ("run tin", ["tinier", "tiny"]),
        ("run tiny tin", None),
        ("convert --model ", ["tinier", "tiny"]),
        ("serve classification --model tin", ["tinier", "tiny"]),
        ("serve classification --model=tin", ["--model=tinier", "--model=tiny"]),
        ("serve classification --model = tin", ["tinier", "tiny"]),
        ("serve classification --model ./tin", []),
        ("serve recognition --index t", ["tins"]),
        ("index check --index ", ["tins"]),
        ("serve recognition --detector non", ["none"]),
        ("serve recognition --detector PP-ShiTuV2_d", ["PP-ShiTuV2_det"]),
        ("serve recognition --embedder PP-ShiTuV2_d", []),
        ("serve recognition --embedder PP-ShiTuV2_rec_CLIP_vit_b", ["PP-ShiTuV2_rec_CLIP_vit_base"]),
        ("serve detection --engine o", ["openvino", "onnx"]),
        ("serve detection --precision f", ["fp32", "fp16"]),
        ("serve detection --runtime n", ["native"]),
        ("predict x.jpg --service rec", ["recognition"]),
        ("predict ", None),
        ("fetch --mi", None),
        ("serve ", None),
        ("ser", None),
        ("", None),
        ("doctor ti", None),
    ],
)
def test_names_where_names_are_wanted(home: Home, line: str, found: list[str] | None) -> None:
    assert asked(line) == found


def ask(home: Path, shell: str, line: str) -> str:
    """What ``pdserve`` prints for a shell with this line, the cursor at its end."""
    words = line.split(" ")
    variables = environment(
        home, _PDSERVE_COMPLETE=f"complete_{shell}", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1),
        _TYPER_COMPLETE_ARGS=line, _TYPER_COMPLETE_FISH_ACTION="get-args",
        _TYPER_COMPLETE_WORD_TO_COMPLETE=words[-1],
    )  # fmt: skip
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'pdserve'; from pdserve.cli import main; main()",
    ]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_each_shell_in_its_form(home: Home) -> None:
    assert ask(home.root, "bash", "pdserve rm ti").split() == ["tinier", "tiny", "tins"]
    assert ask(home.root, "fish", "pdserve rm ti").split() == ["tinier", "tiny", "tins"]
    assert ask(home.root, "zsh", "pdserve rm ti") == '_arguments \'*: :(("tinier"\n"tiny"\n"tins"))\'\n'
    assert ask(home.root, "zsh", "pdserve rm nothing") == "_files\n"
    assert ask(home.root, "pwsh", "pdserve rm tinie") == ask(home.root, "powershell", "pdserve rm tinie")
    assert ask(home.root, "pwsh", "pdserve rm tinie") == "tinier::: \n"
    assert "touch" not in ask(home.root, "zsh", "pdserve rm ")
    assert ask(home.root, "bash", "pdserve sho").split() == ["show"]  # typer's
    assert "--mirror" in ask(home.root, "bash", "pdserve fetch --mi").split()


def test_the_catalogs_names_are_kept(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = home.root / "cache" / "completion.json"
    found = asked("fetch PP-ShiTuV2_de")
    content = json.loads(kept.read_text("utf-8"))
    assert content["tasks"] == {name: entry.task for name, entry in catalog.load().items()}
    content["tasks"] = {"PP-ShiTuV2_demo": "embedding"}
    kept.write_text(json.dumps(content), "utf-8")
    assert (found, asked("fetch PP-ShiTuV2_de")) == (["PP-ShiTuV2_det"], ["PP-ShiTuV2_demo"])
    content["of"]["size"] += 1  # of another catalog.yml
    for wrong in (json.dumps(content), "[]", "{", '{"of": 1}'):
        kept.write_text(wrong, "utf-8")
        assert asked("fetch PP-ShiTuV2_de") == found
        assert json.loads(kept.read_text("utf-8"))["of"]["size"] == content["of"]["size"] - 1
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: home.servers / "a file" / "cache")
    home.servers.mkdir()
    (home.servers / "a file").touch()
    assert asked("fetch PP-ShiTuV2_de") == found


@pytest.mark.parametrize(
    "line",
    [
        "pdserve fetch Res",
        "pdserve serve detection --detector pico",
        "pdserve serve face --runtime n",
        "pdserve rm ",
    ],
)
def test_names_load_nothing_heavy(home: Home, tmp_path: Path, line: str) -> None:
    code = (
        "import sys; from pdserve.cli import main; main()\n"
        "heavy = {'typer', 'rich', 'yaml', 'numpy', 'pydantic', 'pdserve.models.catalog'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    at = str(len(line.split(" ")) - 1)
    variables = environment(
        home.root, _PDSERVE_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=at,
        XDG_CACHE_HOME=str(tmp_path / "cache"), HOME=str(tmp_path),
    )  # fmt: skip
    for _ in range(2):  # the first reads the catalog, and keeps its names
        done = subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
        )
    assert done.stdout.strip()
    assert done.stderr.strip() == "[]"


def test_whatever_is_wrong_is_silent(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(home.root)
    home.root.write_text("a file in the home's place", "utf-8")
    assert ask(home.root, "bash", "pdserve rm ti").split() == []
    assert not answer("complete_noshell")
    assert not answer("source_bash")
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32" or not SCRIPT or not shutil.which("bash"), reason="needs bash")
def test_in_a_real_bash(home: Home) -> None:
    import pty

    variables = environment(
        home.root, TERM="dumb", PS1="> ", PATH=f"{Path(str(SCRIPT)).parent}:{os.environ['PATH']}"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=variables,
        start_new_session=True,
    ) as bash:  # fmt: skip
        os.close(theirs)
        os.write(ours, b'eval "$(pdserve --show-completion bash)"; echo rea""dy\n')
        seen = _until(ours, "ready\r\n")
        os.write(ours, b"pdserve show tinie\t")
        seen = _until(ours, "show tinier")
        assert "Traceback" not in seen
        os.write(ours, b"\x15exit\n")
        bash.wait(30)
    os.close(ours)


def _until(terminal: int, words: str) -> str:
    import select

    seen, deadline = "", time.monotonic() + 60
    while words not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536).decode("utf-8", "replace")
    return seen
