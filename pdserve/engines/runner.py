"""The engine contract: named arrays in, named arrays out; feeds checked, runs limited, errors translated."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pdserve.engines.base import Instance, LoadedModel, LoadRequest
from pdserve.errors import ClosedError, EngineError, FeedError, ModelError, PdserveError
from pdserve.formats.program import Signature, TensorSpec
from pdserve.formats.prototxt import Variable
from pdserve.formats.serving_model import ServingModel
from pdserve.vision.types import Array


class Engine:
    """A serving model, loaded on a device.

    ``name`` is the key in ``ENGINES``; ``feeds`` and ``fetches`` are the prototxt's; ``shapes`` gives each
    feed's full shape by alias, -1 where an extent is free (the prototxt has the known extents only);
    ``instances`` is the number of concurrent runs; ``description`` is a line for the log; ``reason`` says why
    this engine was chosen.
    """

    def __init__(self, name: str, request: LoadRequest, loaded: LoadedModel, reason: str) -> None:
        model, specs = request.model, request.program.signature.feeds
        self.name = name
        self.device = request.device
        self.feeds = model.config.feeds
        self.fetches = model.config.fetches
        self.description = loaded.description
        self.reason = reason
        self._model_name = model.name
        self._specs = {s.name: s for s in specs}
        self.shapes: Mapping[str, tuple[int, ...]] = {v.alias: self._specs[v.name].shape for v in self.feeds}
        self._free: list[Instance] = list(loaded.instances)
        self._count = self.instances = len(self._free)
        self._closed = False
        self._changed = threading.Condition()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Feeds by alias -> fetches by alias.

        Thread-safe: as many calls run as the engine has instances, the others wait. The arrays given are
        not written to, those returned belong to the caller. Raises FeedError for what does not fit the
        feeds, EngineError for a run that fails, ClosedError after ``close``.
        """
        arrays = check_feeds(self.feeds, self._specs, feeds)
        with self._borrowed() as instance:
            try:
                outputs = instance(arrays)
            except PdserveError:
                raise
            except Exception as error:  # each engine has its own kinds
                raise EngineError(
                    f"{self.name} failed to run {self._model_name}: {summary(error)}."
                ) from error
        return {v.alias: outputs[v.name] for v in self.fetches}

    def close(self) -> None:
        """Wait for the active runs, then free the model. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == self._count)
            self._free.clear()
            self._count = 0

    @contextmanager
    def _borrowed(self) -> Iterator[Instance]:
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            if self._closed:
                raise ClosedError(f"The engine of {self._model_name} is closed; load the model again.")
            instance = self._free.pop()  # the last returned: its memory is warm
        try:
            yield instance
        finally:
            with self._changed:
                self._free.append(instance)
                self._changed.notify_all()


def summary(error: BaseException) -> str:
    """The informative line of an engine's error, at most 300 characters.

    Paddle's has a traceback before and hints after the line that starts with the kind of error;
    OpenVINO's ends with it; ONNX Runtime's is one line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((found for found in lines if re.match(r"\(\w+\) |\w+Error: ", found)), lines[-1])
    return line.removesuffix(".")[:300]


def check_config(model: ServingModel, signature: Signature) -> None:
    """Check that the prototxt is this model's; fetches may be left out. Raises ModelError."""
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
    """Check arrays by alias -> C-contiguous arrays by name, for all engines alike; ``specs`` are by name.

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


def as_batch(tensors: Sequence[Array]) -> Array:
    """Tensors of one shape -> one with the batch axis in front; of a single tensor a view, not a copy."""
    return tensors[0][np.newaxis] if len(tensors) == 1 else np.stack(tensors)
