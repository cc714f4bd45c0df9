"""Fonts that have the characters of some labels.

Asked in this order: the file that ``PDSERVE_FONT`` names, Pillow's own font (Latin letters, little more),
then what the system and installed Python packages hold, fonts known for Chinese first. What a font has is
read from its ``cmap`` table, since Pillow draws a box for what a font lacks and does not say so.

Format: OpenType 1.9, chapters "OpenType font file" (offset table, collections) and "cmap" (subtables 4, 12).
Subtable 13, of fonts that draw a stand-in for every character there is, is left unread on purpose.
"""

import io
import os
import site
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby, islice
from pathlib import Path
from struct import error as StructError  # noqa: N812
from struct import unpack, unpack_from
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

from pdserve.errors import SettingsError

_SUFFIXES = (".ttf", ".otf", ".ttc")
# Beginnings of the names, lower case and without punctuation, of files that have Chinese; the best first.
_CHINESE = (
    "notosanscjksc", "notosanssc", "notosanscjk", "sourcehansanssc", "sourcehansanscn", "sourcehansans",
    "pingfang", "hiraginosansgb", "msyh", "wqymicrohei", "wqyzenhei", "simhei", "deng", "stheiti",
    "droidsansfallback", "simsun", "notoserifcjk", "sourcehanserif", "arialuni",
)  # fmt: skip
_PACKAGES = ("font", "noto", "cjk")  # a package whose name has one of these may hold fonts
_MOST_FILES = 2000  # per folder; a full set of TeX fonts is larger, and has nothing that others lack
_MOST_CHARACTERS = 1 << 18  # in one font; there are some 150,000 in all of Unicode
_MOST_TABLE = 1 << 23  # bytes of a cmap; those of the largest fonts have less than a tenth

Characters = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Where to look: the file that is asked first, if any, then folders at any depth."""

    chosen: Path | None = None
    folders: tuple[Path, ...] = ()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], platform: str = sys.platform) -> "Places":
        """``PDSERVE_FONT``, the platform's font folders, PaddleX's, those of installed packages."""
        chosen = environ.get("PDSERVE_FONT")
        folders = [*_system_folders(environ, platform), *_package_folders()]
        return cls(Path(chosen).expanduser() if chosen else None, tuple(dict.fromkeys(folders)))


@dataclass(frozen=True)
class Face:
    """One font of a file; no ``path`` means Pillow's own."""

    path: Path | None
    index: int = 0

    def at(self, size: int) -> FreeTypeFont:
        """The font at a size in pixels. Raises OSError for what FreeType cannot read or scale."""
        return _opened(self, size)


@dataclass(frozen=True)
class Fonts:
    """Which face draws each character, and the characters that none does, sorted."""

    faces: Mapping[str, Face]
    missing: str

    def runs(self, text: str) -> Iterator[tuple[Face, str]]:
        """The text in pieces of one face each; a character not asked for goes with Pillow's own face."""
        face = OWN
        faced = []
        for c in text:
            face = face if c.isspace() else self.faces.get(c, OWN)
            faced.append((face, c))
        for face, run in groupby(faced, key=lambda pair: pair[0]):
            yield face, "".join(c for _, c in run)


OWN = Face(None)


def find_fonts(texts: Iterable[str], places: Places) -> Fonts:
    """Find faces for all printable characters of some texts.

    What Pillow's own font lacks comes from one other if any has it all, else from those that come first.
    What files hold is remembered: the first search may read up to a few thousand of them, later ones none.
    A broken file is passed over. Raises SettingsError if PDSERVE_FONT is not a font that can be used.
    """
    wanted = frozenset(c for text in texts for c in text if c.isprintable() and not c.isspace())
    faces: dict[str, Face] = {}
    if places.chosen is not None:
        faces |= _chosen(places.chosen, wanted)
    faces |= dict.fromkeys(_drawn(OWN, wanted.difference(faces)), OWN)
    faces |= _search(wanted.difference(faces), places.folders)
    return Fonts(faces, "".join(sorted(wanted.difference(faces))))


def _chosen(path: Path, wanted: frozenset[str]) -> dict[str, Face]:
    try:
        Face(path).at(16)
        if _held(path):
            return _best_face(path, wanted)
    except OSError:
        pass
    raise SettingsError(
        f"PDSERVE_FONT is {path}, which is no font that can be read; "
        "give the path of a .ttf, .otf or .ttc file."
    )


