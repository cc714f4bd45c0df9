"""The size of the house: short modules, few of them loose; a stranger's first guess finds the file."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pdserve"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = Path(__file__).parent
# What is no part of the package, and what tests it as a whole.
APART = {"attacks", "benchmarks", "data", "docs", "end_to_end", "fuzz", "simulation", "zoo"}


def loose(folder: Path) -> list[str]:
    """Modules that stand in a folder itself."""
    return [
        path.name for path in sorted(folder.glob("*.py")) if path.name not in ("__init__.py", "__main__.py")
    ]


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_few_modules_stand_loose() -> None:
    assert len(loose(PACKAGE)) <= 15
    assert len(loose(PACKAGE / "services")) <= 20


def test_there_are_no_more_modules_than_nouns() -> None:
    assert len(MODULES) <= 269


def test_the_tests_mirror_the_package() -> None:
    tests = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py") if path != Path(__file__)]
    mirrored = [path for path in tests if path.parts[0] not in APART]
    assert [str(path) for path in mirrored if not (PACKAGE / path.parent).is_dir()] == []
    top = [path.stem.removeprefix("test_") for path in mirrored if len(path.parts) == 1]
    assert [name for name in top if not (PACKAGE / f"{name}.py").is_file()] == []
