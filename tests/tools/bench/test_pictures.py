from pathlib import Path

import pytest

from pdserve.errors import ImageError, UsageError
from pdserve.tools.bench.targets import read_images, synthetic_photograph
from pdserve.vision.decode import decode


def test_the_synthetic_photograph() -> None:
    photograph = synthetic_photograph()
    assert photograph == synthetic_photograph()
    assert 40_000 < len(photograph) < 80_000
    pixels = decode(photograph)
    assert pixels.shape == (480, 640, 3)
    assert pixels.std() > 20


def test_images_of_files_and_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.bmp").write_bytes(b"c.bmp")
    folder, one = str(tmp_path), str(tmp_path / "b.png")
    assert read_images([folder, one], 1000) == ([b"a.jpg", b"b.png", b"c.bmp", b"b.png"], 4)
    assert read_images([folder], 12) == ([b"a.jpg", b"b.png"], 3)
    assert read_images([one], 1) == ([b"b.png"], 1)


def test_what_is_no_image_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(UsageError, match="empty"):
        read_images([str(tmp_path)], 1000)
    with pytest.raises(ImageError, match=r"gone\.png"):
        read_images([str(tmp_path / "gone.png")], 1000)
