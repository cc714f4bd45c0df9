"""CONTRIBUTING.md, architecture.md and the others: files they name exist, quoted entries are real."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, Block, read

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
BESIDE = ("pdserve_zoo", "client", "configs", "benchmarks", "demo", "deploy", ".ci", ".github")
FOLDERS = ("pdserve", "tests", "docs", *BESIDE)
QUOTED = [block for block in read(CONTRIBUTING) if "an entry of" in (block.lacking or "")]


def paths(text: str) -> list[str]:
    """What stands between backticks and looks like a file or folder of the repository."""
    found = re.findall(r"`([\w./-]+)`", text)
    files = {path.name for path in ROOT.iterdir() if path.is_file()}
    return [each for each in found if (each.split("/")[0] in FOLDERS and "/" in each) or each in files]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    missing = [each for each in paths(page.read_text("utf-8")) if not (ROOT / each).exists()]
    assert not missing


def test_the_table_of_changes_names_a_file_in_every_row() -> None:
    table = CONTRIBUTING.read_text("utf-8").partition("## I want to change")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 30
    assert [row for row in rows if not paths(row.split(" | ")[1])] == []


def test_architecture_has_four_ways_with_files_at_every_station() -> None:
    ways = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("\n## The way of ")[1:]
    assert [way.split("\n")[0] for way in ways] == ["an image", "a name", "a gallery", "a setting"]
    for way in ways:
        stations = re.findall(r"^\d+\. (.*)$", way, re.MULTILINE)
        assert len(stations) >= 5
        assert [station for station in stations if not paths(station)] == []


@pytest.mark.parametrize("block", QUOTED, ids=str)
def test_a_quoted_entry_is_in_its_file(block: Block) -> None:
    file = ROOT / (block.lacking or "").removeprefix("an entry of ")
    assert block.text in file.read_text("utf-8")


def test_every_table_has_its_entry() -> None:
    assert len(QUOTED) == 7