@lru_cache(256)
def _search(wanted: frozenset[str], folders: tuple[Path, ...]) -> dict[str, Face]:
    if not wanted:
        return {}
    paths = _files(folders)
    for path in paths:
        if any(_has(face, wanted) == wanted for face in _faces(path)):
            faces = _best_face(path, wanted)
            if len(faces) == len(wanted):
                return faces
    found: dict[str, Face] = {}
    for path in paths:
        found |= _best_face(path, wanted.difference(found))
    return found


def _best_face(path: Path, wanted: frozenset[str]) -> dict[str, Face]:
    """Of the faces of a file, the one with the most of the characters; simplified Chinese among equals."""
    faces = _faces(path)
    counts = [len(_has(face, wanted)) for face in faces]
    best = [face for face, count in zip(faces, counts, strict=True) if count and count == max(counts)]
    if not best:
        return {}
    face = next((face for face in best if _is_simplified_chinese(face)), best[0]) if best[1:] else best[0]
    return dict.fromkeys(_drawn(face, wanted), face)


def _faces(path: Path) -> list[Face]:
    return [Face(path, index) for index in range(len(_held(path)))]


def _is_simplified_chinese(face: Face) -> bool:
    try:
        return (face.at(16).getname()[0] or "").endswith(" SC")
    except OSError:
        return False


def _has(face: Face, wanted: frozenset[str]) -> frozenset[str]:
    held = _held(face.path)[face.index]
    at = np.searchsorted(held, [ord(c) for c in wanted])
    return frozenset(c for c, i in zip(wanted, at, strict=True) if i < len(held) and held[i] == ord(c))


def _drawn(face: Face, wanted: frozenset[str]) -> frozenset[str]:
    """Those it has and FreeType can draw: not all kinds of outlines and bitmaps leave a mark."""
    if not (has := _has(face, wanted)):
        return has
    try:
        font = face.at(16)
        return frozenset(c for c in has if font.getmask(c).getbbox())
    except OSError:
        return frozenset()


@lru_cache(32)  # few: an open font keeps its file open on Windows
def _opened(face: Face, size: int) -> FreeTypeFont:
    if face.path is None:
        return cast(FreeTypeFont, ImageFont.load_default(size))
    return ImageFont.truetype(str(face.path), size, face.index)


@cache
def _held(path: Path | None) -> tuple[Characters, ...]:
    """The characters of each face in a file, sorted; () for a file that is no font or broken."""
    try:
        with io.BytesIO(OWN.at(16).font_bytes) if path is None else path.open("rb") as file:
            starts: tuple[int, ...] = (0,)
            if file.read(4) == b"ttcf":
                count = min(64, unpack(">I", file.read(8)[4:])[0])
                starts = unpack(f">{count}I", file.read(4 * count))
            tables = [_cmap_table(file, start) for start in starts]
            read = {table: _characters(file, *table) for table in set(tables)}  # faces tend to share one
            return tuple(read[table] for table in tables)
    except (OSError, ValueError, IndexError, StructError):
        return ()


def _cmap_table(file: BinaryIO, start: int) -> tuple[int, int]:
    """Offset and length of a face's cmap. ``start``: where the face's list of tables is."""
    file.seek(start + 4)
    count = unpack(">H6x", file.read(8))[0]
    for tag, _, offset, length in (unpack(">4sIII", file.read(16)) for _ in range(count)):
        if tag == b"cmap":
            return offset, length
    raise ValueError("no cmap")


def _characters(file: BinaryIO, offset: int, length: int) -> Characters:
    file.seek(offset)
    table = file.read(min(length, _MOST_TABLE))
    records = [unpack_from(">HHI", table, 4 + 8 * i) for i in range(unpack_from(">H", table, 2)[0])]
    found = {}
    for platform, encoding, at in records:
        if platform == 0 or (platform == 3 and encoding in (1, 10)):  # Unicode, and Windows's Unicode
            found[unpack_from(">H", table, at)[0]] = table[at:]
    if 12 in found:
        return _format_12(found[12])
    return _format_4(found[4]) if 4 in found else np.empty(0, np.uint32)


