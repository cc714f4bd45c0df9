"""``pdserve convert``: inference models -> serving models."""

from pathlib import Path
from typing import Annotated

import typer

from pdserve import console
from pdserve.commands.options import Json, home
from pdserve.errors import UsageError

# The states of conversions that stay, and what is said of them.
_SKIPPED = {
    "current": "skipped, is converted already",
    "edited": "skipped, was fetched again but its serving model was changed (--force converts it, and keeps "
    "changed files as FILE.before)",
}


def convert(
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="A fetched model.")] = None,
    dirname: Annotated[
        Path | None, typer.Option("--dirname", metavar="DIR", help="The folder of an inference model.")
    ] = None,
    serving_server: Annotated[
        Path | None, typer.Option("--serving-server", metavar="DIR", help="Write the serving model here.")
    ] = None,
    serving_client: Annotated[
        Path | None, typer.Option("--serving-client", metavar="DIR", help="Write the client's files here.")
    ] = None,
    model_filename: Annotated[
        str | None, typer.Option("--model-filename", metavar="FILE", help="The model file's name.")
    ] = None,
    params_filename: Annotated[
        str | None, typer.Option("--params-filename", metavar="FILE", help="The parameter file's name.")
    ] = None,
    feed_alias: Annotated[
        list[str] | None,
        typer.Option("--feed-alias", metavar="NAME=ALIAS", help="The alias of a feed; repeatable."),
    ] = None,
    fetch_alias: Annotated[
        list[str] | None,
        typer.Option("--fetch-alias", metavar="NAME=ALIAS", help="The alias of a fetch; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Convert again what is converted already.")] = False,
    as_json: Json = False,
) -> None:
    """Convert inference models to serving models, with aliases.

    Without --model and --dirname: all that are fetched. What is converted already is skipped, unless it was
    fetched again with another content. Files of a serving model that were changed by hand are not lost: with
    --force they stay beside the new ones, as FILE.before.
    """
    from pdserve.convert import BEFORE
    from pdserve.convert import convert as convert_folder
    from pdserve.formats.serving_model import open_serving_model
    from pdserve.models import find
    from pdserve.models.inventory import check_name

    skipped: dict[str, str] = {}  # name -> why

    if dirname is not None:
        if model is not None:
            raise UsageError("--model and --dirname name two models; give one of them.")
        if not serving_server or not serving_client:
            raise UsageError("--dirname needs --serving-server DIR and --serving-client DIR beside it.")
        done = [
            convert_folder(
                dirname,
                serving_server,
                serving_client,
                model_filename=model_filename,
                params_filename=params_filename,
                feed_aliases=pairs(feed_alias, "--feed-alias"),
                fetch_aliases=pairs(fetch_alias, "--fetch-alias"),
            )
        ]
    else:
        if serving_server or serving_client or model_filename or params_filename or feed_alias or fetch_alias:
            raise UsageError("These options go with --dirname; with --model only the name is given.")
        where = home()
        names = find.fetched_models(where) if model is None else [model]
        if not names:
            raise UsageError(f"Nothing is fetched in {where.models}; type `pdserve fetch NAME` first.")
        for name in names:
            check_name(name)
        if not force:
            states = {name: find.conversion_state(name, where) for name in names}
            skipped = {name: _SKIPPED[state] for name, state in states.items() if state in _SKIPPED}
        done = [
            open_serving_model(where.serving_model(name))
            if name in skipped
            else find.convert_fetched(name, where)
            for name in names
        ]
    for serving in done:
        reason = skipped.get(serving.path.name.removesuffix("_serving"))
        content: dict[str, object] = {
            "name": serving.name,
            "action": "skipped" if reason else "converted",
            "path": str(serving.path),
            "feeds": {v.name: v.alias for v in serving.config.feeds},
            "fetches": {v.name: v.alias for v in serving.config.fetches},
        }
        if kept := [] if reason else sorted(path.name for path in serving.path.glob(f"*{BEFORE}")):
            content["kept"] = kept
        note = f" (changed by hand and kept: {', '.join(kept)})" if kept else ""
        console.answer(content, f"{serving.name}: {reason or 'converted'}, {serving.path}{note}", as_json)


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """``name=alias`` texts as a mapping. Raises UsageError naming the option."""
    found = {}
    for text in texts or []:
        # An alias holds no "=", while a variable's name might.
        name, equals, alias = text.rpartition("=")
        if not equals or not name or not alias:
            raise UsageError(f"{option} {text!r} is not of the form name=alias.")
        found[name] = alias
    return found
