"""Loads a serving model's engines as the settings say, one for each device."""

import logging
from collections.abc import Hashable, Iterable

from pdserve import engines
from pdserve.engines import Engine
from pdserve.files import signature
from pdserve.formats.serving_model import ServingModel
from pdserve.settings import ModelSettings

log = logging.getLogger("pdserve")


def load_engines(model: ServingModel, settings: ModelSettings) -> tuple[Engine, ...]:
    """One engine per device, each with its instances; the log says which and why.

    Raises ModelError, EngineMissingError, DeviceError, UnsupportedModelError, SettingsError.
    """
    loaded: list[Engine] = []
    try:
        for device in settings.devices:
            loaded.append(
                engines.load(
                    model,
                    engine=settings.engine,
                    device=engines.Device.parse(device),
                    threads=_said(settings.threads),
                    instances=_said(settings.instances),
                    precision=settings.precision,
                    options=engines.Options(settings.ir_optim, settings.use_mkldnn, settings.tensorrt),
                )
            )
            log.info("%s on %s (%s)", model.name, loaded[-1].description, loaded[-1].reason)
    except BaseException:
        for engine in loaded:
            engine.close()
        raise
    return tuple(loaded)


def _said(number: int | str) -> int | None:
    return None if isinstance(number, str) else number


def stamp(models: Iterable[ServingModel]) -> frozenset[Hashable]:
    """What tells the files of these models from those that were there before: names, sizes, times, inodes.

    A file that goes while one looks counts as not there.
    """
    found: list[Hashable] = []
    for model in models:
        # Optimised forms of the model are kept below.
        for pattern in ("*", ".pdserve/*/*.json"):
            for path in model.path.glob(pattern):
                seen = signature(path)
                if seen and path.is_file():
                    found.append((str(path), *seen))
    return frozenset(found)
