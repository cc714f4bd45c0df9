"""Several services for one server, each with a name: those of ``pdserve: services:`` in config.yml.

::

    http_port: 18080
    pdserve:
      max_images: 32                       # settings of the server, as with one service
      services:
        - kind: classification             # a kind of the SERVICES table
          name: flowers                    # default: the kind
          models: {model: ./flowers}       # by role; or the name of a set of models, or of the only model
          options: {top_k: 3, threads: 2}  # any other setting of that kind
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pdserve.config_yml import FILES, ReadConfig, read_server
from pdserve.errors import SettingsError
from pdserve.pipelines import SERVICES
from pdserve.pipelines.entry import ServiceEntry
from pdserve.settings import ModelSettings, ServerSettings, ServiceSettings, describe, resolve

MAX_SERVICES = 100
_KEYS = ("kind", "name", "models", "options")
# It stands in a path between slashes.
_NAME = re.compile(r"\w[\w.-]{0,99}")
# Paths that begin so are not the pipeline protocol's.
_TAKEN = ("v1", "v2")


@dataclass(frozen=True)
class NamedService:
    """A service by name. ``models``: by role, a set of models under "model". ``where``: in error messages."""

    name: str
    kind: str
    models: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def entry(self) -> ServiceEntry:
        """Its kind's. Raises SettingsError for a user's file that is wrong."""
        return SERVICES[self.kind]


def checked(services: list[NamedService], where: str) -> list[NamedService]:
    """The same services. Raises SettingsError for none, too many, names that are unfit or there twice."""
    if not 0 < len(services) <= MAX_SERVICES:
        raise SettingsError(f"{where} has {len(services)} services; a server has 1 to {MAX_SERVICES}.")
    seen: set[str] = set()
    for each in services:
        if not _NAME.fullmatch(each.name) or each.name in _TAKEN:
            raise SettingsError(
                f"{where}: the name {each.name!r} cannot stand in an address; "
                "use letters, digits, dots and dashes."
            )
        if each.name in seen:
            raise SettingsError(
                f"{where} has two services with the name {each.name}; give each a name of its own, "
                "with name: in `pdserve: services:` of a file that --config names."
            )
        seen.add(each.name)
    return services


def read_services(path: Path) -> tuple[list[NamedService], ReadConfig]:
    """The services of a file, none where it has no such block, and its settings of the server.

    Raises SettingsError naming file and key.
    """
    server = read_server(path, ServerSettings.model_fields.keys() - {"name"})
    content = server.block.get("services")
    if content is None:
        return [], server
    where = f"{path}: pdserve.services"
    if not isinstance(content, list):
        raise SettingsError(f"{where} is no list; it has an entry with kind, name, models, options for each.")
    return checked([_service(f"{where}[{i}]", each) for i, each in enumerate(content)], where), server


def _service(where: str, content: Any) -> NamedService:
    if not isinstance(content, dict):
        raise SettingsError(f"{where} is {content!r:.60}; it takes the keys {', '.join(_KEYS)}.")
    for key in content:
        if key not in _KEYS:
            raise SettingsError(f"{where}.{key} is no key of a service; it takes {', '.join(_KEYS)}.")
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in SERVICES:
        given = "has no kind" if kind is None else f"has the kind {kind!r:.60}, which there is not"
        raise SettingsError(f"{where} {given}; give one of {', '.join(SERVICES)}.")
    entry = SERVICES[kind]
    name = content.get("name", entry.kind)
    if not isinstance(name, str):
        raise SettingsError(f"{where}.name is {name!r:.60}, which is no text; put it in quotation marks.")
    models, options = content.get("models") or {}, content.get("options") or {}
    roles = [*entry.roles, *(("model",) if entry.sets and "model" not in entry.roles else ())]
    if isinstance(models, str):
        if len(entry.roles) > 1 and not entry.sets:
            raise SettingsError(f"{where}.models is one name; {kind} takes {', '.join(roles)}, each by name.")
        models = {next(iter(entry.roles)) if len(entry.roles) == 1 else "model": models}
    for key, each in (("models", models), ("options", options)):
        if not isinstance(each, dict):
            raise SettingsError(f"{where}.{key} is {each!r:.60}; it takes names with their values.")
    for role, model in models.items():
        if role not in roles:
            raise SettingsError(f"{where}.models.{role} is no model of {kind}; it has {', '.join(roles)}.")
        if not isinstance(model, str):
            raise SettingsError(f"{where}.models.{role} is {model!r:.60}, which is no model's name.")
    known = {each.name for each in describe(entry)} - set(roles)
    for option in options:
        if option in ServerSettings.model_fields:
            raise SettingsError(
                f"{where}.options.{option} is the whole server's; write it under `pdserve:` itself."
            )
        if option not in known:
            raise SettingsError(f"{where}.options.{option} is no setting of {kind} that pdserve knows.")
    return NamedService(name, entry.kind, models, options, where)


def settings_of(
    service: NamedService,
    server: ReadConfig | None,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config: Path | None,
    ports: tuple[int, int],
) -> ServiceSettings:
    """A service's settings: options over the environment over its entry over the server's over defaults.

    ``flags`` hold for all services that have such a setting, and so do the variables of the environment that
    every kind has.
    ``ports``: the server's, where the file names none. Raises SettingsError.
    """
    own = dict(service.options)
    if config:
        for name in FILES & own.keys():
            if isinstance(own[name], str):
                own[name] = config.parent / own[name]
    shared = dict(server.settings) if server else {}
    shared = {name: value for name, value in shared.items() if name in ServerSettings.model_fields}
    own |= {"name": service.name}
    models = {role: {"model": model} for role, model in service.models.items() if role in service.entry.roles}
    if "model" in service.models and "model" not in service.entry.roles:
        own["model"] = service.models["model"]
    of_all = {*ServerSettings.model_fields, *ModelSettings.model_fields} - {"name", "model"}
    variables = {f"PDSERVE_{name.upper()}" for name in of_all} | {"PDSERVE_PORT"}
    if shared.get("http_port") is shared.get("rpc_port") is None:
        shared |= dict(zip(("http_port", "rpc_port"), ports, strict=True))
    read = ReadConfig(
        shared | own, models, server.notes if server else (), server.block if server else {}, {}
    )
    kept = {name: value for name, value in environ.items() if name in variables}
    known = {each.name for each in describe(service.entry)}
    own_flags = {name: each for name, each in flags.items() if name in known}
    found = resolve(service.entry, own_flags, kept, config, read)
    return replace(found, notes=()) if server is None else found
