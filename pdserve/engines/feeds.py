"""Do the arrays of a run fit the model's feeds? Asked here, once for all engines.

Engines themselves answer late, each in its own words, or not at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdserve.errors import FeedError, ModelError
from pdserve.formats.program import Signature, TensorSpec
from pdserve.formats.prototxt import Variable
from pdserve.formats.serving_model import ServingModel
from pdserve.vision.types import Array


def as_batch(tensors: Sequence[Array]) -> Array:
    """Tensors of one shape -> one with the batch in front: of one alone a view, since a copy takes time."""
    return tensors[0][np.newaxis] if len(tensors) == 1 else np.stack(tensors)


def check_config(model: ServingModel, signature: Signature) -> None:
    """See that the prototxt speaks of this model. It may leave fetches out, feeds not. Raises ModelError."""
    for kind, variables, specs in (
        ("feed", model.config.feeds, signature.feeds),
        ("fetch", model.config.fetches, signature.fetches),
    ):
        named, there = [v.name for v in variables], [s.name for s in specs]
        odd = [n for n in named if n not in there] or (
            [n for n in there if n not in named] if kind == "feed" or not named else []
        )
        if odd:
            raise ModelError(
                f"The prototxt of {model.path} and {model.files.model.name} disagree on {kind} {odd[0]!r}: "
                f"the one has {_listed(named)}, the other {_listed(there)}; convert the model again."
            )


def check_feeds(
    variables: Sequence[Variable], specs: Mapping[str, TensorSpec], feeds: Mapping[str, Any]
) -> dict[str, Array]:
    """Arrays by alias -> C-contiguous arrays by name; ``specs`` are by name.

    Raises FeedError for an alias that is unknown or missing, another dtype, another rank or another
    extent than the model's where that is known, and for an empty array.
    """
    aliases = [v.alias for v in variables]
    for alias in feeds:
        if alias not in aliases:
            raise FeedError(f"The model has no feed {alias!r}; its feeds are {_listed(aliases)}.")
    arrays = {}
    for variable in variables:
        if variable.alias not in feeds:
            raise FeedError(f"The feed {variable.alias!r} is missing; the model takes {_listed(aliases)}.")
        arrays[variable.name] = _checked(variable.alias, specs[variable.name], feeds[variable.alias])
    return arrays


def _checked(alias: str, spec: TensorSpec, array: Any) -> Array:
    if not isinstance(array, np.ndarray):
        raise FeedError(f"The feed {alias!r} is a {type(array).__name__}, not a NumPy array.")
    if array.dtype != np.dtype(spec.dtype):
        raise FeedError(f"The feed {alias!r} has the dtype {array.dtype}; the model takes {spec.dtype}.")
    fits = len(array.shape) == len(spec.shape) and all(
        got == known if known >= 0 else got > 0 for got, known in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise FeedError(
            f"The feed {alias!r} has the shape {_shown(array.shape)}; the model takes {_shown(spec.shape)}."
        )
    return np.ascontiguousarray(array)


def _shown(shape: Sequence[int]) -> str:
    free = ("batch" if axis == 0 else "any" for axis in range(len(shape)))
    return "(" + ", ".join(str(n) if n >= 0 else word for n, word in zip(shape, free, strict=True)) + ")"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
