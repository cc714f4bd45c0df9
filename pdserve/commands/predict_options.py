"""The options of asking a server, of which ``pdserve`` makes typer's and pdserve-client argparse's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdserve.pipelines import SERVICES


@dataclass(frozen=True)
class Option:
    """An option of a command; ``kind`` is what it gives, ``least`` and ``most`` are its bounds."""

    flag: str
    kind: type[Any]
    help: str
    metavar: str | None = None
    default: Any = None
    least: float | None = None
    most: float | None = None
    panel: str | None = None


IMAGES = Option("", str, "Images; - is standard input.", "PATH|URL|DIR|-…")
_KEY = "A file whose first line is the key to send; else the key in PDSERVE_API_KEY."
OPTIONS = {
    "service": Option("--service", str, f"Which service: {', '.join(SERVICES)}.", "NAME"),
    "name": Option("--name", str, "The service's name, of a server with several.", "NAME"),
    "rpc": Option("--rpc", bool, "Ask over gRPC instead of HTTP.", default=False),
    "url": Option("--url", str, "http(s)://host:port; with --rpc (grpcs://)host:port.", "ADDRESS"),
    "top_k": Option("--top-k", int, "Labels per image, matches per object.", "N", least=1),
    "as_json": Option("--json", bool, "One JSON object per line on standard output.", default=False),
    "draw": Option("--draw", Path, "Write the images with their answers here.", "DIR"),
    "jobs": Option("--jobs", int, "Images in flight.", "N", 8, least=1, most=256),
    "timeout": Option("--timeout", float, "Time to wait for an answer.", "SECONDS", 60, least=0.001),
    "api_key": Option("--api-key", Path, _KEY, "FILE", panel="Security"),
    "tls": Option(
        "--tls", bool, "Use TLS; https:// in the address does too.", default=False, panel="Security"
    ),
    "ca": Option(
        "--ca",
        Path,
        "The certificate (PEM) of a private authority; uses TLS.",
        "FILE",
        panel="Security",
    ),
}
"""The options of ``predict`` that have to do with a server, by their parameters."""
