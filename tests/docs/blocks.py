"""The fenced blocks of README and docs, and what is needed to run them.

A block of `sh` holds commands, one of `console` commands after ``$ `` with what they print, one of `python` a
program. An HTML comment before a block says what it needs (``<!-- needs: host -->``) or why no test runs it
(``<!-- not run: … -->``).
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAPERS = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")]
PAGES = [*PAPERS, *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = ("sh", "console", "python")
OTHER = ("json", "yaml", "text", "http")  # read by people alone

_MARK = re.compile(r"<!-- (needs|not run): (.+?) -->\n+$")
_FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_EXTRAS = {"check": "openai", "onnx": "onnxruntime", "optimize": "nncf", "plot": "matplotlib"}
_OUTSIDE = {
    "gpu": "a CUDA GPU",
    "host": "the public model host, or another host",
    "minutes": "minutes of a quiet machine",
    "paddle-serving": "a Python with Paddle Serving",
}


@dataclass(frozen=True)
class Block:
    """A fenced block. ``lacking`` is why it is not run here, None where it can be."""

    page: str
    line: int
    language: str
    text: str
    lacking: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a `console` block, and the lines that it is said to print."""

    line: str
    output: tuple[str, ...]


def read(page: Path) -> Iterator[Block]:
    """All blocks of a page, in order."""
    text = page.read_text("utf-8")
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        mark = _MARK.search(before)
        name, line = page.relative_to(ROOT).as_posix(), before.count("\n") + 1
        body = re.sub(f"^{fence[1]}", "", fence[3], flags=re.MULTILINE)
        lacking = _lacking(*mark.groups()) if mark else None
        if lacking is None and "curl " in body and not shutil.which("curl"):
            lacking = "needs curl"
        yield Block(name, line, fence[2], body, lacking)


def _lacking(kind: str, what: str) -> str | None:
    if kind == "not run":
        return what
    if what in _EXTRAS:
        return None if find_spec(_EXTRAS[what]) else f'needs {_EXTRAS[what]}: pip install "pdserve[{what}]"'
    return f"needs {_OUTSIDE[what]}"


def commands(block: Block) -> list[Command]:
    """The commands of a `console` block."""
    found: list[Command] = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.rstrip("\n").split("\n")
        length = next(i for i, line in enumerate(lines, 1) if not line.endswith("\\"))
        found.append(Command("\n".join(lines[:length]), tuple(lines[length:])))
    return found
