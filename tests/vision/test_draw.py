from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdserve.errors import DiskError
from pdserve.vision.draw import draw_labels, save
from pdserve.vision.scores import Label

LABELS = [Label(1, "daisy", 0.934), Label(7, "Egyptian cat", 0.05)]


def plain(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 200, np.uint8)


def test_labels_are_written_at_the_top_left():
    image = plain(400, 300)
    drawn = np.asarray(draw_labels(image, LABELS))
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 200).all()
    assert (drawn[250:] == 200).all()
    band = drawn[:30]
    assert band.max() > 240  # the letters
    assert (band < 100).any()  # on dark


def test_each_label_is_a_line():
    one, two = (np.asarray(draw_labels(plain(400, 300), LABELS[:n])) for n in (1, 2))
    heights = [int((drawn[:, 0] < 200).any(axis=1).sum()) for drawn in (one, two)]
    assert 1.5 * heights[0] < heights[1] < 2.5 * heights[0]


def test_no_label_is_said():
    assert (np.asarray(draw_labels(plain(200, 100), [])) != 200).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (2000, 60)])
def test_any_size(size):
    assert draw_labels(plain(*size), LABELS).size == size


def test_a_long_label_fits_into_the_width():
    wide = np.asarray(draw_labels(plain(600, 400), [Label(0, "w" * 60, 0.5)]))
    assert (wide[:, -1] == 200).all()


def test_saved_as_png(tmp_path: Path):
    path = save(draw_labels(plain(20, 10), LABELS), tmp_path / "new" / "folder", "photos/cat.jpg")
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
