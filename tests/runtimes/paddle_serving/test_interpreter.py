"""Which Python runs Paddle Serving, and what it is asked."""

import sys
from pathlib import Path

import pytest

from pdserve.errors import EngineMissingError, UsageError
from pdserve.models.home import Home
from pdserve.runtimes.paddle_serving.interpreter import RUNTIME, VARIABLE, choose, query

NEEDED = {"pytest": "pytest", "json": "a-part-of-python"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def test_an_interpreter_tells_what_it_has() -> None:
    found = query(Path(sys.executable), {**NEEDED, "no.such": "no-such"})
    assert found
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.versions == (f"pytest {pytest.__version__}",)
    assert found.missing == ("no-such",)


def test_the_one_given_comes_first(tmp_path: Path, fake_python: Path) -> None:
    environ = {VARIABLE: str(tmp_path / "none")}
    assert choose(fake_python, environ, Home(tmp_path), NEEDED).path == fake_python


def test_then_the_environments(tmp_path: Path, fake_python: Path) -> None:
    assert choose(None, {VARIABLE: str(fake_python)}, Home(tmp_path), NEEDED).path == fake_python


def test_then_the_installed_one(tmp_path: Path, fake_python: Path) -> None:
    home = Home(tmp_path / "home")
    own = home.runtime(RUNTIME) / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(fake_python)
    assert choose(None, {}, home, NEEDED).path == own


def test_then_one_on_the_path(tmp_path: Path, fake_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "bin" / "python3.8"
    other.parent.mkdir()
    other.symlink_to(fake_python)
    monkeypatch.setenv("PATH", str(other.parent))
    assert choose(None, {}, Home(tmp_path), NEEDED).path == other


def test_none_at_all_is_told_with_what_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineMissingError, match=r"runtime install paddle-serving.*protobuf==3\.20\.3"):
        choose(None, {}, Home(tmp_path), NEEDED)


@pytest.mark.parametrize("named", ["--python", VARIABLE])
def test_one_that_is_none_is_told_by_who_named_it(tmp_path: Path, named: str) -> None:
    wrong = tmp_path / "python"
    wrong.write_text("#!/bin/sh\necho no\n", "utf-8")
    wrong.chmod(0o755)
    given, environ = (wrong, {}) if named == "--python" else (None, {VARIABLE: str(wrong)})
    with pytest.raises(UsageError, match=f"^{named} is"):
        choose(given, environ, Home(tmp_path), NEEDED)


def test_what_one_lacks_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineMissingError, match=r"lacks no-such;.*runtime install"):
        choose(Path(sys.executable), {}, Home(tmp_path), {"no_such": "no-such"})
