"""The runtime's environment, made of a stand-in for a Python where none of the versions is needed."""

import os
import sys
from pathlib import Path

import pytest

from pdserve.errors import EngineMissingError, UsageError
from pdserve.models.home import Home
from pdserve.progress import SILENT
from pdserve.runtimes.paddle_serving.install import check, install
from pdserve.runtimes.paddle_serving.interpreter import RUNTIME
from tests.running import pdserve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def test_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"need 3\.9 or 3\.8"):
        install(Home(tmp_path), Path(sys.executable), os.environ, SILENT)
    assert not list(tmp_path.iterdir())


def test_where_there_is_none_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    environ = {"PATH": str(tmp_path), "PYENV_ROOT": str(tmp_path)}
    with pytest.raises(EngineMissingError, match=r"no Python 3\.9 or 3\.8 here.*--python PATH"):
        install(Home(tmp_path), None, environ, SILENT)


def test_what_is_broken_never_looks_installed(tmp_path: Path, fake_python: Path) -> None:
    """The stand-in says that it is Python 3.9, and fails to make an environment."""
    home = tmp_path / "home"
    done = pdserve(home, "runtime", "install", RUNTIME, "--python", str(fake_python))
    assert done.returncode == 1
    assert "`-m venv" in done.stderr.splitlines()[-1]
    assert "failed: there is no space on the disk." in done.stderr.splitlines()[-1]
    assert [path.name for path in (home / "runtimes").iterdir()] == [f"{RUNTIME}.lock"]


@pytest.mark.paddle_serving
def test_the_real_one_passes_the_check(paddle_serving_python: Path, tmp_path: Path) -> None:
    check(paddle_serving_python, Home(tmp_path), os.environ)
