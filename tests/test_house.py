"""The size of the house: short modules, few of them loose; a stranger's first guess finds the file."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pdserve"
MODULES = sorted(PACKAGE.rglob("*.py"))


def loose(folder: Path) -> list[str]:
    """Modules that stand in a folder itself."""
    return [
        path.name for path in sorted(folder.glob("*.py")) if path.name not in ("__init__.py", "__main__.py")
    ]


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_few_modules_stand_loose() -> None:
    assert len(loose(PACKAGE)) <= 14
    assert len(loose(PACKAGE / "services")) <= 16


def test_there_are_no_more_modules_than_nouns() -> None:
    assert len(MODULES) <= 172
