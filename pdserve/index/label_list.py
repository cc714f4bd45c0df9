"""Reads label lists: which image has which label, as PaddleClas, spreadsheets and other tools write it.

A line per image, its path and its label between delimiters; more columns are not read. PaddleClas's
delimiter is a tab, or a blank, after which all is the label. A ``.csv`` file has its own (comma, semicolon),
with quotes where a spreadsheet needs them. The first line may name the columns, in any order. JSON lines
(an object in each line) and a JSON list of objects are read too. Text is UTF-8, or UTF-16 that says so.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pdserve.errors import GalleryError, UsageError
from pdserve.index.gallery import GalleryImage, unfit

MAX_BYTES = 512 << 20
_IMAGES = ("image", "path", "file_name", "filename", "file", "image_path", "img", "img_path", "image_name")
_LABELS = ("label", "labels", "class", "class_name", "category", "name", "text")
_ESCAPES = {"\\t": "\t", "\\s": " "}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_list(path: Path, root: Path, delimiter: str | None = None) -> list[GalleryImage]:
    """Read a label list.

    Paths are relative to ``root``, the gallery's folder, or absolute; one with backslashes is taken with
    slashes where there is no such file. ``delimiter`` None: a tab, in a ``.csv`` file its own; ``\\t`` may be
    typed. Raises GalleryError with the line's number, UsageError for an empty delimiter.
    """
    if delimiter == "":
        raise UsageError("The delimiter is empty; give --delimiter ',' for instance, or leave it out.")
    text = _text(path)
    rows: Iterator[tuple[int, str, Sequence[str]]]
    if delimiter is None and text.lstrip()[:1] in ("{", "["):
        rows = _objects(path, text)
    else:
        lines = re.split(r"\r\n|\n|\r", text)
        given = _ESCAPES.get(delimiter, delimiter) if delimiter else _own_delimiter(path, lines)
        rows = _lines(path, root, lines, given)
    images = []
    for number, line, (image, label) in rows:
        name, source = _file(root, image)
        problem = unfit(name) or unfit(label)
        if problem:
            raise GalleryError(f"{path}, line {number}: {line[:80]!r} {problem}; correct it.")
        images.append(GalleryImage(name, label, source))
    if not images:
        raise GalleryError(f"The label list {path} names no image.")
    return images


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise GalleryError(f"The label list {path} cannot be read: {error}.") from error
    if len(data) > MAX_BYTES:
        raise GalleryError(f"The label list {path} has more than {MAX_BYTES >> 20} MiB; split it.")
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise GalleryError(
            f"The label list {path} cannot be read: line {number} is no {encoding[:5].upper()} "
            f"(byte 0x{data[error.start]:02x}); save it as UTF-8, with `iconv -f GB18030 -t UTF-8` if it has "
            "Chinese labels."
        ) from error


def _own_delimiter(path: Path, lines: Sequence[str]) -> str:
    """A tab; in a ``.csv`` file without one, the comma or semicolon that its first line has."""
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    if path.suffix.lower() != ".csv" or "\t" in first:
        return "\t"
    bare = re.sub(r'"[^"]*"', "", first)
    return max(",;|", key=bare.count) if any(each in bare for each in ",;|") else ","


def _lines(
    path: Path, root: Path, lines: Sequence[str], delimiter: str
) -> Iterator[tuple[int, str, Sequence[str]]]:
    """(number, line, (image, label)) of each line that is one. Raises GalleryError."""
    at = (0, 1)
    columns_known = False
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.strip(" \t;,|") == "":
            continue
        fields = _fields(line, delimiter)
        if line.startswith("#") and not _exists(root / fields[0].strip()):
            continue
        if not columns_known:
            columns_known = True
            if (named := _columns(fields)) and not _exists(root / fields[0].strip()):
                at = named
                continue
        if delimiter == " ":
            fields = _at_a_blank(line.strip(), root)
        image, label = ("" if i >= len(fields) else fields[i].strip() for i in at)
        if not image or not label:
            raise GalleryError(
                f"{path}, line {number}: {line.strip()[:80]!r} is not an image, {_shown(delimiter)} and a "
                f"label; correct it, or give the separator with --delimiter{_guess(line, delimiter)}."
            )
        yield number, line, (image, label)


def _fields(line: str, delimiter: str) -> list[str]:
    """A line's columns; one in quotes may have the delimiter in it, and quotes that come twice."""
    if '"' not in line:
        return line.split(delimiter)
    ends = re.escape(delimiter)
    quoted = re.compile(rf'\s*"((?:[^"]|"")*)"\s*(?:{ends}|$)')
    fields, at = [], 0
    while at <= len(line):
        if found := quoted.match(line, at):
            fields.append(found[1].replace('""', '"'))
            at = found.end()
            if not line.endswith(delimiter, 0, at) or at == len(line):
                break
        else:
            end = line.find(delimiter, at)
            fields.append(line[at:] if end < 0 else line[at:end])
            if end < 0:
                break
            at = end + len(delimiter)
    return fields


