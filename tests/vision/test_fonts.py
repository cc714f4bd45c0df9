"""Finding fonts, on small ones that the tests build: each character is a rectangle of its own shape."""

import sys
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from struct import pack

import pytest
from PIL import ImageFont

from pdserve.errors import SettingsError
from pdserve.vision.fonts import OWN, Face, Places, find_fonts

EM = 1000


def _glyph(width: int, height: int) -> bytes:
    """A filled rectangle on the base line, in 1000ths of the size; nothing if it has no width."""
    if not width:
        return b""
    steps = (0, 0, width, 0, 0, height, -width, 0)  # of x and y in turn, from corner to corner
    body = pack(">hhhhh HH 4B", 1, 0, 0, width, height, 3, 0, 1, 1, 1, 1)
    body += pack(">4h4h", *steps[0::2], *steps[1::2])
    return body + b"\0" * (-len(body) % 4)


def _cmap(characters: Sequence[str], wide: bool, led: bool) -> bytes:
    """Characters to the glyphs 1, 2, …: subtable 12 (``wide``), or 4, by deltas or (``led``) by offsets."""
    codes = sorted((ord(c), glyph) for glyph, c in enumerate(characters, 1))
    if wide:
        groups = b"".join(pack(">III", code, code, glyph) for code, glyph in codes)
        table = pack(">HHIII", 12, 0, 16 + len(groups), 0, len(codes)) + groups
        return pack(">HHHHI", 0, 1, 3, 10, 12) + table
    segments = [*((code, code, glyph) for code, glyph in codes), (0xFFFF, 0xFFFF, 0)]
    n = len(segments)
    deltas = [0 if led and glyph else (glyph - code) & 0xFFFF for code, _, glyph in segments[:-1]] + [1]
    offsets = [2 * n if led else 0] * (n - 1) + [0]
    words = [last for _, last, _ in segments] + [0] + [first for first, _, _ in segments] + deltas + offsets
    words += [glyph for *_, glyph in segments]
    table = pack(">7H", 4, 14 + 2 * len(words), 0, 2 * n, 0, 0, 0) + pack(f">{len(words)}H", *words)
    return pack(">HHHHI", 0, 1, 3, 1, 12) + table


def _face(characters: Mapping[str, tuple[int, int]], start: int, wide: bool, led: bool) -> bytes:
    glyphs = [_glyph(500, 500), *(_glyph(*shape) for shape in characters.values())]
    ends = [sum(map(len, glyphs[:i])) for i in range(len(glyphs) + 1)]
    tables = {
        b"cmap": _cmap(list(characters), wide, led),
        b"glyf": b"".join(glyphs),
        b"head": pack(
            ">IIIIHHQQhhhhHHhhh", 1 << 16, 0, 0, 0x5F0F3CF5, 0, EM, 0, 0, 0, 0, EM, EM, 0, 8, 2, 1, 0
        ),
        b"hhea": pack(">I3hH11hH", 1 << 16, 800, -200, 0, EM, *[0] * 11, len(glyphs)),
        b"hmtx": b"".join(pack(">Hh", EM, 0) for _ in glyphs),
        b"loca": pack(f">{len(ends)}I", *ends),
        b"maxp": pack(">I14H", 1 << 16, len(glyphs), 4, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0),
    }
    at = start + 12 + 16 * len(tables)
    records, body = b"", b""
    for tag, data in tables.items():
        records += pack(">4sIII", tag, 0, at + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    return pack(">IHHHH", 1 << 16, len(tables), 128, 3, 0) + records + body


def build_font(path: Path, *faces: str, wide: bool = False, led: bool = False, blank: str = "") -> Path:
    """Write a font of such characters, a collection if of several faces. ``blank`` ones leave no mark."""
    data: list[bytes] = []
    at = 12 + 4 * len(faces) if faces[1:] else 0
    starts = []
    for characters in faces:
        shapes = {
            c: (0 if c in blank else 200 + 60 * i % 700, 900 - 50 * i % 700)
            for i, c in zip(count(), characters)
        }
        starts.append(at + sum(map(len, data)))
        data.append(_face(shapes, starts[-1], wide, led))
    header = b"ttcf" + pack(f">II{len(faces)}I", 1 << 16, len(faces), *starts) if faces[1:] else b""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + b"".join(data))
    return path


