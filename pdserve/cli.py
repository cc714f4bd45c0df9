"""The commands: each parses, calls one function, hands its result to the console."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pdserve import __version__, console
from pdserve.commands.index import index_app
from pdserve.commands.options import Json, home
from pdserve.commands.predict import predict
from pdserve.commands.serve import serve_app
from pdserve.errors import PdserveError, UsageError
from pdserve.runtimes.paddle_serving.command import export_app, runtime_app
from pdserve.tools.bench.command import bench
from pdserve.tools.optimize.command import optimize
from pdserve.tools.tune.command import tune

app = typer.Typer(
    name="pdserve",
    help="Fetch, convert and serve PaddlePaddle vision models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(serve_app)
app.add_typer(index_app)
app.add_typer(export_app)
app.add_typer(runtime_app)
app.command()(predict)
app.command()(tune)
app.command()(bench)
app.command()(optimize)


def main() -> None:
    """The ``pdserve`` command. Exit codes: 0 done, 1 the work failed, 2 the command line is wrong."""
    try:
        app()
    except PdserveError as error:
        sys.exit(console.failed(error))
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python must not try to flush the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        console.line(f"pdserve {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Fetch, convert and serve PaddlePaddle vision models.

    The way: fetch NAME, convert --model NAME, serve classification --model NAME, predict IMAGE.
    """


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]…", help="Names in the catalog; with --list, words to look for."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what can be fetched.")] = False,
    mirror: Annotated[
        str | None, typer.Option("--mirror", metavar="URL|DIR", help="Stands in for the model host.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Download models and data sets. Without a name: all that the default services need."""
    from pdserve.models import catalog
    from pdserve.models import fetch as fetching

    if list_:
        _list(names or [""], as_json)
        return
    where = home()
    with console.download_bars() as bars:
        results = fetching.fetch_all(
            names or catalog.DEFAULTS, where, mirror=mirror, force=force, progress=bars
        )
    failed: list[PdserveError] = []
    for result in results:
        if isinstance(result, PdserveError):
            failed.append(result)
        elif as_json:
            console.json_line(
                {
                    "name": result.name,
                    "action": result.action,
                    "path": str(result.path),
                    "origin": result.origin,
                    "sha256": result.sha256,
                    "bytes": result.bytes,
                }
            )
        else:
            console.line(f"{result.name}: {result.action}, {result.path}")
    if failed:
        codes = [console.failed(error) for error in failed]
        raise typer.Exit(max(codes))
    find = [
        r.name for r in results if not isinstance(r, PdserveError) and catalog.get(r.name).task != "dataset"
    ]
    if find and not as_json:
        one = f" --model {find[0]}" if len(find) == 1 else ""
        console.say(f"Next: pdserve convert{one}")


def _list(words: list[str], as_json: bool) -> None:
    from pdserve.models import catalog

    found = [
        entry for entry in catalog.load().values() if all(entry in catalog.search(word) for word in words)
    ]
    if not found:
        raise UsageError(
            f"The catalog has nothing like {' '.join(words)!r}; `pdserve fetch --list` shows all names."
        )
    if as_json:
        for entry in found:
            console.json_line(catalog.described(entry))
    else:
        console.table(("name", "task", "family"), [(e.name, e.task, e.family) for e in found])


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for text in texts or []:
        # Aliases hold no "=", while a variable's name might.
        old, equals, new = text.rpartition("=")
        if not equals or not old or not new:
            raise UsageError(f"{option} {text!r} is not of the form name=alias.")
        pairs[old] = new
    return pairs


@app.command()
def convert(
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="A fetched model.")] = None,
    dirname: Annotated[
        Path | None, typer.Option("--dirname", metavar="DIR", help="An inference model's folder.")
    ] = None,
    serving_server: Annotated[
        Path | None,
        typer.Option(
            "--serving-server", "--serving_server", metavar="DIR", help="Where the serving model goes."
        ),
    ] = None,
    serving_client: Annotated[
        Path | None,
        typer.Option(
            "--serving-client", "--serving_client", metavar="DIR", help="Where the client's files go."
        ),
    ] = None,
    model_filename: Annotated[
        str | None,
        typer.Option("--model-filename", "--model_filename", metavar="FILE", help="The model file's name."),
    ] = None,
    params_filename: Annotated[
        str | None,
        typer.Option(
            "--params-filename", "--params_filename", metavar="FILE", help="The parameter file's name."
        ),
    ] = None,
    feed_alias: Annotated[list[str] | None, typer.Option("--feed-alias", metavar="NAME=ALIAS")] = None,
    fetch_alias: Annotated[list[str] | None, typer.Option("--fetch-alias", metavar="NAME=ALIAS")] = None,
    as_json: Json = False,
) -> None:
    """Make a serving model of an inference model, aliases patched; without options, of all fetched."""
    from pdserve.convert import convert as convert_folder
    from pdserve.models import find

    if dirname:
        if model:
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
                feed_aliases=_pairs(feed_alias, "--feed-alias"),
                fetch_aliases=_pairs(fetch_alias, "--fetch-alias"),
            )
        ]
    else:
        if serving_server or serving_client or model_filename or params_filename or feed_alias or fetch_alias:
            raise UsageError("These options go with --dirname; with --model only the name is given.")
        where = home()
        names = [model] if model else find.fetched_models(where)
        if not names:
            raise UsageError(f"Nothing is fetched in {where.models}; type `pdserve fetch NAME` first.")
        done = [find.convert_fetched(name, where) for name in names]
    for serving in done:
        if as_json:
            console.json_line(
                {
                    "name": serving.name,
                    "path": str(serving.path),
                    "feeds": {v.name: v.alias for v in serving.config.feeds},
                    "fetches": {v.name: v.alias for v in serving.config.fetches},
                }
            )
        else:
            console.line(f"{serving.name}: converted, {serving.path}")


