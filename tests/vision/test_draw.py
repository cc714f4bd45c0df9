from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdserve.errors import DiskError, SettingsError
from pdserve.vision.draw import draw_labels, draw_objects, save
from pdserve.vision.fonts import Places
from pdserve.vision.postprocess import Label
from tests.vision.test_fonts import build_font

NOWHERE = Places()
LABELS = [Label(1, "daisy", 0.934), Label(7, "Egyptian cat", 0.05)]


@dataclass(frozen=True)
class Found:
    bbox: tuple[int, int, int, int]
    label: str
    score: float = 0.99


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
    assert draw_labels(plain(*size), LABELS).picture.size == size
    objects = [Found((0, 0, *size), "a cat"), Found((-9, -9, 9999, 9999), "a dog")]
    assert draw_objects(plain(*size), objects).picture.size == size


def test_a_long_label_fits_into_the_width():
    wide = np.asarray(draw_labels(plain(600, 400), [Label(0, "w" * 60, 0.5)]).picture)
    assert (wide[:, -1] == 200).all()


def test_a_label_that_no_font_has_is_written_as_its_class_id():
    labels = [Label(3, "金鱼", 0.9), Label(7, "cat", 0.05)]
    drawn = draw_labels(plain(400, 300), labels, NOWHERE)
    assert drawn.legend[:2] == ("3: 金鱼 0.900", "7: cat 0.050")
    assert drawn.legend[2].startswith("No font with the characters 金鱼 was found, so class ids")
    ids = draw_labels(plain(400, 300), [Label(3, "3", 0.9), Label(7, "7", 0.05)])
    assert ids.legend == ()
    assert drawn.picture.tobytes() == ids.picture.tobytes()


def test_a_label_in_chinese_where_a_font_has_it(chinese: Places):
    one, two = (draw_labels(plain(400, 300), [Label(3, name, 0.9)], chinese) for name in ("可乐", "口可"))
    assert one.legend == two.legend == ()
    assert one.picture.tobytes() != two.picture.tobytes()


def test_a_box_around_each_object_in_a_colour_of_its_own():
    boxes = [(20, 60, 180, 280), (220, 60, 380, 280)]
    image = plain(400, 300)
    drawn = draw_objects(image, [Found(box, "cat") for box in boxes], NOWHERE)
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


def test_label_and_score_are_above_the_box():
    box = (50, 100, 350, 280)
    pictures = [
        np.asarray(draw_objects(plain(400, 300), [Found(box, label, score)], NOWHERE).picture)
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


@pytest.fixture
def chinese(tmp_path: Path) -> Places:
    """A folder with a font in which each of a few characters has a shape of its own."""
    build_font(tmp_path / "font.ttf", "可口乐")
    return Places(None, (tmp_path,))


def test_labels_in_chinese_are_drawn_as_such(chinese: Places):
    def band(label: str) -> bytes:
        drawn = draw_objects(plain(400, 300), [Found((50, 100, 350, 280), label)], chinese)
        assert drawn.legend == ()
        return drawn.picture.tobytes()

    labels = ("可口", "口可", "乐乐", "可口 cola")
    assert len({band(label) for label in labels}) == len(labels)


def test_boxes_are_numbered_where_no_font_has_the_labels():
    boxes = [(20, 60, 180, 280), (220, 60, 380, 280)]
    objects = [Found(boxes[0], "可口可乐"), Found(boxes[1], "cat", 0.514)]
    drawn = draw_objects(plain(400, 300), objects, NOWHERE)
    assert drawn.legend[:2] == ("1: 可口可乐 0.99", "2: cat 0.51")
    assert drawn.legend[2].startswith(
        "No font with the characters 乐口可 was found, so the boxes are numbered"
    )
    assert "PDSERVE_FONT" in drawn.legend[2]
    assert "fonts-noto-cjk" in drawn.legend[2]
    assert len(drawn.legend) == 3
    others = draw_objects(plain(400, 300), [Found(boxes[0], "咖啡"), Found(boxes[1], "x")], NOWHERE)
    assert drawn.picture.tobytes() == others.picture.tobytes()  # numbers, and nothing of the labels
    swapped = draw_objects(plain(400, 300), [objects[1], objects[0]], NOWHERE)
    assert swapped.picture.tobytes() != drawn.picture.tobytes()


def test_a_label_is_one_line_without_control_characters():
    odd = draw_objects(plain(400, 300), [Found((50, 100, 350, 280), " a\ncat\x00\u200b\t!")], NOWHERE)
    even = draw_objects(plain(400, 300), [Found((50, 100, 350, 280), "a cat !")], NOWHERE)
    assert odd.legend == ()
    assert odd.picture.tobytes() == even.picture.tobytes()


def test_no_object_is_said():
    drawn = draw_objects(plain(200, 100), [])
    assert drawn.legend == ()
    assert (np.asarray(drawn.picture)[:40] != 200).any()


def test_a_font_that_is_none_is_said_to_be_none(tmp_path: Path):
    with pytest.raises(SettingsError, match="PDSERVE_FONT"):
        draw_objects(plain(40, 30), [], Places(tmp_path / "absent.ttf"))


def test_the_processs_environment_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build_font(tmp_path / "font.ttf", "可口乐")
    monkeypatch.setenv("PDSERVE_FONT", str(tmp_path / "font.ttf"))
    assert draw_objects(plain(400, 300), [Found((50, 100, 350, 280), "可口可乐")]).legend == ()


def test_saved_as_png(tmp_path: Path):
    path = save(draw_labels(plain(20, 10), LABELS).picture, tmp_path / "new" / "folder", "photos/cat.jpg")
    assert path == tmp_path / "new" / "folder" / "cat.png"
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (20, 10))


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path):
    picture = Image.new("RGB", (4, 4))
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
    assert save(Image.new("RGB", (4, 4)), tmp_path, name) == tmp_path / f"{stem}.png"


def test_a_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="--draw another folder"):
        save(Image.new("RGB", (4, 4)), tmp_path / "file", "cat.jpg")
