"""Finds and opens serving models by name or path, and converts fetched models, in pdserve's home."""

import json
import shlex
from pathlib import Path
from typing import Literal

from pdserve.convert import convert
from pdserve.engines import int8
from pdserve.errors import ModelError, UsageError
from pdserve.files import FileRecord, user_path
from pdserve.formats import text_file
from pdserve.formats.model_files import find_model_files, read_program
from pdserve.formats.serving_model import MAX_NOTE_BYTES, NOTE, ServingModel, open_serving_model
from pdserve.models import catalog, record
from pdserve.models.address import entry_for, is_source
from pdserve.models.home import Home, is_path
from pdserve.models.inventory import check_name


def open_model(wanted: str, home: Home, config_dir: Path = Path()) -> ServingModel:
    """Find a model as `find_serving_model` does, and open it; nothing is fetched or converted.

    Raises ModelError with the command that fetches or converts the model.
    """
    return open_serving_model(find_serving_model(wanted, home, config_dir))


def find_serving_model(wanted: str, home: Home, config_dir: Path = Path()) -> Path:
    """Find a model's folder: a path, also relative to ``config_dir``, or a name in pdserve's home.

    What has a separator is a path, unless it is an address: that means the model that was fetched from there.
    Raises ModelError with the command that fetches or converts the model.
    """
    for folder in (user_path(wanted), config_dir / wanted):
        if folder.is_dir():
            return folder
    name = model_name(wanted)
    if is_source(wanted):
        _check_origin(wanted, name, home)
    if is_path(wanted) and not is_source(wanted):
        known = home.serving_model(name).is_dir() or name in catalog.load()
        hint = (
            f"for {name} of pdserve's home or catalog give its name alone"
            if known
            else "check the path; `pdserve list` shows the models that have a name"
        )
        raise ModelError(f"There is no serving model at {wanted!r}, which is a path; {hint}.")
    if home.serving_model(name).is_dir():
        return home.serving_model(name)
    if home.inference_model(name).is_dir():
        raise ModelError(f"{name} is fetched but not converted; type `pdserve convert --model {name}`.")
    if is_source(wanted):
        raise ModelError(f"The model of {wanted} is not here; type `pdserve fetch {shlex.quote(wanted)}`.")
    try:
        entry_for(name)
    except UsageError as error:  # with the nearest names
        raise ModelError(
            f"There is no serving model {wanted!r}, neither as a folder nor in {home.models}. {error.message}"
        ) from error
    raise ModelError(
        f"There is no serving model {wanted!r}; "
        f"type `pdserve fetch {name}` and `pdserve convert --model {name}`."
    )


def _check_origin(address: str, name: str, home: Home) -> None:
    """Raise ModelError where the home's model of that name was fetched from elsewhere."""
    source = home.inference_model(name)
    known = record.read(source) if source.is_dir() else None
    if known is not None and known.source != entry_for(address).source.address:
        raise ModelError(
            f"{name} is here already, from {known.source}, and not from {address}; "
            f"type `pdserve fetch {shlex.quote(address)} --force` to replace it."
        )


def model_name(wanted: str) -> str:
    """The name in pdserve's home that is meant: ``NAME_serving`` means NAME, and so does its address.

    Raises UsageError for an address of which no model can be fetched.
    """
    return entry_for(wanted).name if is_source(wanted) else Path(wanted).name.removesuffix("_serving")


def fetched_models(home: Home) -> list[str]:
    """The names of the inference models in pdserve's home, sorted."""
    return sorted(path.name.removesuffix("_infer") for path in home.models.glob("*_infer") if path.is_dir())


State = Literal["missing", "current", "stale", "edited"]
"""Of a model's conversion: "stale" if the fetched model is another one now, "edited" if then something
would be lost that was done to the serving model: aliases, ``inference.yml``, a published int8 form."""


def conversion_state(name: str, home: Home) -> State:
    """The state of a model's conversion; one without a note, or with nothing to compare to, is current."""
    serving, source = home.serving_model(name), home.inference_model(name)
    if not serving.is_dir():
        return "missing"
    try:
        note = json.loads(text_file.read_text(serving / NOTE, MAX_NOTE_BYTES))
        noted, written = (
            {path: FileRecord(**each) for path, each in note[key].items()} for key in ("source", "written")
        )
        if all(each.matches(source / path) for path, each in noted.items()):
            return "current"
        if not all(each.matches(serving / path) for path, each in written.items()):
            return "edited"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "current"  # a conversion without a note, or a fetched model that was removed to save space
    return "edited" if any(serving.glob(f"{int8.FOLDER}/*/{int8.REPORT}")) else "stale"


def convert_fetched(name: str, home: Home) -> ServingModel:
    """Convert a fetched model to ``NAME_serving`` and ``NAME_client``, with the catalog's aliases.

    A name that the catalog does not know keeps the model's own names. Raises ModelError with the
    command that fetches the model, UsageError for what is no name, and what `convert` raises.
    """
    check_name(name)
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