@app.command()
def alias(
    dirs: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Serving folders, server's or client's.")
    ],
    feed: Annotated[
        list[str] | None, typer.Option("--feed", metavar="NAME=ALIAS", help="A feed's new alias.")
    ] = None,
    fetch: Annotated[
        list[str] | None, typer.Option("--fetch", metavar="NAME=ALIAS", help="A fetch's new alias.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show feeds and fetches, or give them aliases, in the prototxt files: text and stream alike."""
    from pdserve.aliases import patch_aliases, read_configs

    feeds, fetches = _pairs(feed, "--feed"), _pairs(fetch, "--fetch")
    files = patch_aliases(dirs, feeds, fetches) if feeds or fetches else read_configs(dirs)
    for f in files:
        rows = [
            (kind, v.name, v.alias, v.dtype, v.shape)
            for kind, variables in (("feed", f.config.feeds), ("fetch", f.config.fetches))
            for v in variables
        ]
        if as_json:
            for row in rows:
                keys = ("kind", "name", "alias", "dtype", "shape")
                console.json_line({"file": str(f.text)} | dict(zip(keys, row, strict=True)))
        else:
            shown = [(*row[:4], "×".join(map(str, row[4])) or "-") for row in rows]
            console.table(("kind", "name", "alias", "dtype", "shape"), shown, title=str(f.text))
    for f in files:
        if f.disagreement and not (feeds or fetches):
            console.say(f"Note: {f.disagreement}; `pdserve alias` with --feed or --fetch writes both alike.")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what is installed, which engines and devices really run, which ports are taken."""
    from pdserve.doctor import examine

    findings = examine(os.environ)
    if as_json:
        for finding in findings:
            console.json_line(finding.described())
    else:
        rows = [(f.area, f.name, f.state, f.detail, f.remedy or "") for f in findings]
        console.table(("area", "what", "state", "detail", "to mend it, type"), rows)
