"""``pdserve doctor``: check packages, engines, devices, ports and proxies, and say how to fix them."""

import importlib.metadata
import itertools
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from pdserve import __version__, console, engines, process
from pdserve.commands.options import Json
from pdserve.commands.runtimes import RUNTIMES
from pdserve.engines.table import engine_info
from pdserve.errors import PdserveError
from pdserve.machine import cores, memory_limit
from pdserve.models import servers
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES

Status = Literal["ok", "missing", "failed", "taken", "note"]

# pdserve's own requirements, by their names on the package index; of alternatives one is enough.
_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "pillow",
    "openvino",
    "p2o",
    "faiss-cpu|faiss-gpu",
    "fastapi",
    "uvicorn",
    "grpcio",
    "protobuf",
    "httpx",
    "requests",
)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


@dataclass(frozen=True)
class Check:
    """One line of the report; ``remedy`` is the command that fixes it, where there is something to fix."""

    area: str
    name: str
    state: Status
    detail: str
    remedy: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def doctor(as_json: Json = False) -> None:
    """Check packages, engines, devices, servers, ports and proxies, and show how to fix what is wrong."""
    findings = examine(os.environ)
    if as_json:
        for finding in findings:
            console.json_line(finding.to_json())
    else:
        rows = [(f.area, f.name, f.state, f.detail, f.remedy or "") for f in findings]
        console.table(("area", "what", "state", "detail", "to fix it"), rows)


def examine(environ: Mapping[str, str]) -> list[Check]:
    """Check everything; nothing found here raises but Ctrl-C."""
    found = []
    for check in itertools.chain(
        _machine(environ),
        _packages(),
        _engines(),
        _runtimes(environ),
        _pipelines(),
        _servers(environ),
        _ports(),
        _proxies(environ),
    ):
        if process.was_interrupted():  # an engine's import took it for a failure of its own
            raise KeyboardInterrupt
        found.append(check)
    return found


def _machine(environ: Mapping[str, str]) -> Iterator[Check]:
    python = f"{platform.python_version()} at {sys.executable}"
    yield Check("machine", "pdserve", "ok", f"{__version__} at {Path(__file__).parents[1]}")
    yield Check("machine", "Python", "ok", python)
    yield Check("machine", "system", "ok", f"{platform.platform()}, {_cores()}")
    yield _memory()
    yield _home(Home.from_environ(environ).root)


def _cores() -> str:
    """The cores that may be used, and the machine's where those are more."""
    usable, all_ = cores(), os.cpu_count()
    return (
        f"{usable} cores"
        if usable == all_
        else f"{usable} of {all_} cores (affinity or the container's quota)"
    )


def _memory() -> Check:
    allowed = memory_limit()
    detail = f"{allowed / 2**30:.1f} GiB, of which a server's requests have {allowed / 4 / 2**30:.1f}"
    return Check("machine", "memory", "ok", f"{detail}; --max-inflight-bytes sets that")


