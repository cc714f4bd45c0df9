"""Between ``load`` and an engine's module: what is asked of ``open_model``, and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pdserve.engines.device import Device, cores
from pdserve.formats.program import Program
from pdserve.formats.serving_model import ServingModel
from pdserve.vision.types import Array


@dataclass(frozen=True)
class Options:
    """Paddle's switches; None where not set.

    All engines optimise graphs, and oneDNN is in all of them; only paddle can do without. TensorRT is
    paddle's too.
    """

    ir_optim: bool | None = None
    use_mkldnn: bool | None = None
    tensorrt: bool = False


@dataclass(frozen=True)
class LoadRequest:
    """Argument of an engine's ``open_model``: a model whose files have been checked.

    ``threads``: CPU threads of one instance, and ``instances``: None for what suits engine and machine.
    ``precision``: ``fp32``, ``fp16``, ``bf16`` or ``int8``. ``optimized``: folder of an optimised form that
    is not published yet; None for the published one, where the precision needs one. ``size``: height and
    width of the images that it will get, where the model leaves them free and somebody knows.
    """

    model: ServingModel
    program: Program
    device: Device
    threads: int | None
    instances: int | None
    precision: str
    options: Options
    optimized: Path | None = None
    size: tuple[int, int] | None = None

    def cpu_shares(self, best: int) -> tuple[int, int]:
        """Threads of an instance, and instances, on the CPU; ``best`` is the engine's number of instances.

        By default the instances share one pool of threads; a number that was asked for divides the cores.
        """
        if self.instances is None:
            return self.threads or cores(), best if cores() > 1 else 1
        return self.threads or max(1, cores() // self.instances), self.instances


Instance: TypeAlias = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""One run at a time: feeds -> fetches, by the model's own names. Arrays returned are the caller's."""


@dataclass(frozen=True)
class LoadedModel:
    """What an engine's ``open_model`` returns; ``description`` is a line for the log."""

    instances: Sequence[Instance]
    description: str


def thread_text(threads: int, instances: int) -> str:
    """CPU threads of one instance and the number of instances, in words, for a description."""
    each = f"{threads} thread{'s' * (threads > 1)}"
    return each if instances == 1 else f"{instances} instances of {each}"
