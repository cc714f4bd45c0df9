"""``pdserve show``: what a model or an index is, and where it came from."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdserve import console
from pdserve.commands.list import index_json, model_json
from pdserve.commands.options import Json, home, serve_model
from pdserve.errors import PdserveError, UsageError
from pdserve.files import format_size

if TYPE_CHECKING:
    from pdserve.formats.serving_model import ServingModel
    from pdserve.index.inventory import StoredIndex
    from pdserve.models.catalog import Entry
    from pdserve.models.home import Home
    from pdserve.models.inventory import StoredModel
    from pdserve.models.servers import RunningServer

_FEW = 5  # labels that are shown


def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help="A model or an index that is here, or of the catalog.")
    ],
    as_json: Json = False,
) -> None:
    """Show a model (task, preprocessing, labels, aliases, forms, where it came from) or an index."""
    for content in describe(name, home()):
        if as_json:
            console.json_line(content)
            continue
        console.table(("", ""), _rows(content), title=f"{content['name']}: {_TITLES[content['what']]}")
        for problem in content.get("problems", ()):
            console.say(f"{content['name']}: {problem}")


_TITLES = {"model": "a model", "index": "an index", "catalog": "in the catalog, not here"}


def describe(name: str, where: "Home") -> list[dict[str, Any]]:
    """What a folder, or a name in the home, is: a model, an index, or both; else what the catalog says.

    Raises UsageError, with the nearest names, for a name that is nowhere.
    """
    from pdserve.files import user_path
    from pdserve.index import inventory as indexes
    from pdserve.models import catalog, servers
    from pdserve.models import inventory as models
    from pdserve.models.home import is_path

    running = servers.running(where)
    folder = user_path(name)
    if folder.is_dir() and indexes.is_index(folder):
        return [_index(name, indexes.examine(folder), running)]
    if folder.is_dir() and (is_path(name) or not models.examine(folder).problems):
        return [_model(name, models.examine(folder), None, where, running)]
    if is_path(name):
        raise UsageError(f"There is no folder {name!r}; check the path, or give a name that is here.")
    found = []
    if model := models.find(name, where):
        found.append(_model(name, model, catalog.load().get(name), where, running))
    if index := indexes.find(name, where):
        found.append(_index(name, index, running))
    return found or [_fetchable(catalog.get(name))]


def _model(
    name: str,
    stored: "StoredModel",
    entry: "Entry | None",
    where: "Home",
    running: "Sequence[RunningServer]",
) -> dict[str, Any]:
    from pdserve.index import inventory as indexes

    said: dict[str, Any] = dict.fromkeys(_SAID) | {"task": entry.task if entry else None}
    forms = {form.name: form.path for form in stored.forms}
    for folder in (forms[form] for form in ("serving", "inference") if form in forms):
        with suppress(PdserveError):  # what is wrong with the files is among the problems
            said = _described(folder, entry)
            break
    listed = model_json(stored, running)
    return {
        **{key: listed[key] for key in ("what", "name")},
        **said,
        **{key: listed[key] for key in ("bytes", "forms")},
        "source": _record(forms["inference"]) if "inference" in forms else None,
        "indexes": [each.name for each in indexes.indexes(where) if each.embedder == stored.name],
        "servers": listed["servers"],
        "command": serve_model(said["task"], name),
        "problems": listed["problems"],
    }


_SAID = ("task", "architecture", "chain", "postprocess", "labels", "feeds", "fetches")


def _described(folder: Path, entry: "Entry | None") -> dict[str, Any]:
    """What the model's own description says, else the catalog. Raises ModelError."""
    from pdserve.formats.serving_model import open_serving_model

    model = open_serving_model(folder)
    said = model.description
    chain = said.transforms or said.preprocess or (entry.transforms if entry else None)
    variables = {
        kind: {v.name: {"alias": v.alias, "dtype": v.dtype, "shape": list(v.shape)} for v in found}
        for kind, found in (("feeds", model.config.feeds), ("fetches", model.config.fetches))
    }
    return {
        "task": said.task or (entry.task if entry else None),
        "architecture": said.model_name or said.arch,
        "chain": [dict(each) for each in chain] if chain else None,
        "postprocess": _postprocess(said.postprocess or (entry.postprocess if entry else None)),
        "labels": _labels(model, entry),
        **variables,
    }


