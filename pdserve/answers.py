"""The answers of the services, typed once: JSON, OpenAPI, gRPC and the Python clients follow from these.

Plain frozen dataclasses that import nothing, so that a client loads neither NumPy nor an engine for them.
A class for one image's answer has its items (labels, objects, numbers) as its first field. Its fields, in
their order, are the keys of the JSON answer; ``metadata["description"]`` is what OpenAPI says of a field.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The class id in an answer of the old pipeline protocol, which does not carry class ids.
UNKNOWN_CLASS = -1


def _doc(description: str) -> dict[str, str]:
    return {"description": description}


_CORNERS = "x1, y1, x2, y2 in pixels and fractions of them"


@dataclass(frozen=True)
class Label:
    """A class: its number, its name, its score in [0, 1]."""

    class_id: int
    label: str
    score: float = field(metadata=_doc("between 0 and 1"))


@dataclass(frozen=True)
class FoundMatch:
    """A gallery entry near to an object: its label, its image's path in the gallery, the similarity."""

    label: str
    image: str = field(metadata=_doc("its path in the gallery"))
    score: float = field(metadata=_doc("similarity"))


@dataclass(frozen=True)
class Detection:
    """A detector's own box: corners x1, y1, x2, y2 in pixels and fractions of them, score in [0, 1]."""

    bbox: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class FoundObject:
    """A recognised object: its box in whole pixels, the gallery's label, the similarity of the best match.

    ``matches``: the nearest gallery entries, best first, where the server gives them. ``detection``: the
    detector's own box; None for the whole image, and where the server does not give it.
    """

    bbox: tuple[int, int, int, int] = field(metadata=_doc("x1, y1, x2, y2 in pixels; x2 and y2 are outside"))
    label: str
    score: float = field(metadata=_doc("similarity of the best match"))
    matches: tuple[FoundMatch, ...] = ()
    detection: Detection | None = field(
        default=None, compare=False, metadata=_doc("the detector's own box; null for the whole image")
    )


@dataclass(frozen=True)
class Labels:
    """The answer of classification for one image: its labels, best first."""

    labels: tuple[Label, ...]

    @classmethod
    def from_fields(cls, fields: Mapping[str, str], count: int) -> "list[Labels]":
        """Read the old pipeline protocol's fields ``label`` and ``prob``: the best label of each image."""
        names, scores = ast.literal_eval(fields["label"]), ast.literal_eval(fields["prob"])
        return [cls((Label(UNKNOWN_CLASS, str(n), float(s)),)) for n, s in zip(names, scores, strict=True)]


@dataclass(frozen=True)
class Objects:
    """The answer of recognition for one image: its objects, the most similar first.

    ``index_version``: the version of the index that was searched. ``timings_ms``: milliseconds by stage.
    """

    objects: tuple[FoundObject, ...]
    index_version: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def from_fields(cls, fields: Mapping[str, str], count: int) -> "list[Objects]":
        """Read the old pipeline protocol's field ``result``: a list of objects, or a list per image."""
        content = ast.literal_eval(fields["result"])
        return [
            cls(
                tuple(
                    FoundObject(_corners(x["bbox"]), str(x["rec_docs"]), float(x["rec_scores"]))
                    for x in found
                )
            )
            for found in ([content] if count == 1 else content)
        ]


@dataclass(frozen=True)
class DetectedObject:
    """A detected object: its box, its class, the detector's score in [0, 1]."""

    bbox: tuple[float, float, float, float] = field(metadata=_doc(_CORNERS))
    class_id: int
    label: str
    score: float


@dataclass(frozen=True)
class Detections:
    """The answer of detection for one image: its objects, the best first."""

    objects: tuple[DetectedObject, ...]

    @classmethod
    def from_fields(cls, fields: Mapping[str, str], count: int) -> "list[Detections]":
        """Read the pipeline protocol's field ``result``: a list per image of objects as mappings."""
        return [
            cls(tuple(DetectedObject(tuple(x["bbox"]), x["class_id"], x["label"], x["score"]) for x in found))
            for found in ast.literal_eval(fields["result"])
        ]


@dataclass(frozen=True)
class LabelledObject:
    """An object with its own labels, such as attributes: its box, the detector's score in [0, 1], the labels.

    The box of a whole image has the score 1.
    """

    bbox: tuple[float, float, float, float] = field(metadata=_doc(_CORNERS))
    score: float = field(metadata=_doc("the detector's, between 0 and 1"))
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class LabelledObjects:
    """The answer of attributes for one image: its objects, the detector's best first."""

    objects: tuple[LabelledObject, ...]

    @classmethod
    def from_fields(cls, fields: Mapping[str, str], count: int) -> "list[LabelledObjects]":
        """Read the pipeline protocol's field ``result``: a list per image of objects as mappings."""
        return [
            cls(
                tuple(
                    LabelledObject(
                        tuple(x["bbox"]),
                        x["score"],
                        tuple(
                            Label(UNKNOWN_CLASS, str(label), float(score))
                            for label, score in zip(x["labels"], x["scores"], strict=True)
                        ),
                    )
                    for x in found
                )
            )
            for found in ast.literal_eval(fields["result"])
        ]


@dataclass(frozen=True)
class Embedding:
    """The answer of embedding for one image: the model's features, of length 1 (L2).

    A vector of zeros, of a picture in which the model finds nothing, stays one.
    """

    embedding: tuple[float, ...] = field(metadata=_doc("of length 1 (L2)"))
    dimension: int = field(metadata=_doc("how many numbers an embedding has"))

    @classmethod
    def from_fields(cls, fields: Mapping[str, str], count: int) -> "list[Embedding]":
        """Read the pipeline protocol's field ``embedding``: a list of numbers per image."""
        vectors = ast.literal_eval(fields["embedding"])
        return [cls(tuple(map(float, vector)), len(vector)) for vector in vectors]


def _corners(values: Sequence[Any]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = values
    return int(x1), int(y1), int(x2), int(y2)
