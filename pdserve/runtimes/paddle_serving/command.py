"""``pdserve export paddle-serving``: the folder of a service, for a machine that has Paddle Serving."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pdserve import console
from pdserve.commands import options as o
from pdserve.commands.missing import bring_service
from pdserve.pipelines import SERVICES


@o.with_settings(
    SERVICES.values(),
    ("Model", "Device", "Preprocessing", "Results"),
    names=("instances", "http_port", "rpc_port", "max_batch_size", "max_queue_delay_ms", "timeout_ms"),
    without=("engine", "top_k"),
)
def export(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    service: o.ServiceOption = "classification",
    config: o.ConfigOption = None,
    as_json: o.Json = False,
    **given: Any,
) -> None:
    """Write the folder of a service for Paddle Serving: models, config.yml, service script, labels, index.

    It is self-contained, to be copied to a machine or into a container that has Paddle Serving.
    """
    from pdserve.runtimes.paddle_serving import work_folder

    settings = SERVICES[service].settings(o.flags(given, service), os.environ, config)
    settings = bring_service(settings, o.home(), native=False)
    made = work_folder.export(settings, o.home(), out)
    for note in made.notes:
        console.say(f"Note: {note}.")
    if as_json:
        console.json_line({"path": str(made.path), "service": made.kind, "script": made.script})
    else:
        console.line(f"{made.kind}: {made.path}")
        console.say(f"Next: copy it to where Paddle Serving is and type `python3 {made.script}` in there.")
