"""Brings what a command is about to open and is not here: models, and an index of the catalog."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pdserve import console
from pdserve.errors import InterruptError, ModelError, PdserveError
from pdserve.models.home import Home, is_path
from pdserve.progress import Progress

if TYPE_CHECKING:
    from pdserve.settings import ServiceSettings


def bring_models(
    wanted: Sequence[str], home: Home, *, offline: bool = False, config_dir: Path = Path()
) -> None:
    """Fetch and convert what is missing of these models, a line for each step; a name, path or address.

    Where nothing is missing nothing is printed. Raises what `pdserve.models.ensure.ensure` raises.
    """
    from pdserve.models import ensure as models

    missing = [each for each in dict.fromkeys(wanted) if not models.is_ready(each, home, config_dir)]
    if not missing:
        return
    with downloading(home) as progress:
        for each in missing:
            models.ensure(
                each, home, offline=offline, progress=progress, report=console.say, config_dir=config_dir
            )


def bring_service(settings: "ServiceSettings", home: Home, *, native: bool = True) -> "ServiceSettings":
    """Bring the models of a service, and first its index, which may name the embedder.

    ``native``: pdserve's own engines run them; one that is asked for and not here, or a GPU, is said before
    anything comes. Returns the settings with that embedder.
    """
    from pdserve.pipelines.loading import follow_index

    if native:
        _require_engines(settings)
    offline, config_dir = settings.server.offline, settings.config_dir
    index = getattr(settings.options, "index", None)
    if index is not None:
        bring_index(index, home, offline=offline, config_dir=config_dir)
    followed = follow_index(settings, home)
    wanted = {role: each.model for role, each in followed.models.items()}
    own = {role: name for role, name in wanted.items() if name != settings.models[role].model}
    bring_models(
        [name for role, name in wanted.items() if role not in own],
        home,
        offline=offline,
        config_dir=config_dir,
    )
    for role, name in own.items():
        try:
            bring_models([name], home, offline=offline, config_dir=config_dir)
        except PdserveError as error:
            raise type(error)(
                f"The index {index} was made by the {role} {name}, which cannot be opened: {error.message} "
                f"Or name its folder with --{role}."
            ) from error
    return followed


def _require_engines(settings: "ServiceSettings") -> None:
    """Raise DeviceError or EngineMissingError for what is asked for by name and is not here."""
    asked = {(each.engine, device) for each in settings.models.values() for device in each.devices}
    if asked == {("auto", "cpu")}:  # which is always here
        return
    from pdserve import engines

    for engine, device in sorted(asked):
        engines.require(engine, engines.Device.parse(device))


def bring_index(index: str, home: Home, *, offline: bool = False, config_dir: Path = Path()) -> None:
    """Fetch a data set of the catalog that is not here; what is no name of one is left to who opens it."""
    if is_path(index) or Path(index).exists() or (config_dir / index).exists() or home.index(index).exists():
        return
    from pdserve.models import catalog
    from pdserve.models import ensure as models

    entry = catalog.load().get(index)
    if entry is None:
        return
    if entry.task != "dataset":
        raise ModelError(
            f"{index} is a model, and no index; give --index the name of a data set or a folder."
        )
    with downloading(home) as progress:
        models.fetch_missing(entry, home, offline=offline, progress=progress, report=console.say)


@contextmanager
def downloading(home: Home) -> Iterator[Progress]:
    """Bars for downloads; after Ctrl-C a line says what is kept of them."""
    try:
        with console.download_bars() as bars:
            yield bars
    except KeyboardInterrupt:
        from pdserve.files import format_size

        kept = sum(path.stat().st_size for path in (home.root / "downloads").glob("*.part"))
        if not kept:
            raise
        raise InterruptError(
            f"Interrupted; the {format_size(kept)} that came are kept, and the same command goes on."
        ) from None
