"""What an engine is: named arrays in, named arrays out, by alias."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from pdserve.engines.device import Device, cores
from pdserve.formats.program import Program
from pdserve.formats.prototxt import Variable
from pdserve.formats.serving_model import ServingModel
from pdserve.vision.types import Array


class Engine(Protocol):
    """A serving model, loaded on a device.

    ``name`` is the key in ``ENGINES``; ``shapes`` gives each feed's real shape by alias, -1 where an
    extent is free (the prototxt keeps the known extents only); ``instances`` is how many runs go on at
    once; ``description`` is a line for the log; ``reason`` says why this engine and not another.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> Device: ...
    @property
    def feeds(self) -> tuple[Variable, ...]: ...
    @property
    def fetches(self) -> tuple[Variable, ...]: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def instances(self) -> int: ...
    @property
    def description(self) -> str: ...
    @property
    def reason(self) -> str: ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Feeds by alias -> fetches by alias.

        Any number of threads may call this at once: as many run as the engine has instances, the
        others wait. The arrays given are not written to, those returned belong to the caller.
        Raises FeedError for what does not fit the feeds, EngineError for a run that fails,
        ClosedError after ``close``.
        """

    def close(self) -> None:
        """Wait for the runs under way, then free the model. Closing twice is fine."""


@dataclass(frozen=True)
class Options:
    """Paddle's switches; None where nobody asked.

    All engines optimise graphs, and oneDNN is in all of them; only paddle can do without. TensorRT is
    paddle's too.
    """

    ir_optim: bool | None = None
    use_mkldnn: bool | None = None
    tensorrt: bool = False


@dataclass(frozen=True)
class Request:
    """What an engine's ``open_model`` is asked for: a model whose files have been checked.

    ``threads``: CPU threads of one instance, and ``instances``: None for what suits engine and machine.
    ``precision``: ``fp32``, ``fp16``, ``bf16`` or ``int8``. ``optimized``: the folder of a form of the model
    that is not published yet; None for the published one, where the precision needs one.
    """

    model: ServingModel
    program: Program
    device: Device
    threads: int | None
    instances: int | None
    precision: str
    options: Options
    optimized: Path | None = None

    def cpu_shares(self, best: int) -> tuple[int, int]:
        """Threads of an instance, and instances, on the CPU; ``best`` is the engine's number of instances.

        Instances that nobody asked for share one pool of threads, those that were asked for share out the
        cores.
        """
        if self.instances is None:
            return self.threads or cores(), best if cores() > 1 else 1
        return self.threads or max(1, cores() // self.instances), self.instances


Instance: TypeAlias = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""One run at a time: feeds -> fetches, by the model's own names. Arrays returned are the caller's."""


@dataclass(frozen=True)
class Opened:
    """What an engine's ``open_model`` returns; ``description`` as in Engine."""

    instances: Sequence[Instance]
    description: str


def shared_out(threads: int, instances: int) -> str:
    """CPU threads of one instance and the number of instances, in words, for a description."""
    each = f"{threads} thread{'s' * (threads > 1)}"
    return each if instances == 1 else f"{instances} instances of {each}"


def warm_up(engine: Engine, batch: int = 1, size: tuple[int, int] | None = None) -> None:
    """Run once on made-up input, so that the first caller does not pay for what is prepared lazily.

    ``size`` is (height, width), for models that leave them free; other free extents are 1. The input is
    ones, as detectors divide by one of their feeds. Raises what ``run`` raises.
    """
    feeds = {}
    for feed in engine.feeds:
        shape = list(engine.shapes[feed.alias])
        for axis, extent in enumerate(shape):
            if extent < 0:
                spatial = len(shape) == 4 and axis >= 2 and size is not None
                shape[axis] = batch if axis == 0 else size[axis - 2] if spatial and size else 1
        feeds[feed.alias] = np.ones(shape, feed.dtype)
    engine.run(feeds)