def _home(root: Path) -> Check:
    """Whether the folder of models, or the nearest existing one above it, is writable."""
    try:
        existing = next(path for path in (root, *root.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        writable = existing.is_dir() and os.access(existing, os.W_OK)
    except (OSError, StopIteration):
        writable = False
    if not writable:
        remedy = "set PDSERVE_HOME to a folder of yours"
        return Check("machine", "PDSERVE_HOME", "failed", f"{root} cannot be written", remedy)
    return Check("machine", "PDSERVE_HOME", "ok", f"{root}, {free / 2**30:.1f} GiB free")


def _packages() -> Iterator[Check]:
    for names in _PACKAGES:
        first = names.partition("|")[0]
        for name in names.split("|"):
            try:
                yield Check("package", name, "ok", importlib.metadata.version(name))
                break
            except importlib.metadata.PackageNotFoundError:
                continue
        else:
            yield Check("package", first, "missing", "not installed", f"pip install {first}")


def _engines() -> Iterator[Check]:
    """Each engine on each device, by running a tiny model of each format."""
    for name in engines.ENGINES:
        for device in ("cpu", "gpu:0"):
            yield _engine(name, device)


def _engine(name: str, device: str) -> Check:
    what, runs = f"{name} on {device}", dict[str, str]()
    fails: dict[str, Check] = {}
    for form in engines.PROBES:
        try:
            runs[form] = engines.probe(name, engines.Device.parse(device), form)
        except PdserveError as error:
            text, _, remedy = error.message.partition("`")
            state: Status = "missing" if error.code in ("engine_missing", "device") else "failed"
            fails[form] = Check("engine", what, state, text.rstrip(" ;:,"), remedy.partition("`")[0] or None)
        except Exception as error:  # a broken installation fails in its own ways; the report goes on
            fails[form] = Check("engine", what, "failed", f"{type(error).__name__}: {error}")
    if not runs:
        failed = next(iter(fails.values()))
        if engine_info(name).installed:
            return failed
        brings = engines.ENGINES[name].help.rstrip(".")
        return replace(failed, detail=f"{failed.detail} ({brings})")
    own, *others = dict.fromkeys(runs.values())
    detail = own + "".join(f"; a detector of Paddle 3: {other}" for other in others)
    for form, failed in fails.items():  # one: what every model needs is there
        state = "note" if failed.state == "missing" else failed.state
        return replace(failed, state=state, detail=f"{detail}; models of {form} not: {failed.detail}")
    return Check("engine", what, "ok", detail)


def _runtimes(environ: Mapping[str, str]) -> Iterator[Check]:
    """Each other runtime that this system can have."""
    for name, entry in RUNTIMES.items():
        try:
            if found := resolve_name(entry.find)(Home.from_environ(environ), environ):
                yield Check("runtime", name, "ok", found)
        except PdserveError as error:
            detail = error.message.partition(";")[0]
            yield Check("runtime", name, "missing", detail, f"pdserve runtime install {name}")


def _pipelines() -> Iterator[Check]:
    """Each kind of service that a file of the user's defines, or fails to."""
    for kind, entry in SERVICES.items():
        if entry.path and not entry.built_in:
            yield Check("pipeline", str(entry.path), "ok", f"pdserve serve {kind}")
    for path, error in SERVICES.broken().items():
        yield Check("pipeline", str(path), "failed", error.message.removeprefix(f"{path}: "), "correct it")


def _servers(environ: Mapping[str, str]) -> Iterator[Check]:
    """Each running server of the home's register."""
    for server in servers.running(Home.from_environ(environ)):
        doors = [each for each in (server.http, server.rpc and f"gRPC {server.rpc}") if each]
        where = "" if server.is_here else f", on {server.machine}"
        yield Check("server", f"{server.kind}, pid {server.pid}{where}", "ok", " and ".join(doors))


def _ports() -> Iterator[Check]:
    for service, entry in SERVICES.items():
        for protocol, port in zip(("HTTP", "gRPC"), entry.ports, strict=True):
            what = f"{port} ({service}, {protocol})"
            with socket.socket() as probe:
                if sys.platform != "win32":
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    option = "--http-port" if protocol == "HTTP" else "--rpc-port"
                    remedy = f"stop what runs there, or pdserve serve {service} {option} N"
                    yield Check("port", what, "taken", error.strerror or "in use", remedy)
                else:
                    yield Check("port", what, "ok", "free")


def _proxies(environ: Mapping[str, str]) -> Iterator[Check]:
    """Variables that would send other programs' requests to this machine through a proxy."""
    listed = [part.strip() for key in ("no_proxy", "NO_PROXY") for part in environ.get(key, "").split(",")]
    spared = dict.fromkeys(part for part in listed if part)
    local = ("127.0.0.1", "localhost")
    command = "set" if sys.platform == "win32" else "export"
    remedy = f"{command} no_proxy={','.join(dict.fromkeys((*spared, *local)))}"
    for key in (key for name in _PROXIES for key in (name, name.upper())):
        if key not in set(environ) or not environ[key]:  # on Windows either spelling is the other
            continue
        if spared.keys() & {"*", *local}:
            yield Check("proxy", key, "ok", "set; no_proxy excludes this machine")
        else:
            detail = "set; pdserve ignores it for this machine, other clients would not"
            yield Check("proxy", key, "note", detail, remedy)
