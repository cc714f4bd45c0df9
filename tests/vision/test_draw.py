from dataclasses import dataclass
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from PIL import Image

from pdserve.answers import Label
from pdserve.errors import DiskError, SettingsError
from pdserve.vision.draw import draw_labels, draw_objects, load_font, save

NO_FONT: dict[str, str] = {}  # an environment without PDSERVE_FONT
LABELS = [Label(1, "daisy", 0.934), Label(7, "Egyptian cat", 0.05)]


@dataclass(frozen=True)
class Found:
    bbox: tuple[float, float, float, float]
    label: str
    score: float = 0.99


EM = 1000


def _glyph(width: int, height: int) -> bytes:
    """A filled rectangle on the base line, in 1000ths of the size; nothing if it has no width."""
    if not width:
        return b""
    steps = (0, 0, width, 0, 0, height, -width, 0)  # of x and y in turn, from corner to corner
    body = pack(">hhhhh HH 4B", 1, 0, 0, width, height, 3, 0, 1, 1, 1, 1)
    body += pack(">4h4h", *steps[0::2], *steps[1::2])
    return body + b"\0" * (-len(body) % 4)


def build_font(path: Path, characters: str, blank: str = "") -> Path:
    """Write a TrueType font in which each character is another rectangle; ``blank`` ones leave no mark."""
    shapes = [(0 if c in blank else 200 + 60 * i % 700, 900 - 50 * i % 700) for i, c in enumerate(characters)]
    glyphs = [_glyph(500, 500), *(_glyph(*shape) for shape in shapes)]
    ends = [sum(map(len, glyphs[:i])) for i in range(len(glyphs) + 1)]
    codes = sorted((ord(c), glyph) for glyph, c in enumerate(characters, 1))
    groups = b"".join(pack(">III", code, code, glyph) for code, glyph in codes)
    cmap = pack(">HHHHI", 0, 1, 3, 10, 12) + pack(">HHIII", 12, 0, 16 + len(groups), 0, len(codes)) + groups
    tables = {
        b"cmap": cmap,
        b"glyf": b"".join(glyphs),
        b"head": pack(
            ">IIIIHHQQhhhhHHhhh", 1 << 16, 0, 0, 0x5F0F3CF5, 0, EM, 0, 0, 0, 0, EM, EM, 0, 8, 2, 1, 0
        ),
        b"hhea": pack(">I3hH11hH", 1 << 16, 800, -200, 0, EM, *[0] * 11, len(glyphs)),
        b"hmtx": b"".join(pack(">Hh", EM, 0) for _ in glyphs),
        b"loca": pack(f">{len(ends)}I", *ends),
        b"maxp": pack(">I14H", 1 << 16, len(glyphs), 4, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0),
    }
    at = 12 + 16 * len(tables)
    records, body = b"", b""
    for tag, data in tables.items():
        records += pack(">4sIII", tag, 0, at + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    path.write_bytes(pack(">IHHHH", 1 << 16, len(tables), 128, 3, 0) + records + body)
    return path


def plain(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 200, np.uint8)


def test_labels_are_written_at_the_top_left():
    image = plain(400, 300)
    drawn = np.asarray(draw_labels(image, LABELS).picture)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 200).all()
    assert (drawn[250:] == 200).all()
    band = drawn[:30]
    assert band.max() > 240  # the letters
    assert (band < 100).any()  # on dark


def test_each_label_is_a_line():
    one, two = (np.asarray(draw_labels(plain(400, 300), LABELS[:n]).picture) for n in (1, 2))
    heights = [int((drawn[:, 0] < 200).any(axis=1).sum()) for drawn in (one, two)]
    assert 1.5 * heights[0] < heights[1] < 2.5 * heights[0]


def test_no_label_is_said():
    assert (np.asarray(draw_labels(plain(200, 100), []).picture) != 200).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (2000, 60)])
def test_any_size(size):
    assert draw_labels(plain(*size), LABELS).picture.shape == (*size[::-1], 3)
    objects = [Found((0, 0, *size), "a cat"), Found((-9, -9, 9999, 9999), "a dog")]
    assert draw_objects(plain(*size), objects).picture.shape == (*size[::-1], 3)


def test_a_long_label_fits_into_the_width():
    wide = np.asarray(draw_labels(plain(600, 400), [Label(0, "w" * 60, 0.5)]).picture)
    assert (wide[:, -1] == 200).all()


def test_a_label_that_no_font_has_is_written_as_its_class_id():
    labels = [Label(3, "แมว", 0.9), Label(7, "cat", 0.05)]
    drawn = draw_labels(plain(400, 300), labels, NO_FONT)
    assert drawn.legend[:2] == ("3: แมว 0.900", "7: cat 0.050")
    assert drawn.legend[2].startswith("No font with the characters มวแ was found, so class ids")
    ids = draw_labels(plain(400, 300), [Label(3, "3", 0.9), Label(7, "7", 0.05)])
    assert ids.legend == ()
    assert drawn.picture.tobytes() == ids.picture.tobytes()


