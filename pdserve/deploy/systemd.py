"""``pdserve export systemd``: a unit with Type=notify, hardened, and the home folder of its service."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pdserve import __version__, console
from pdserve.commands import options as o
from pdserve.deploy.bundle import Bundle, write
from pdserve.deploy.command import Name, Out, bring
from pdserve.deploy.templates import fill
from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES
from pdserve.services.net import is_loopback
from pdserve.services.signals import AFTER_GRACE_S
from pdserve.settings import PANELS

PROGRAM = "/opt/pdserve/bin/pdserve"
_PLAIN = re.compile(r"[A-Za-z0-9_./:=,+-]+")
_ESCAPES = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\t": r"\t"}


@o.with_settings(SERVICES.values(), PANELS, without=("log_file",))
def export(
    out: Out,
    service: o.ServiceOption = "classification",
    config: o.ConfigOption = None,
    name: Name = None,
    program: Annotated[
        str, typer.Option("--program", metavar="PATH", help="Where pdserve is on the machine that serves.")
    ] = PROGRAM,
    as_json: o.Json = False,
    **given: Any,
) -> None:
    """Write a unit of systemd for a service, and a home folder with its models.

    It has Type=notify and a watchdog, and may do nothing but serve. README.md in the folder says how to
    install it.
    """
    if not Path(program).is_absolute():
        raise UsageError(f"--program {program!r}: systemd wants the whole path, as {PROGRAM}.")
    made, home = bring(service, config, name, given)
    path = write(made, home, out, texts(made, program))
    for note in made.notes:
        console.say(f"Note: {note}.")
    unit = path / f"{made.name}.service"
    console.answer({"path": str(path), "service": made.entry.kind, "unit": str(unit)}, f"{unit}", as_json)
    if not as_json:
        console.say(f"Next: install it as {path / 'README.md'} says.")


def texts(made: Bundle, program: str = PROGRAM) -> Mapping[str, str]:
    """The unit and its README.md, by name."""
    state, unit = f"/var/lib/{made.name}", f"{made.name}.service"
    command = (program, *made.command(state, f"/run/credentials/{unit}"))
    environment = {"PDSERVE_HOME": state, "XDG_CACHE_HOME": f"/var/cache/{made.name}", **made.environment}
    low = [port for port in made.ports.values() if port < 1024]
    files = made.secrets.values()
    values: dict[str, str | Sequence[str]] = {
        "name": made.name,
        "title": made.title.splitlines()[0],
        "description": made.title.replace("%", "%%").splitlines()[0],
        "exec_start": f"ExecStart={' '.join(_word(each) for each in command)}",
        "stop_s": str(math.ceil(made.settings.server.grace_s + AFTER_GRACE_S) + 5),
        "environment": [f"Environment={_word(f'{key}={text}', False)}" for key, text in environment.items()],
        "credentials": [f"LoadCredential={each}:/etc/{made.name}/{each}" for each in files],
        "capabilities": [
            "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
            "AmbientCapabilities=CAP_NET_BIND_SERVICE",
        ]
        if low
        else "CapabilityBoundingSet=",
        "devices": _devices(made.gpus),
        # In a user namespace of its own a process may open no port below 1024.
        "private_users": "no" if low else "yes",
        "addresses": _addresses(made.settings.server.host),
        "version": __version__,
        "secrets": [f"mkdir -p /etc/{made.name} && install -m 600 {' '.join(files)} /etc/{made.name}/"]
        if files
        else (),
    }
    return {unit: fill("systemd/unit.service", values), "README.md": fill("systemd/README.md", values)}


def _word(text: str, command: bool = True) -> str:
    """A word of a command line or of Environment=, quoted (systemd.service(5), "Command lines")."""
    escaped = "".join(_ESCAPES.get(each, each) for each in text).replace("%", "%%")
    escaped = escaped.replace("$", "$$") if command else escaped
    return escaped if _PLAIN.fullmatch(text) else f'"{escaped}"'


def _devices(gpus: Sequence[int]) -> list[str]:
    if not gpus:
        return ["PrivateDevices=yes"]
    names = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", *(f"nvidia{number}" for number in gpus))
    return ["DevicePolicy=closed", *(f"DeviceAllow=/dev/{name} rw" for name in names)]


def _addresses(host: str) -> list[str]:
    """It calls nobody, so who may call is who may be spoken to."""
    if not is_loopback(host):
        return [
            "# IPAddressDeny=any and IPAddressAllow=10.0.0.0/8 would let the machines of a network in alone."
        ]
    return ["IPAddressDeny=any", "IPAddressAllow=localhost"]
