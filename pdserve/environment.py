"""Settings in the environment, PDSERVE_NAME; Kubernetes' and Docker's links to services are passed over.

A Kubernetes service called ``pdserve-http`` gives every container of its namespace
``PDSERVE_HTTP_PORT=tcp://10.0.0.1:80`` (kubernetes.io, "Accessing the Service", environment variables), and a
Docker link with the alias ``pdserve`` gives ``PDSERVE_PORT`` in that form and ``PDSERVE_NAME=/web/pdserve``.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdserve.settings import Setting

_LINK = re.compile(r"(?:tcp|udp|sctp)://[^\s/]+:\d+")


def in_environment(
    settings: "Mapping[str, Setting]", environ: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The texts of settings in the environment, by name, and notes on variables that were passed over.

    Empty counts as absent.
    """
    found: dict[str, str] = {}
    notes = []
    linked = bool(_LINK.fullmatch(environ.get("PDSERVE_PORT", "")))
    for name, setting in settings.items():
        text = environ.get(setting.variable)
        if not text:
            continue
        if name.endswith("_port") and _LINK.fullmatch(text):
            notes.append(
                f"{setting.variable}={text} is passed over: it is Kubernetes' link to a service, and no port "
                "for this server; `enableServiceLinks: false` in the pod's spec keeps such variables out"
            )
        elif name == "name" and linked and text.startswith("/"):
            notes.append(f"{setting.variable}={text} is passed over: it is Docker's link to a container")
        else:
            found[name] = text
    return found, tuple(notes)
