"""The EXPORTS table: its import strings name functions, and `pdserve export` lists its entries."""

from pathlib import Path
from pkgutil import resolve_name

from pdserve.commands.exports import EXPORTS
from pdserve.commands.runtimes import RUNTIMES
from tests.running import pdserve


def test_each_entry_is_a_command(tmp_path: Path) -> None:
    said = pdserve(tmp_path, "export", "--help").stdout
    for name, target in EXPORTS.items():
        assert callable(resolve_name(target))
        assert name in said


def test_every_runtime_has_one() -> None:
    assert set(RUNTIMES) <= set(EXPORTS)