def _format_12(table: bytes) -> Characters:
    """Groups of first and last character and the first one's glyph."""
    groups = np.frombuffer(table, ">u4", 3 * unpack_from(">I", table, 12)[0], 16).reshape(-1, 3)
    firsts, lasts, glyphs = groups.astype(np.int64).T
    return _joined(firsts + (glyphs == 0), lasts).astype(np.uint32)


def _format_4(table: bytes) -> Characters:
    """Segments of characters; a segment's offset leads to its glyphs, 0 for none, else it has them all."""
    count = unpack_from(">H", table, 6)[0] // 2
    words = np.frombuffer(table, ">u2", len(table) // 2).astype(np.int64)
    lasts, firsts = words[7 : 7 + count], words[8 + count : 8 + 2 * count]
    deltas, at = words[8 + 2 * count : 8 + 3 * count], 8 + 3 * count
    offsets = words[at : at + count]
    characters = _joined(firsts, lasts)
    segment = np.searchsorted(lasts, characters)
    glyphs = (characters + deltas[segment]) & 0xFFFF
    led = (offsets[segment] != 0) & (characters != 0xFFFF)  # the last is none; its offset may lead astray
    glyphs[led] = words[
        at + segment[led] + offsets[segment][led] // 2 + characters[led] - firsts[segment][led]
    ]
    held: Characters = characters[(glyphs != 0) & (characters != 0xFFFF)].astype(np.uint32)
    return held


def _joined(firsts: Numbers, lasts: Numbers) -> Numbers:
    """All numbers of some ranges, sorted. Raises ValueError for more than there can be characters."""
    lengths = np.maximum(lasts - firsts + 1, 0)
    ends = lengths.cumsum()
    if len(ends) and ends[-1] > _MOST_CHARACTERS:
        raise ValueError("too many characters")
    return np.unique(np.repeat(firsts - (ends - lengths), lengths) + np.arange(lengths.sum()))


@lru_cache(8)
def _files(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """Font files, those known for Chinese first, then by folder; upright and regular before others."""
    ranked = []
    for place, folder in enumerate(folders):
        for path in islice(_font_files(folder), _MOST_FILES):
            name = "".join(c for c in path.stem.lower() if c.isalnum())
            known = next((i for i, known in enumerate(_CHINESE) if name.startswith(known)), len(_CHINESE))
            ranked.append((known, place, "regular" not in name, str(path), path))
    return tuple(path for *_, path in sorted(ranked))


def _font_files(folder: Path) -> Iterator[Path]:
    for inside, _, names in os.walk(folder):
        yield from (Path(inside, name) for name in names if name.lower().endswith(_SUFFIXES))


def _system_folders(environ: Mapping[str, str], platform: str) -> list[Path]:
    """Where fontconfig, macOS and Windows keep fonts, and where PaddleX keeps those it downloads."""
    own = environ.get("USERPROFILE" if platform == "win32" else "HOME")
    home = [Path(own)] if own else []
    paddlex = [each / ".paddlex" / "fonts" for each in home]
    if platform == "win32":
        shared = [Path(environ.get("WINDIR", "C:/Windows"), "Fonts")]
        local = [Path(environ[k], "Microsoft/Windows/Fonts") for k in ("LOCALAPPDATA",) if k in environ]
        return [*shared, *local, *paddlex]
    if platform == "darwin":
        shared = [Path("/Library/Fonts"), Path("/System/Library/Fonts")]
        return [*(each / "Library" / "Fonts" for each in home), *shared, *paddlex]
    data = [Path(p) for p in environ.get("XDG_DATA_DIRS", "").split(":") if p]
    if "XDG_DATA_HOME" in environ:
        data.insert(0, Path(environ["XDG_DATA_HOME"]))
    data += [*(each / ".local" / "share" for each in home), Path("/usr/local/share"), Path("/usr/share")]
    return [*(each / ".fonts" for each in home), *(each / "fonts" for each in data), *paddlex]


def _package_folders() -> list[Path]:
    """Packages whose name speaks of fonts, and matplotlib's, in the places where packages are installed."""
    installed = [Path(each) for each in (*site.getsitepackages(), site.getusersitepackages())]
    found = [each / "matplotlib" / "mpl-data" / "fonts" for each in installed]
    for word in _PACKAGES:
        found += [path for each in installed for path in sorted(each.glob(f"*{word}*")) if path.is_dir()]
    return found