def test_latin_letters_are_in_pillows_own_font():
    fonts = find_fonts(["Egyptian cat 0.99", "90°"], Places())
    assert fonts.missing == ""
    assert set(fonts.faces.values()) == {OWN}


def test_what_nothing_has_is_missing():
    fonts = find_fonts(["可口可乐 0.99", "é"], Places())
    assert fonts.missing == "é乐口可"
    assert fonts.faces["9"] == OWN


@pytest.mark.parametrize(("wide", "led"), [(False, False), (False, True), (True, False)])
def test_characters_of_a_font(tmp_path: Path, wide: bool, led: bool):
    path = build_font(tmp_path / "deep" / "er" / "font.TTF", "可口乐", wide=wide, led=led)
    fonts = find_fonts(["可口可乐 cola", "汽"], Places(None, (tmp_path,)))
    assert fonts.missing == "汽"
    assert {c: fonts.faces[c] for c in "可口乐c"} == {**dict.fromkeys("可口乐", Face(path)), "c": OWN}


def test_characters_beyond_the_first_65536(tmp_path: Path):
    path = build_font(tmp_path / "font.ttf", "𠮷", wide=True)
    assert find_fonts(["𠮷"], Places(None, (tmp_path,))).faces == {"𠮷": Face(path)}


def test_the_face_of_a_collection_that_has_them(tmp_path: Path):
    path = build_font(tmp_path / "font.ttc", "可", "可口乐", "口")
    fonts = find_fonts(["可口可乐"], Places(None, (tmp_path,)))
    assert set(fonts.faces.values()) == {Face(path, 1)}
    assert Face(path, 1).at(20).getmask("乐").getbbox()


def test_one_font_for_all_before_several(tmp_path: Path):
    build_font(tmp_path / "a.ttf", "可口")
    whole = build_font(tmp_path / "b.ttf", "可口乐")
    assert set(find_fonts(["可口可乐"], Places(None, (tmp_path,))).faces.values()) == {Face(whole)}


def test_several_where_none_has_all(tmp_path: Path):
    a, b = build_font(tmp_path / "a.ttf", "可口"), build_font(tmp_path / "b.ttf", "口乐")
    fonts = find_fonts(["可口乐"], Places(None, (tmp_path,)))
    assert fonts.missing == ""
    assert fonts.faces == {"可": Face(a), "口": Face(a), "乐": Face(b)}


