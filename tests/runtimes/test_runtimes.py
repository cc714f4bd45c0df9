"""The RUNTIMES table: its import strings name functions, and the commands list its entries."""

from pathlib import Path
from pkgutil import resolve_name

import pytest

from pdserve.commands.runtimes import RUNTIMES
from tests.running import pdserve


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_entry_can_be_loaded(name: str) -> None:
    entry = RUNTIMES[name]
    for target in (entry.check, entry.serve, entry.find, entry.install):
        assert callable(resolve_name(target))


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_commands_know_it(tmp_path: Path, name: str) -> None:
    for command in (("serve", "classification"), ("export",), ("runtime", "install")):
        assert name in pdserve(tmp_path, *command, "--help").stdout


def test_an_unknown_runtime_is_a_wrong_command_line(tmp_path: Path) -> None:
    for command in (("serve", "classification", "--runtime", "nothing"), ("runtime", "install", "serving")):
        assert pdserve(tmp_path, *command).returncode == 2
