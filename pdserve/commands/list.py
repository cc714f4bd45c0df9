"""``pdserve list``: the models and indexes of pdserve's home."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdserve import console
from pdserve.commands.options import Json, home

if TYPE_CHECKING:
    from pdserve.index.inventory import StoredIndex
    from pdserve.models.inventory import StoredModel
    from pdserve.models.servers import RunningServer


def list_(as_json: Json = False) -> None:
    """List the models and indexes that are here: forms, versions, sizes, which running servers use them."""
    from pdserve.files import format_size
    from pdserve.index import inventory as indexes
    from pdserve.models import catalog, servers, trash
    from pdserve.models import inventory as models

    where = home()
    trash.sweep(where)
    running = servers.running(where)
    found_models, found_indexes = models.models(where), indexes.indexes(where)
    if as_json:
        for model in found_models:
            console.json_line(model_json(model, running))
        for index in found_indexes:
            console.json_line(index_json(index, running))
        return
    if not found_models and not found_indexes:
        console.say(f"Nothing is in {where.root} yet; `pdserve fetch --list` shows what can be fetched.")
    if found_models:
        entries = catalog.load()
        rows = [
            (
                model.name,
                model.task or (entries[model.name].task if model.name in entries else None) or "-",
                ", ".join(form.name for form in model.forms) or "-",
                format_size(model.bytes),
                state(model),
                used_by(users(running, model.folders)),
            )
            for model in found_models
        ]
        console.table(("model", "task", "forms", "size", "state", "used by"), rows, drop=("task",))
    if found_indexes:
        table = [
            (
                index.name,
                *(getattr(index, name) for name in ("version", "entries", "labels")),
                index.embedder,
                format_size(index.bytes),
                state(index),
                used_by(users(running, [index.path])),
            )
            for index in found_indexes
        ]
        heads = ("index", "version", "entries", "labels", "embedder", "size", "state", "used by")
        console.table(heads, table)
    problems = [(m.name, m.problems) for m in found_models] + [(i.name, i.problems) for i in found_indexes]
    for name, said in problems:
        for problem in said:
            console.say(f"{name}: {problem}")


def users(running: "Sequence[RunningServer]", folders: Sequence[Path]) -> "list[RunningServer]":
    """The running servers that use one of these folders."""
    return [server for server in running if any(server.uses(folder) for folder in folders)]


def used_by(found: "Sequence[RunningServer]") -> str:
    """Servers, as a table shows them."""
    return ", ".join(map(str, found)) or "-"


def state(stored: "StoredModel | StoredIndex") -> str:
    """``ok`` or ``broken``."""
    return "broken" if stored.problems else "ok"


def model_json(model: "StoredModel", running: "Sequence[RunningServer]") -> dict[str, Any]:
    """A model as a JSON object."""
    forms = {
        form.name: {
            "path": str(form.path),
            "bytes": form.bytes,
            "link": str(form.link) if form.link else None,
        }
        for form in model.forms
    }
    return {
        "what": "model",
        "name": model.name,
        "task": model.task,
        "bytes": model.bytes,
        "forms": forms,
        "servers": _servers_json(users(running, model.folders)),
        "problems": list(model.problems),
    }


def index_json(index: "StoredIndex", running: "Sequence[RunningServer]") -> dict[str, Any]:
    """An index as a JSON object."""
    names = ("version", "previous", "entries", "labels", "embedder", "type", "dimension", "updated")
    return {
        "what": "index",
        "name": index.name,
        "path": str(index.path),
        "bytes": index.bytes,
        **{name: getattr(index, name) for name in names},
        "servers": _servers_json(users(running, [index.path])),
        "problems": list(index.problems),
    }


def _servers_json(found: "Sequence[RunningServer]") -> list[dict[str, Any]]:
    names = ("pid", "kind", "http", "rpc", "machine")
    return [{name: getattr(server, name) for name in names} for server in found]
