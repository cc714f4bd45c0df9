"""Finds serving models by name, and converts fetched models, in pdserve's home."""

from pathlib import Path

from pdserve.convert import convert
from pdserve.errors import ModelError
from pdserve.formats.model_files import find_model_files, read_program
from pdserve.formats.serving_model import ServingModel
from pdserve.models import catalog
from pdserve.models.home import Home


def find_serving_model(wanted: str, home: Home, config_dir: Path = Path()) -> Path:
    """Find a serving model: a folder, also relative to ``config_dir``, or a name in pdserve's home.

    Raises ModelError with the command that fetches or converts the model.
    """
    for folder in (Path(wanted).expanduser(), config_dir / wanted):
        if folder.is_dir():
            return folder
    name = Path(wanted).name.removesuffix("_serving")
    if home.serving_model(name).is_dir():
        return home.serving_model(name)
    if home.inference_model(name).is_dir():
        raise ModelError(f"{name} is fetched but not converted; type `pdserve convert --model {name}`.")
    if name in catalog.load():
        raise ModelError(
            f"There is no serving model {wanted!r}; "
            f"type `pdserve fetch {name}` and `pdserve convert --model {name}`."
        )
    raise ModelError(
        f"There is no serving model {wanted!r}, neither as a folder nor in {home.models}; "
        "`pdserve fetch --list` shows the names that can be fetched."
    )


def fetched_models(home: Home) -> list[str]:
    """The names of the inference models in pdserve's home, sorted."""
    return sorted(path.name.removesuffix("_infer") for path in home.models.glob("*_infer") if path.is_dir())


def convert_fetched(name: str, home: Home) -> ServingModel:
    """Convert a fetched model to ``NAME_serving`` and ``NAME_client``, with the catalog's aliases.

    A name that the catalog does not know keeps the model's own names. Raises ModelError with the
    command that fetches the model, and what `convert` raises.
    """
    entry = catalog.load().get(name)
    source = home.inference_model(name)
    if not source.is_dir():
        if entry and entry.task == "dataset":
            raise ModelError(f"{name} is a data set and needs no conversion.")
        known = entry or catalog.get(name)  # a misspelt name gets the nearest ones
        raise ModelError(f"{name} is not fetched; type `pdserve fetch {known.name}`.")
    feeds: dict[str, str] = {}
    fetches: dict[str, str] = {}
    if entry:
        signature = read_program(find_model_files(source)).signature
        feeds = {spec.name: alias for spec, alias in zip(signature.feeds, entry.feed_aliases, strict=False)}
        fetches = {
            spec.name: alias for spec, alias in zip(signature.fetches, entry.fetch_aliases, strict=False)
        }
    return convert(
        source,
        home.serving_model(name),
        home.serving_client(name),
        feed_aliases=feeds,
        fetch_aliases=fetches,
        name=name,
    )
