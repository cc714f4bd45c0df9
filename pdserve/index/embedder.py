"""What the index asks of an embedder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pdserve.index.errors import OtherEmbedderError
from pdserve.vision.types import Image8, Vectors

"""n×d, one L2-normalised row per image."""

LENGTH_TOLERANCE = 1e-3
"""How far from 1 the length of a normalised vector may be."""


class Embedder(Protocol):
    """Turns images into vectors. Used from one thread at a time."""

    @property
    def name(self) -> str:
        """The model's name, for people."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; the same for two embedders exactly if they give the same vectors."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    @property
    def batch_size(self) -> int:
        """How many images are best embedded at once."""

    def embed(self, images: Sequence[Image8]) -> Vectors:
        """``images``: n pictures, H×W×3 uint8 RGB. Returns n×dimension float32, rows L2-normalised."""


@dataclass(frozen=True)
class EmbedderId:
    """Which embedder made the vectors of an index."""

    name: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint[:12]})"


def identify(embedder: Embedder) -> EmbedderId:
    """Name and fingerprint."""
    return EmbedderId(embedder.name, embedder.fingerprint)


def require_same(
    built: EmbedderId | None, given: EmbedderId, dimensions: tuple[int, int], where: object
) -> None:
    """Raise OtherEmbedderError unless ``given`` can have made the vectors of the index at ``where``.

    ``built`` None: not known, as for an index of PaddleClas; then only the ``dimensions`` (of the
    index, of the embedder) can be compared.
    """
    if built and built.fingerprint != given.fingerprint:
        raise OtherEmbedderError(
            f"The index {where} was built with {built} and cannot be used with {given}; give --model "
            f"{built.name}, or build it anew with `pdserve index build`."
        )
    if dimensions[0] != dimensions[1]:
        raise OtherEmbedderError(
            f"The index {where} has vectors of {dimensions[0]} numbers and {given} makes {dimensions[1]}; "
            "give the embedder that the index was built with, or build it anew with `pdserve index build`."
        )
