"""Where pdserve's home is, where nobody says."""

import os
from pathlib import Path

import platformdirs
import pytest
from platformdirs.macos import MacOS
from platformdirs.unix import Unix

from pdserve.models.home import Home, _data_folder


@pytest.mark.posix
@pytest.mark.parametrize("shared", [None, "", "/srv/data", "data"])
@pytest.mark.parametrize(("platform", "kind"), [("linux", Unix), ("darwin", MacOS)])
def test_it_is_where_platformdirs_says(
    platform: str, kind: type[Unix | MacOS], shared: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    if shared is not None:
        monkeypatch.setenv("XDG_DATA_HOME", shared)
    assert _data_folder(os.environ, platform) == kind("pdserve").user_data_path


def test_it_is_so_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PDSERVE_HOME", raising=False)
    assert Home.from_environ(os.environ).root == platformdirs.user_data_path("pdserve")


def test_on_windows_it_is_in_the_users_profile() -> None:
    local = str(Path("profile") / "Local")
    assert _data_folder({"LOCALAPPDATA": local}, "win32") == Path(local, "pdserve", "pdserve")
    assert _data_folder({}, "win32") == Path.home() / "AppData" / "Local" / "pdserve" / "pdserve"
