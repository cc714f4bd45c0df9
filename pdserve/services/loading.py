"""Loads a serving model's engines as the settings say, one for each device."""

import logging

from pdserve import engines
from pdserve.engines import Engine
from pdserve.serving_model import ServingModel
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
                    threads=settings.threads,
                    instances=settings.instances,
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
