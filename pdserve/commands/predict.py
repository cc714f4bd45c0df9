"""``pdserve predict``: ask a server, or models in this process, about images."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pdserve.clients.credentials import Access, key_to_send
from pdserve.commands import options as o
from pdserve.commands.images import find_sources
from pdserve.commands.missing import bring_service
from pdserve.commands.predict_options import IMAGES, OPTIONS
from pdserve.commands.remote import Answer, Ask, answer_all, ask_server
from pdserve.errors import PdserveError, UsageError
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.settings import describe

ImagesArgument = Annotated[list[str], typer.Argument(metavar=IMAGES.metavar, help=IMAGES.help)]
TopKOption = Annotated[int | None, o.declared("top_k")]
DrawOption = Annotated[Path | None, o.declared("draw")]
JobsOption = Annotated[int, o.declared("jobs")]


@o.with_settings(SERVICES.values(), ("Model", "Device", "Preprocessing", "Results"), without=("top_k",))
def predict(
    images: ImagesArgument,
    service: o.ServiceOption = None,
    name: Annotated[str | None, o.declared("name")] = None,
    rpc: Annotated[bool, o.declared("rpc")] = False,
    url: Annotated[str | None, o.declared("url")] = None,
    top_k: TopKOption = None,
    as_json: o.Json = False,
    draw: DrawOption = None,
    jobs: JobsOption = OPTIONS["jobs"].default,
    timeout: Annotated[float, o.declared("timeout")] = OPTIONS["timeout"].default,
    local: Annotated[
        bool, typer.Option("--local", help="Run the models in this process, without a server.")
    ] = False,
    api_key: o.ApiKeyOption = None,
    tls: o.TlsOption = False,
    ca: o.CaOption = None,
    **given: Any,
) -> None:
    """Ask a running server about images; with --local, models in this process.

    Without --url it is the server that runs on this machine, on whatever port; --service says which where
    several run. The options from Model on go with --local.
    """
    sources = find_sources(images)
    settings = {name: value for name, value in given.items() if value is not None}
    if local:
        if name or rpc or url or api_key or tls or ca:
            raise UsageError(
                "--local asks no server; leave out --name, --rpc, --url, --api-key, --tls and --ca."
            )
        entry = SERVICES[_local_kind(service, settings)]
        asked = open_local(entry.kind, o.flags(settings | {"top_k": top_k}, entry.kind), os.environ, o.home())
        failed = answer_all(sources, asked, entry, draw, jobs, as_json)
    else:
        if settings:
            option = next(iter(settings)).replace("_", "-")
            raise UsageError(f"--{option} goes with --local; a server has its own settings.")
        failed = ask_server(
            sources,
            service=service,
            name=name,
            rpc=rpc,
            url=url,
            top_k=top_k,
            as_json=as_json,
            draw=draw,
            jobs=jobs,
            timeout=timeout,
            access=Access(key_to_send(api_key, os.environ), tls, ca),
        )
    raise typer.Exit(1 if failed else 0)


def _local_kind(service: str | None, settings: Mapping[str, Any]) -> str:
    """The service to run here: the one named, else the first that has the options given."""
    sets = [kind for kind, entry in SERVICES.items() if settings.get("model") in entry.sets]
    if sets and not service:
        return sets[0]
    names = {kind: {each.name for each in describe(entry)} for kind, entry in SERVICES.items()}
    own = [name for name in settings if 0 < sum(name in each for each in names.values()) < len(names)]
    kinds = [kind for kind in SERVICES if own and names[kind] >= set(own)]
    kinds += [kind for kind in SERVICES if own and own[0] in names[kind]]  # `flags` then refuses the others
    if not service and not kinds:
        raise UsageError("--local needs --model NAME, the model to run, or --service NAME.")
    kind = service or kinds[0]
    role, *others = SERVICES[kind].roles
    if not others and role not in settings:
        raise UsageError(f"--local needs --{role} NAME, the model to run.")
    return kind


@contextmanager
def open_local(
    service: str, flags: Mapping[str, Any], environ: Mapping[str, str], home: Home
) -> Iterator[Ask]:
    """The models in this process, with the settings that ``pdserve serve SERVICE`` would have.

    What is missing is fetched and converted. Raises the errors of that, and of `ServiceEntry.open`.
    """
    entry = SERVICES[service]
    settings = entry.settings(flags, environ)
    bring_service(settings, home)
    pipeline = entry.open(settings, home)

    def ask(image: bytes) -> Answer:
        (answer,) = pipeline.predict([image])
        if isinstance(answer, PdserveError):
            raise answer
        return list(getattr(answer, entry.items))

    try:
        yield ask
    finally:
        pipeline.close()
