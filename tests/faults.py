"""The real ``pdserve`` command with an engine that can be told to fail: ``python -m tests.faults serve …``.

The engine is OpenVINO, with faults laid over it by files in the folder PDSERVE_FAULTS: while there is
``fail``, every run fails; who finds ``hang``, takes it away and never comes back; a run waits while
there is ``hold``. A magenta picture fails always. ``runs`` gets a byte for every image
that the engine was given.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from pdserve import engines
from pdserve.cli import main
from pdserve.engines import openvino
from pdserve.engines.base import Instance, LoadedModel, LoadRequest
from pdserve.vision.types import Array

MAGENTA = (255, 0, 255)


def open_model(request: LoadRequest) -> LoadedModel:
    """OpenVINO's, with faults."""
    opened = openvino.open_model(request)
    return LoadedModel([_faulty(instance) for instance in opened.instances], opened.description)


def _faulty(instance: Instance) -> Instance:
    folder = Path(os.environ["PDSERVE_FAULTS"])

    def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        (images,) = feeds.values()
        with (folder / "runs").open("ab") as runs:
            runs.write(b"." * len(images))
        if (folder / "fail").exists():
            raise RuntimeError("told to fail")
        try:
            (folder / "hang").unlink()
        except FileNotFoundError:
            pass
        else:
            time.sleep(1000)
        while (folder / "hold").exists():
            time.sleep(0.005)
        means = images.mean(axis=(2, 3))
        if np.any((means[:, 0] > 0.9) & (means[:, 1] < 0.1) & (means[:, 2] > 0.9)):
            raise RuntimeError("it does not like magenta")
        return instance(feeds)

    return run


if __name__ == "__main__":
    openvino_entry = engines.ENGINES["openvino"]
    engines.ENGINES["openvino"] = replace(openvino_entry, open="tests.faults:open_model")
    main()
