"""What holds wherever a service runs in a container: where things are in its image, and its command.

The image has the bundle's home at `HOME`, which may not be written, and runs as `USER`; secrets are mounted
at `SECRETS`, and what engines make anew goes to ``/tmp``.
"""

from collections.abc import Mapping
from dataclasses import replace

from pdserve.deploy.bundle import Bundle
from pdserve.errors import UsageError

HOME = "/opt/pdserve/home"
SECRETS = "/run/secrets/pdserve"
USER = 10001
METRICS_PORT = 9464
"""Where metrics are served without a key, unless the settings say; nothing publishes it to callers."""


def command(made: Bundle) -> tuple[str, ...]:
    """The words after ``pdserve`` in a container. Raises UsageError for a service without HTTP."""
    if "http" not in made.ports:
        raise UsageError("Health is asked for over HTTP in a container; give --http-port.")
    if made.settings.server.prometheus_port is None:
        made = replace(made, options=(*made.options, "--prometheus-port", str(METRICS_PORT)))
    return made.command(HOME, SECRETS, "0.0.0.0")


def ports(made: Bundle) -> Mapping[str, int]:
    """The ports of a container by name: http, grpc where it is on, metrics."""
    return {"metrics": METRICS_PORT, **made.ports}


def image(made: Bundle, version: str) -> str:
    """The name of its image, unless another one is given."""
    return f"{made.name}:{version}"
