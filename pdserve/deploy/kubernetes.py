"""``pdserve export kubernetes``: manifests of a service, and a ServingRuntime for KServe."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from pdserve import __version__, console
from pdserve.commands import options as o
from pdserve.deploy import container
from pdserve.deploy.bundle import Bundle, write
from pdserve.deploy.command import Name, Out, bring
from pdserve.deploy.templates import fill
from pdserve.pipelines import SERVICES
from pdserve.services.signals import AFTER_GRACE_S
from pdserve.settings import PANELS

# Seconds in which a pod that goes is taken out of the endpoints, before it is told to stop.
_DRAIN_S = 5
# KServe's own port, and where it puts a model (kserve.github.io, "ServingRuntime").
_KSERVE_PORT, _KSERVE_MODEL = 8080, "/mnt/models"
_MANIFESTS = ("deployment", "service", "poddisruptionbudget", "horizontalpodautoscaler", "networkpolicy")


@o.with_settings(SERVICES.values(), PANELS, without=("log_file",))
def export(
    out: Out,
    service: o.ServiceOption = "classification",
    config: o.ConfigOption = None,
    name: Name = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="NAME", help="The image, as you push it; default: NAME and pdserve's version."
        ),
    ] = None,
    as_json: o.Json = False,
    **given: Any,
) -> None:
    """Write manifests for Kubernetes: the pods with their probes, scaling by what waits, who may call.

    The image has pdserve and the models; README.md in the folder says where.
    """
    made, home = bring(service, config, name, given)
    path = write(made, home, out, texts(made, image), with_home=False)
    for note in made.notes:
        console.say(f"Note: {note}.")
    console.answer({"path": str(path), "service": made.entry.kind}, f"{made.title}: {path}", as_json)
    if not as_json:
        console.say(f"Next: `kubectl apply -f {path}`, once the image is there: {path / 'README.md'}.")


def texts(made: Bundle, image: str | None = None) -> Mapping[str, str]:
    """The manifests and README.md, by path."""
    words = container.command(made)
    ports = container.ports(made)
    low = any(port < 1024 for port in ports.values())
    called = {name: port for name, port in ports.items() if name != "metrics"}
    server = made.settings.server
    image = image or container.image(made, __version__)
    values: dict[str, str | Sequence[str]] = {
        "name": made.name,
        "title": made.title.splitlines()[0],
        "version": json.dumps(__version__),
        "image": json.dumps(image),
        "image_name": image,
        "args": _args(words),
        "home": container.HOME,
        "metrics_port": str(ports["metrics"]),
        "scheme": "HTTPS" if made.tls else "HTTP",
        "drain_s": str(_DRAIN_S),
        "stop_s": str(_DRAIN_S + math.ceil(server.grace_s + AFTER_GRACE_S) + 5),
        "queue": str(max(1, made.settings.first_model.max_queue_size // 16)),
        "environment": _variables(made.environment),
        "gpus": [f'nvidia.com/gpu: "{len(made.gpus)}"'] if made.gpus else (),
        "capabilities": ['add: ["NET_BIND_SERVICE"]'] if low else (),
        "mounts": ["- name: secrets", f"  mountPath: {container.SECRETS}", "  readOnly: true"]
        if made.secrets
        else (),
        "volumes": ["- name: secrets", "  secret:", f"    secretName: {made.name}"] if made.secrets else (),
        "secrets": [
            f"kubectl create secret generic {made.name} "
            + " ".join(f"--from-file={each}" for each in made.secrets.values())
        ]
        if made.secrets
        else (),
    }

    def listed(lines: Mapping[str, int], form: str) -> list[str]:
        return [line for name, port in lines.items() for line in form.format(name=name, port=port).split("|")]

    with_ports = {
        "deployment": listed(ports, "- name: {name}|  containerPort: {port}"),
        "service": listed(called, "- name: {name}|  port: {port}|  targetPort: {name}|  appProtocol: {name}"),
        "networkpolicy": listed(called, "- port: {name}"),
    }
    written = {
        f"{each}.yaml": fill(f"kubernetes/{each}.yaml", values | {"ports": with_ports.get(each, ())})
        for each in _MANIFESTS
    }
    if set(made.entry.roles) == {"model"}:
        own = replace(
            made,
            models={"model": (None, _KSERVE_MODEL)},
            options=(*made.options, "--http-port", str(_KSERVE_PORT)),
        )
        values |= {"args": _args(container.command(own))}
        written["kserve/servingruntime.yaml"] = fill("kubernetes/servingruntime.yaml", values)
    return {**written, "README.md": fill("kubernetes/README.md", values)}


def _args(words: Sequence[str]) -> str:
    """Arguments as a list on one line; ``$(`` would be a variable (kubernetes.io, Container, "args")."""
    return json.dumps([word.replace("$(", "$$(") for word in words])


def _variables(environment: Mapping[str, str]) -> list[str]:
    lines = [
        line
        for name, text in environment.items()
        for line in (f"  - name: {name}", f"    value: {json.dumps(text.replace('$(', '$$('))}")
    ]
    return ["env:", *lines] if lines else []