def _at_a_blank(line: str, root: Path) -> list[str]:
    """Image and label at the first blank, or at the first before which there is a file of that name."""
    words = line.split(" ")
    for n in range(1, min(len(words), 16)):
        image = " ".join(words[:n])
        if _exists(root / image):
            return [image, " ".join(words[n:])]
    image, _, label = line.partition(" ")
    return [image, label]


def _columns(fields: Sequence[str]) -> tuple[int, int] | None:
    """Which columns have image and label, where these fields are their names."""
    names = [each.strip().lower() for each in fields]
    image = next((names.index(name) for name in _IMAGES if name in names), None)
    label = next((names.index(name) for name in _LABELS if name in names), None)
    return None if image is None or label is None else (image, label)


def _objects(path: Path, text: str) -> Iterator[tuple[int, str, Sequence[str]]]:
    """(number, line, (image, label)) of JSON lines, or of a JSON list, whose items count as lines."""
    lines = enumerate(re.split(r"\r\n|\n|\r", text), 1)
    try:
        whole = json.loads(text) if text.lstrip().startswith("[") else None
        entries: Iterator[tuple[int, object]] = (
            ((n, json.loads(line)) for n, line in lines if line.strip())
            if whole is None
            else iter(enumerate(whole, 1))
        )
        for number, entry in entries:
            fields = entry if isinstance(entry, dict) else {}
            image = next((fields[name] for name in _IMAGES if name in fields), None)
            label = next((fields[name] for name in _LABELS if name in fields), None)
            if isinstance(label, int | float) and not isinstance(label, bool):
                label = str(label)
            if (
                not isinstance(image, str)
                or not isinstance(label, str)
                or not image.strip()
                or not label.strip()
            ):
                raise GalleryError(
                    f"{path}, line {number}: {str(entry)[:80]!r} is no object with an image "
                    f"({_IMAGES[0]}, {_IMAGES[1]}, {_IMAGES[2]}, …) and a label (label, class, category, …)."
                )
            yield number, str(entry), (str(image).strip(), str(label).strip())
    except (ValueError, RecursionError) as error:
        raise GalleryError(f"The label list {path} begins as JSON and is none: {error}.") from error


def _file(root: Path, image: str) -> tuple[str, Path]:
    """The name and the file of an image that a list names."""
    if "\\" in image and not _exists(root / image):
        slashed = image.replace("\\", "/")
        return slashed, root / slashed
    return image, root / image


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _guess(line: str, delimiter: str) -> str:
    for other in ("\t", ";", ",", "|", " "):
        if other != delimiter and len(line.strip().split(other)) > 1:
            return f", here perhaps {_typed(other)}"
    return ""


def _typed(delimiter: str) -> str:
    return {"\t": "'\\t'"}.get(delimiter, repr(delimiter))


def _shown(delimiter: str) -> str:
    return {"\t": "a tab", " ": "a blank"}.get(delimiter, repr(delimiter))