def test_a_label_in_chinese_is_drawn_as_such():
    one, two = (draw_labels(plain(400, 300), [Label(3, name, 0.9)], NO_FONT) for name in ("可乐", "口可"))
    assert one.legend == two.legend == ()
    assert one.picture.tobytes() != two.picture.tobytes()


def test_a_box_around_each_object_in_a_colour_of_its_own():
    boxes = [(20, 60, 180, 280), (220, 60, 380, 280)]
    image = plain(400, 300)
    drawn = draw_objects(image, [Found(box, "cat") for box in boxes], NO_FONT)
    assert drawn.legend == ()
    assert (image == 200).all()
    pixels = np.asarray(drawn.picture)
    colours = []
    for x1, y1, x2, y2 in boxes:
        colours.append(tuple(pixels[200, x1]))
        edges = (pixels[y1, x1:x2], pixels[y2 - 1, x1:x2], pixels[y1:y2, x1], pixels[y1:y2, x2 - 1])
        assert all((edge == colours[-1]).all() for edge in edges)
        outside = (pixels[200, x1 - 1], pixels[200, x2], pixels[y2, x1], pixels[y1 - 1, x2 - 1])
        assert all((pixel == 200).all() for pixel in outside)
        assert (pixels[y1 + 5 : y2 - 5, x1 + 5 : x2 - 5] == 200).all()
    assert len(set(colours)) == 2


def test_eight_objects_have_eight_colours():
    boxes = [(50 * i, 50, 50 * i + 40, 90) for i in range(8)]
    pixels = np.asarray(draw_objects(plain(400, 100), [Found(b, "") for b in boxes]).picture).astype(int)
    colours = [pixels[80, x1] for x1, *_ in boxes]
    for i, one in enumerate(colours):
        assert all(abs(one - other).sum() > 60 for other in colours[:i])


def test_fractions_of_pixels_are_cut_off():
    whole, parts = Found((50, 100, 350, 280), "cat"), Found((50.9, 100.1, 350.5, 280.0), "cat")
    drawn = [draw_objects(plain(400, 300), [each], NO_FONT).picture for each in (whole, parts)]
    assert (drawn[0] == drawn[1]).all()


def test_label_and_score_are_above_the_box():
    box = (50, 100, 350, 280)
    pictures = [
        np.asarray(draw_objects(plain(400, 300), [Found(box, label, score)], NO_FONT).picture)
        for label, score in [("cat", 0.91), ("dog", 0.91), ("cat", 0.5), ("cat", 0.91)]
    ]
    for picture in pictures:
        changed = (picture[:100] != 200).any(axis=2)
        assert changed.any(axis=1).argmax() > 70  # a line's height above the box
        assert changed.any(axis=0).argmax() == 50
        assert (picture[99, 50] == picture[200, 50]).all()  # the band has the box's colour
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[0] != pictures[2]).any()
    assert (pictures[0] == pictures[3]).all()


@pytest.mark.parametrize(
    "box", [(0, 0, 100, 80), (330, 0, 400, 50), (390, 290, 400, 300), (-40, -9, 500, 500)]
)
def test_the_label_of_a_box_at_the_border_is_inside_the_image(box: tuple[int, int, int, int]):
    """As many of its letters' pixels are seen as in the middle of the image."""

    def letters(at: tuple[int, int, int, int]) -> int:
        return int(
            (np.asarray(draw_objects(plain(400, 300), [Found(at, "Ag")]).picture) < 60).all(axis=2).sum()
        )

    assert letters(box) == letters((100, 100, 200, 200)) > 20


def test_labels_of_boxes_at_one_corner_do_not_cover_one_another():
    objects = [Found((100, 100, 200, 250), "cat")] * 3
    pixels = np.asarray(draw_objects(plain(400, 300), objects).picture)
    left_of_the_letters = pixels[:240, 102]
    colours, heights = np.unique(left_of_the_letters, axis=0, return_counts=True)
    assert len(colours) == 4  # with the image's own
    assert len(set(heights)) == 2
    assert min(heights) > 10


def test_labels_of_many_scripts_are_drawn_as_such():
    """With no font installed."""

    def band(label: str) -> bytes:
        drawn = draw_objects(plain(400, 300), [Found((50, 100, 350, 280), label)], NO_FONT)
        assert drawn.legend == ()
        return drawn.picture.tobytes()

    labels = ("可口", "口可", "乐乐", "可口 cola", "ネコ", "고양이", "кошка", "γάτα", "e\u0301", "e", "?")
    assert len({band(label) for label in labels}) == len(labels)


