"""What an engine is given of a detector whose suppression it cannot run: its program, cut before that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pdserve.engines import detector_nms, pir_nms
from pdserve.engines.base import LoadRequest
from pdserve.errors import UnsupportedModelError
from pdserve.formats.model_files import Kind

_CUTS: Mapping[Kind, Callable[[bytes], detector_nms.Cut]] = {
    "ProgramDesc": detector_nms.cut,
    "PIR": pir_nms.cut,
}


@dataclass(frozen=True)
class Graph:
    """``program`` (in the model's own format) and the names it fetches.

    ``cut``: where the NMS was cut off, and how to compute it from these; None where nothing was.
    """

    program: bytes
    fetches: tuple[str, ...]
    cut: detector_nms.Cut | None


def read_graph(request: LoadRequest, engine: str) -> Graph:
    """Read the program, cut before its NMS if it has one; ``engine`` is named where that is not possible.

    Raises UnsupportedModelError.
    """
    model = request.model
    program = model.files.model.read_bytes()
    if detector_nms.OPERATOR not in request.program.operators:
        return Graph(program, tuple(v.name for v in model.config.fetches), None)
    try:
        cut = _CUTS[model.files.kind](program)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{engine} cannot run {model.name} exactly: {error.message.rstrip('.')}; "
            'use --engine paddle: `pip install "pdserve[paddle]"`.'
        ) from error
    return Graph(cut.program, cut.fetches, cut)
