"""Open a serving model and load its engines, one per device, as the settings say."""

import logging
from collections.abc import Hashable, Iterable
from dataclasses import replace
from pathlib import Path

from pdserve import engines
from pdserve.engines import Engine
from pdserve.files import signature
from pdserve.formats.serving_model import ServingModel
from pdserve.models import find
from pdserve.models.home import Home
from pdserve.settings import ModelSettings, ServiceSettings

log = logging.getLogger("pdserve")


def index_folder(settings: ServiceSettings, home: Home) -> Path:
    """The folder of the index that is searched: beside the configuration file, else what was named.

    Raises UsageError where there is none.
    """
    from pdserve.index.store import find as find_index

    beside = settings.config_dir / settings.options.index
    embedder = _embedder(settings)
    return find_index(
        str(beside) if beside.is_dir() else settings.options.index,
        home,
        settings.models[embedder].model if embedder else None,
    )


def follow_index(settings: ServiceSettings, home: Home) -> ServiceSettings:
    """Settings in which an embedder that nobody named is the one that made the index.

    An index that does not say, and a service without one, leave them as they are. Raises UsageError where
    there is no index, IndexFolderError.
    """
    role = _embedder(settings)
    if role is None or role in settings.sources.models or not hasattr(settings.options, "index"):
        return settings
    embedder = settings.models[role]
    from pdserve.index.store import read_manifest

    known = read_manifest(index_folder(settings, home))
    if known is None or known.embedder is None or known.embedder.wanted == embedder.model:
        return settings
    own = embedder.model_copy(update={"model": known.embedder.wanted})
    return replace(settings, models={**settings.models, role: own})


def _embedder(settings: ServiceSettings) -> str | None:
    """The role of the model that makes features, None for a service without one."""
    return next((role for role in ("embedder", "model") if role in settings.models), None)


def open_model(
    settings: ModelSettings, home: Home, config_dir: Path
) -> tuple[ServingModel, frozenset[Hashable]]:
    """Find and open the model that the settings name, and the signature of its files before it is loaded.

    Raises ModelError.
    """
    model = find.open_model(settings.model, home, config_dir)
    return model, models_signature([model])


def load_engines(
    model: ServingModel, settings: ModelSettings, size: tuple[int, int] | None = None
) -> tuple[Engine, ...]:
    """One engine per device, each with its instances; the log says which and why.

    ``size``: height and width of the images that it will get, where that is known.
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
                    threads=_number(settings.threads),
                    instances=_number(settings.instances),
                    precision=settings.precision,
                    options=engines.Options(settings.ir_optim, settings.use_mkldnn, settings.tensorrt),
                    size=size,
                )
            )
            log.info("%s on %s (%s)", model.name, loaded[-1].description, loaded[-1].reason)
    except BaseException:
        for engine in loaded:
            engine.close()
        raise
    return tuple(loaded)


def _number(number: int | str) -> int | None:
    return None if isinstance(number, str) else number


def models_signature(models: Iterable[ServingModel]) -> frozenset[Hashable]:
    """The names, sizes, times and inodes of these models' files: what changes when a model is published.

    A file that is removed meanwhile counts as absent.
    """
    found: list[Hashable] = []
    for model in models:
        # Optimised forms of the model are in subfolders.
        for pattern in ("*", ".pdserve/*/*.json"):
            for path in model.path.glob(pattern):
                seen = signature(path)
                if seen and path.is_file():
                    found.append((str(path), *seen))
    return frozenset(found)