def test_boxes_are_numbered_where_no_font_has_the_labels():
    boxes = [(20, 60, 180, 280), (220, 60, 380, 280)]
    objects = [Found(boxes[0], "แมวมา"), Found(boxes[1], "cat", 0.514)]
    drawn = draw_objects(plain(400, 300), objects, NO_FONT)
    assert drawn.legend[:2] == ("1: แมวมา 0.99", "2: cat 0.51")
    assert drawn.legend[2].startswith("No font with the characters มวาแ was found, so the boxes are numbered")
    assert "PDSERVE_FONT" in drawn.legend[2]
    assert "Noto font" in drawn.legend[2]
    assert len(drawn.legend) == 3
    others = draw_objects(plain(400, 300), [Found(boxes[0], "หมา"), Found(boxes[1], "x")], NO_FONT)
    assert drawn.picture.tobytes() == others.picture.tobytes()  # numbers, and nothing of the labels
    swapped = draw_objects(plain(400, 300), [objects[1], objects[0]], NO_FONT)
    assert swapped.picture.tobytes() != drawn.picture.tobytes()


def test_a_label_is_one_line_without_control_characters():
    odd = draw_objects(plain(400, 300), [Found((50, 100, 350, 280), " a\ncat\x00\u200b\t!")], NO_FONT)
    even = draw_objects(plain(400, 300), [Found((50, 100, 350, 280), "a cat !")], NO_FONT)
    assert odd.legend == ()
    assert odd.picture.tobytes() == even.picture.tobytes()


def test_no_object_is_said():
    drawn = draw_objects(plain(200, 100), [])
    assert drawn.legend == ()
    assert (np.asarray(drawn.picture)[:40] != 200).any()


def test_a_font_file_for_what_the_built_in_font_lacks(tmp_path: Path):
    named = {"PDSERVE_FONT": str(build_font(tmp_path / "font.ttf", "แมว"))}

    def band(label: str) -> bytes:
        drawn = draw_objects(plain(400, 300), [Found((50, 100, 350, 280), label)], named)
        assert drawn.legend == ()
        return drawn.picture.tobytes()

    labels = ("แมว", "มวแ", "แแ", "แมว cat", "可口")
    assert len({band(label) for label in labels}) == len(labels)


def test_the_font_file_is_preferred_to_the_built_in_font(tmp_path: Path):
    named = {"PDSERVE_FONT": str(build_font(tmp_path / "font.ttf", "a"))}
    drawn = [draw_labels(plain(400, 300), [Label(0, "a", 0.5)], environ) for environ in (named, NO_FONT)]
    assert drawn[0].picture.tobytes() != drawn[1].picture.tobytes()


def test_a_character_that_leaves_no_mark_is_missing(tmp_path: Path):
    named = {"PDSERVE_FONT": str(build_font(tmp_path / "font.ttf", "แม", blank="ม"))}
    drawn = draw_labels(plain(400, 300), [Label(3, "แม", 0.9)], named)
    assert drawn.legend[1].startswith("No font with the characters ม was found")


@pytest.mark.parametrize("name", ["absent.ttf", "letter.ttf", "cut.ttf", "folder.ttf"])
def test_a_font_file_that_is_no_font(tmp_path: Path, name: str):
    (tmp_path / "letter.ttf").write_text("Dear Sir")
    font = build_font(tmp_path / "font.ttf", "แมว").read_bytes()
    (tmp_path / "cut.ttf").write_bytes(font[: len(font) // 2])
    (tmp_path / "folder.ttf").mkdir()
    named = {"PDSERVE_FONT": str(tmp_path / name)}
    for use in (load_font, lambda environ: draw_objects(plain(40, 30), [], environ)):
        with pytest.raises(SettingsError, match=r"PDSERVE_FONT is .*give the path"):
            use(named)


def test_the_environment_variable_may_be_empty():
    load_font({"PDSERVE_FONT": ""})


def test_the_processs_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build_font(tmp_path / "font.ttf", "แมว")
    monkeypatch.setenv("PDSERVE_FONT", str(tmp_path / "font.ttf"))
    assert draw_objects(plain(400, 300), [Found((50, 100, 350, 280), "แมว")]).legend == ()


def test_saved_as_png(tmp_path: Path):
    path = save(draw_labels(plain(20, 10), LABELS).picture, tmp_path / "new" / "folder", "photos/cat.jpg")
    assert path == tmp_path / "new" / "folder" / "cat.png"
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (20, 10))


def test_the_file_has_the_pictures_colours(tmp_path: Path):
    picture = np.zeros((3, 4, 3), np.uint8)
    picture[0, 0] = (250, 100, 50)
    with Image.open(save(picture, tmp_path, "cat.jpg")) as image:
        assert image.getpixel((0, 0)) == (250, 100, 50)


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path):
    picture = plain(4, 4)
    names = [save(picture, tmp_path, name).name for name in ("a/cat.jpg", "b/cat.jpg", "cat.png")]
    assert names == ["cat.png", "cat-2.png", "cat-3.png"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("-", "image"),
        ("http://host/cat.jpg?size=3", "cat"),
        ("http://host/", "host"),
        ("..", "image"),
        ("a:b*c?.png", "a_b_c_"),
        ("猫.jpg", "猫"),
        ("x" * 300, "x" * 60),
    ],
)
def test_names_that_a_file_can_have(tmp_path: Path, name: str, stem: str):
    assert save(plain(4, 4), tmp_path, name) == tmp_path / f"{stem}.png"


def test_a_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="--draw another folder"):
        save(plain(4, 4), tmp_path / "file", "cat.jpg")