def test_fonts_known_for_chinese_come_first_then_folders_in_order(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    plain = build_font(first / "other.ttf", "可")
    places = Places(None, (first, second))
    assert find_fonts(["可"], places).faces["可"] == Face(plain)
    build_font(second / "z" / "NotoSansCJK-Bold.ttf", "可乐")
    known = build_font(second / "z" / "NotoSansCJK-Regular.ttf", "可乐")
    build_font(second / "a" / "simsun.ttf", "可乐")
    folders = Places(None, (first, second, tmp_path / "none"))  # what an earlier search saw is remembered
    assert find_fonts(["可"], folders).faces["可"] == Face(known)


def test_the_font_of_the_environment_comes_first_of_all(tmp_path: Path):
    path = build_font(tmp_path / "mine" / "font.ttf", "可a")
    build_font(tmp_path / "fonts" / "NotoSansSC.ttf", "可口")
    places = Places(path, (tmp_path / "fonts",))
    fonts = find_fonts(["可口ab"], places)
    assert fonts.faces["可"] == fonts.faces["a"] == Face(path)
    assert fonts.faces["b"] == OWN
    assert fonts.faces["口"].path == tmp_path / "fonts" / "NotoSansSC.ttf"


def test_a_font_of_the_environment_that_is_none(tmp_path: Path):
    (tmp_path / "letter.ttf").write_text("Dear Sir")
    for path in (tmp_path / "letter.ttf", tmp_path / "absent.ttf", tmp_path):
        with pytest.raises(SettingsError, match=r"PDSERVE_FONT is .*give the path"):
            find_fonts(["a"], Places(path))


def test_broken_files_are_passed_over(tmp_path: Path):
    """Every cut, and every byte of the tables' list and the cmap turned, is a font, or no font."""
    good = build_font(tmp_path / "good" / "z.ttf", "可口乐", led=True).read_bytes()
    for cut in (0, 3, 4, 11, 40, 130, 150, 200, len(good) // 2):
        (tmp_path / "good" / f"cut{cut}.ttf").write_bytes(good[:cut])
    for at in range(0, 260, 3):
        bad = bytearray(good)
        bad[at] ^= 0xFF
        (tmp_path / "good" / f"bad{at:03}.ttf").write_bytes(bad)
    (tmp_path / "good" / "folder.ttf").mkdir()
    fonts = find_fonts(["可口乐"], Places(None, (tmp_path / "good",)))
    assert fonts.missing == ""
    for face in fonts.faces.values():
        assert face.at(30).getmask("口").getbbox()


def test_a_table_that_claims_more_characters_than_there_are(tmp_path: Path):
    good = build_font(tmp_path / "font.ttf", "可口", wide=True).read_bytes()
    group = pack(">III", ord("口"), ord("口"), 2)
    assert group in good
    (tmp_path / "font.ttf").write_bytes(good.replace(group, pack(">III", ord("口"), 0xFFFFFFFF, 2)))
    assert find_fonts(["可"], Places(None, (tmp_path,))).missing == "可"


def test_a_character_that_leaves_no_mark_is_missing(tmp_path: Path):
    build_font(tmp_path / "font.ttf", "可口", blank="口")
    assert find_fonts(["可口"], Places(None, (tmp_path,))).missing == "口"


def test_runs_are_of_one_face_each(tmp_path: Path):
    face = Face(build_font(tmp_path / "font.ttf", "可口乐"))
    fonts = find_fonts(["可口 可乐 cola 乐"], Places(None, (tmp_path,)))
    assert list(fonts.runs("可口 可乐 cola 乐")) == [(face, "可口 可乐 "), (OWN, "cola "), (face, "乐")]
    assert list(fonts.runs("")) == []


def test_folders_of_the_platforms(tmp_path: Path):
    def folders(platform: str, **environ: str) -> list[str]:
        return [path.as_posix() for path in Places.from_environ(environ, platform).folders]

    linux = folders("linux", HOME="/home/me", XDG_DATA_HOME="/data", XDG_DATA_DIRS="/opt/share:/usr/share")
    assert linux[:6] == [
        "/home/me/.fonts", "/data/fonts", "/opt/share/fonts", "/usr/share/fonts",
        "/home/me/.local/share/fonts", "/usr/local/share/fonts",
    ]  # fmt: skip
    assert folders("linux")[:2] == ["/usr/local/share/fonts", "/usr/share/fonts"]
    mac = folders("darwin", HOME="/Users/me")
    assert mac[:3] == ["/Users/me/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"]
    windows = folders("win32", WINDIR="D:/Win", LOCALAPPDATA="C:/me/Local", USERPROFILE="C:/me")
    assert windows[:3] == ["D:/Win/Fonts", "C:/me/Local/Microsoft/Windows/Fonts", "C:/me/.paddlex/fonts"]


def test_the_environment_names_a_font():
    assert Places.from_environ({"PDSERVE_FONT": "/x/y.ttf"}).chosen == Path("/x/y.ttf")
    assert Places.from_environ({"PDSERVE_FONT": ""}).chosen is None


def test_installed_packages_that_have_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("mplfonts", "noto_cjk_sans_sc_regular", "numpy"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
    folders = Places.from_environ({}).folders
    assert {tmp_path / "mplfonts", tmp_path / "noto_cjk_sans_sc_regular"} <= set(folders)
    assert tmp_path / "numpy" not in folders


def test_pillow_and_the_cmap_say_the_same_of_a_system_font():
    """A font of real tables: what is said to be drawn differs from the box for what a font lacks."""
    sample = "Ωжабקहगあア漢汉한Æß½→■"
    fonts = find_fonts(sample, Places.from_environ({"HOME": str(Path.home())}))
    faces = set(fonts.faces.values()) - {OWN}
    if not faces:
        pytest.skip(f"this machine ({sys.platform}) has no font beyond Pillow's own")
    for face in faces:
        assert face.path is not None
        font = ImageFont.truetype(str(face.path), 24, face.index)
        box = bytes(font.getmask("\uffff"))
        for c, drawn_by in fonts.faces.items():
            assert drawn_by != face or bytes(font.getmask(c)) != box