def _postprocess(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Without its labels, which are shown apart."""
    if not found:
        return None
    return {
        name: {key: value for key, value in params.items() if key != "label_list"}
        if isinstance(params, Mapping)
        else params
        for name, params in found.items()
    }


def _labels(model: "ServingModel", entry: "Entry | None") -> dict[str, Any] | None:
    from pdserve.models import labels

    names = model.description.labels
    if names is None and entry and entry.labels:
        names = labels.read_labels(labels.FOLDER / entry.labels)
    return {"count": len(names), "first": list(names[:_FEW])} if names else None


def _index(name: str, stored: "StoredIndex", running: "Sequence[RunningServer]") -> dict[str, Any]:
    from pdserve.index import store

    listed = index_json(stored, running)
    ends = {key: listed.pop(key) for key in ("servers", "problems")}
    return {
        **listed,
        "versions": store.versions(stored.folder) if stored.folder else [],
        "source": _record(stored.path),
        "servers": ends["servers"],
        "command": f"pdserve serve recognition --index {name}" if stored.folder else None,
        "problems": ends["problems"],
    }


def _record(folder: Path) -> dict[str, Any] | None:
    """Where a folder was fetched from; None where it was not, or that cannot be read."""
    from pdserve.models import record

    with suppress(PdserveError):
        if fetched := record.read(folder):
            return {key: getattr(fetched, key) for key in ("source", "origin", "sha256", "bytes", "date")}
    return None


def _fetchable(entry: "Entry") -> dict[str, Any]:
    """What the catalog says of a name that is not here."""
    content = entry.to_json()
    chain = content.pop("transforms")
    return {"what": "catalog", **content, "chain": chain, "command": f"pdserve fetch {entry.name}"}


def _rows(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines of a table: what is known, in words."""
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if key in ("what", "name", "problems") or value in (None, [], {}):
            continue
        if key in ("feeds", "fetches"):
            rows += [(key, _variable(name, said)) for name, said in value.items()]
        elif key == "forms":
            rows += [(name, _form(said)) for name, said in value.items()]
        else:
            word, text = _WORDS.get(key, (key, _text))
            rows.append((word, text(value)))
    return rows


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _variable(name: str, said: Mapping[str, Any]) -> str:
    return f"{name} as {said['alias']}, {said['dtype']} {'×'.join(map(str, said['shape']))}"


def _form(said: Mapping[str, Any]) -> str:
    link = f" → {said['link']}" if said["link"] else ""
    return f"{format_size(said['bytes'])}, {said['path']}{link}"


def _source(value: Any) -> str:
    if isinstance(value, str):  # the catalog's address
        return value
    return f"{value['origin']}, SHA-256 {value['sha256']}, {value['date']}"


def _names(value: Mapping[str, Any] | str) -> str:
    if isinstance(value, str):  # the catalog's file
        return value
    if isinstance(value, int):  # an index's count
        return str(value)
    more = "; …" if value["count"] > len(value["first"]) else ""
    return f"{value['count']}: {'; '.join(value['first'])}{more}"


def _server(said: Mapping[str, Any]) -> str:
    return f"{said['kind']} at {said['http'] or said['rpc']} (pid {said['pid']})"


def _operator(operator: Mapping[str, Any]) -> str:
    """``ResizeImage(resize_short=256)``, of ``{ResizeImage: {…}}`` or ``{type: ResizeImage, …}``."""
    if "type" in operator:
        name, params = operator["type"], {key: value for key, value in operator.items() if key != "type"}
    else:
        name, params = next(iter(operator.items()))
    inside = params.items() if isinstance(params, Mapping) else ()
    listed = ", ".join(f"{key}={value}" for key, value in inside if value is not None)
    return f"{name}({listed})" if listed else str(name)


# Keys of the JSON object that the table calls otherwise, or says in another way.
_WORDS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "bytes": ("size", format_size),
    "source": ("from", _source),
    "labels": ("labels", _names),
    "servers": ("used by", lambda value: ", ".join(map(_server, value))),
    "chain": ("preprocessing", lambda value: " → ".join(map(_operator, value))),
    "postprocess": ("postprocessing", lambda value: ", ".join(_operator({k: v}) for k, v in value.items())),
    "accuracy": ("accuracy", lambda value: f"{value['metric']} {value['value']} %"),
    "feed_aliases": ("feed aliases", _text),
    "fetch_aliases": ("fetch aliases", _text),
    "command": ("next", _text),
}
