"""README and docs: every relative link and every anchor leads somewhere; other hosts are not asked."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

_FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
_LINK = re.compile(
    r"""\[[^\]]*\]\( *<?([^)<>\s]+)>?(?:\s+["'][^)]*["'])? *\)"""  # [text](target "title"), ![text](target)
    r"""|^ *\[[^\]]+\]: *<?(\S+?)>?\s*$"""  # [name]: target
    r"""|<(?:a|img|source)\b[^>]*?(?:href|src|srcset)=["']([^"']+)["']""",
    re.MULTILINE,
)
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?(?: *\{[^}]*#([\w.-]+)[^}]*\})? *$", re.MULTILINE)
_IDENTIFIER = re.compile(r"""<\w+[^>]*\b(?:id|name)=["']([^"']+)["']""")


def links(document: Path) -> Iterator[str]:
    """Its targets that lie in this repository."""
    text = _CODE.sub("", _FENCE.sub("", document.read_text("utf-8")))
    for match in _LINK.finditer(text):
        target = next(group for group in match.groups() if group)
        if not re.match(r"[a-z][a-z+.-]*:", target, re.IGNORECASE):
            yield target


def anchors(document: Path) -> set[str]:
    """Its anchors, as forges and as static site generators name them."""
    text = _FENCE.sub("", document.read_text("utf-8"))
    found = set(_IDENTIFIER.findall(text))
    counts: dict[str, int] = {}
    for heading, identifier in _HEADING.findall(text):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        plain = re.sub(r"[^\w\- ]", "", words).strip()
        forge = plain.replace(" ", "-")
        seen = counts[forge] = counts.get(forge, -1) + 1
        found |= (
            {identifier, f"{forge}-{seen}"} if seen else {identifier, forge, re.sub(r"[-\s]+", "-", plain)}
        )
    return found - {""}


def fault(document: Path, target: str) -> str | None:
    """What is wrong with a link."""
    name, _, anchor = unquote(target).partition("#")
    path = (document.parent / name) if name else document
    if not path.resolve().is_relative_to(ROOT) or not path.exists():
        return "there is no such file"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return "there is no such heading"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    faults = {target: found for target in links(document) if (found := fault(document, target))}

    assert not faults


def test_what_is_taken_for_a_link_and_an_anchor(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(
        "# One & `two`\n\n## Again\n## Again\n### By hand {#hand}\n"
        '[a](b.md "title") ![i](c.png) `[no](no.md)` [x][ref] <a href="d.md#e">d</a> [w](https://w.example)\n'
        "```\n[no](no.md)\n# no\n```\n[ref]: f.md\n",
        "utf-8",
    )

    assert sorted(links(document)) == ["b.md", "c.png", "d.md#e", "f.md"]
    assert anchors(document) == {"one--two", "one-two", "again", "again-1", "by-hand", "hand"}
