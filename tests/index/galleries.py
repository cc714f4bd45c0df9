"""Galleries that are drawn, and an embedder that needs no model: for tests of the index."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pdserve.index.gallery import GalleryImage
from pdserve.vision.types import Image8, Vectors

LABELS = ("tea", "cola", "黑咖啡", "orange juice")


class GridEmbedder:
    """The colours of a grid of 4×4 cells, turned at random into ``dimension`` numbers. Deterministic."""

    path = None

    def __init__(self, dimension: int = 16, name: str = "grid", batch_size: int = 4) -> None:
        self.name = name
        self.dimension = dimension
        self.batch_size = batch_size
        self.fingerprint = hashlib.sha256(f"{name} {dimension}".encode()).hexdigest()
        self.batches: list[int] = []
        self._turn = np.random.default_rng(7).standard_normal((48, dimension))

    def embed(self, images: Sequence[Image8]) -> Vectors:
        self.batches.append(len(images))
        cells = [np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.BOX)) for image in images]
        vectors = (np.stack(cells).reshape(len(images), 48) / 255 - 0.5) @ self._turn
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def draw(label: int, number: int) -> bytes:
    """A PNG: stripes and a colour by the label, a little noise by the number."""
    random = np.random.default_rng((label, 1))
    cells = random.integers(0, 256, (4, 4, 3))
    noise = np.random.default_rng((label, number, 2)).integers(-25, 26, (4, 4, 3))
    out = io.BytesIO()
    pixels = np.clip(cells + noise, 0, 255).astype(np.uint8).repeat(6, 0).repeat(6, 1)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_gallery(root: Path, labels: Sequence[str] = LABELS, each: int = 5) -> list[GalleryImage]:
    """Write ``label/number.png`` for each label, and ``labels.txt`` in PaddleClas's form."""
    images = []
    for i, label in enumerate(labels):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            path = root / label / f"{number}.png"
            path.write_bytes(draw(i, number))
            images.append(GalleryImage(f"{label}/{number}.png", label, path))
    text = "".join(f"{image.image}\t{image.label}\n" for image in images)
    (root / "labels.txt").write_text(text, "utf-8")
    return images


def clustered(count: int, dimension: int, seed: int = 0) -> Vectors:
    """``count`` unit vectors around ``count / 10`` centres."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // 10), dimension), dtype=np.float32)
    vectors = centres[random.integers(0, len(centres), count)]
    vectors += 0.4 * random.standard_normal(vectors.shape, dtype=np.float32)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
