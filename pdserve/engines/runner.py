"""The one implementation of Engine: checks, takes turns, translates errors."""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pdserve.engines.base import Instance, Opened, Request
from pdserve.engines.feeds import check_feeds
from pdserve.errors import ClosedError, EngineError, PdserveError
from pdserve.vision.types import Array


class Runner:
    """An Engine over the instances that an engine module opened."""

    def __init__(self, name: str, request: Request, opened: Opened, reason: str) -> None:
        model, specs = request.model, request.program.signature.feeds
        self.name = name
        self.device = request.device
        self.feeds = model.config.feeds
        self.fetches = model.config.fetches
        self.description = opened.description
        self.reason = reason
        self._model_name = model.name
        self._specs = {s.name: s for s in specs}
        self.shapes: Mapping[str, tuple[int, ...]] = {v.alias: self._specs[v.name].shape for v in self.feeds}
        self._free: list[Instance] = list(opened.instances)
        self._count = self.instances = len(self._free)
        self._closed = False
        self._changed = threading.Condition()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        arrays = check_feeds(self.feeds, self._specs, feeds)
        with self._borrowed() as instance:
            try:
                outputs = instance(arrays)
            except PdserveError:
                raise
            except Exception as error:  # each engine has its own kinds
                raise EngineError(f"{self.name} failed to run {self._model_name}: {gist(error)}.") from error
        return {v.alias: outputs[v.name] for v in self.fetches}

    def close(self) -> None:
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


def gist(error: BaseException) -> str:
    """The one telling line of an engine's error.

    Paddle's has a traceback before and hints after the line that starts with the kind of error;
    OpenVINO's ends with it; ONNX Runtime's is one line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((found for found in lines if re.match(r"\(\w+\) |\w+Error: ", found)), lines[-1])
    return line.removesuffix(".")[:300]
