"""The images that a load sends: a person's own, or a made-up photograph."""

from collections.abc import Sequence

import numpy as np

from pdserve.errors import UsageError
from pdserve.predict import find_sources


def read_images(named: Sequence[str], limit_bytes: int) -> tuple[list[bytes], int]:
    """The images of files and folders (at any depth, in order of path), until ``limit_bytes`` are read; and
    how many there were. Raises UsageError for a folder without images, ImageError for an unreadable file.
    """
    sources = find_sources(named)
    images: list[bytes] = []
    taken = 0
    for source in sources:
        image = source.read()
        if not image:
            raise UsageError(f"The file {source.name} is empty; leave it out.")
        taken += len(image)
        if images and taken > limit_bytes:
            break
        images.append(image)
    return images, len(sources)


def made_up_photograph(width: int = 640, height: int = 480, seed: int = 7) -> bytes:
    """A JPEG file of about 60 KB, the same each time, which costs a server what a photograph does.

    A photograph's detail falls with its frequency (Field, 1987), and so does that of this picture: it is a
    sum of random grids, each twice as fine as the last and weaker.
    """
    import cv2

    chance = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128.0, np.float32)
    cells, strength = 3, 80.0
    while cells <= width:
        grid = chance.uniform(-strength, strength, (max(2, cells * height // width), cells, 3))
        # Colours vary less than brightness.
        grid = 0.4 * grid + 0.6 * grid.mean(axis=2, keepdims=True)
        picture += cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        cells, strength = 2 * cells, 0.75 * strength
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])
