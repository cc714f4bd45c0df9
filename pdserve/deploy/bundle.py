"""What is deployed: one service, its options as a command, and a home folder with its models.

::

    home/
      models/NAME_serving/     each model, and the forms of it that engines made
      indexes/NAME/            of a service that searches: the current version
      pipelines/KIND.yml       of a kind that is the user's own
      config.yml labels.txt    where the settings name such files

Keys and certificates are not in it, since images and repositories are copied about: `Bundle.secrets` names
them, and each form of deployment has a place for them.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdserve.errors import SettingsError, UsageError
from pdserve.files import disk_errors, replace_folder, user_path
from pdserve.formats.serving_model import DERIVED, folder_name
from pdserve.index import store
from pdserve.locks import file_lock
from pdserve.models.find import find_serving_model
from pdserve.models.home import Home
from pdserve.pipelines import ServiceEntry
from pdserve.pipelines.loading import index_folder
from pdserve.settings import ServiceSettings, Setting, describe

HOME = "home"
MARK = ".pdserve-export"
_CONFIG, _LABELS = "config.yml", "labels.txt"
_SECRETS = {"api_key_file": ("--api-key", "keys.txt"), "tls_cert": ("--tls-cert", "tls.crt")}
_SECRETS["tls_key"] = ("--tls-key", "tls.key")
# Settings whose words do not depend on whether they were given.
_OWN = {"index", "labels", "api_key", "host", "offline", *_SECRETS}
# A name of Kubernetes' objects (kubernetes.io, "DNS label names"), which will do for a unit and an image too.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")


@dataclass(frozen=True)
class Bundle:
    """A service as it is deployed.

    ``models``: by role a folder and its name in the bundle's home; ``index``: likewise. ``options``: words of
    the command besides. ``environment``: settings that have no option. ``secrets``: option -> the name of the
    file that it takes. ``files``: further files of the home by name. ``notes``: what the user is to know.
    """

    name: str
    entry: ServiceEntry
    settings: ServiceSettings
    models: Mapping[str, tuple[Path | None, str]]
    index: tuple[Path | None, str] | None = None
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def gpus(self) -> tuple[int, ...]:
        """The numbers of the GPUs that its models run on."""
        devices = {each for model in self.settings.models.values() for each in model.devices}
        return tuple(sorted(int(each.partition(":")[2] or 0) for each in devices if each != "cpu"))

    @property
    def ports(self) -> Mapping[str, int]:
        """The listeners that are on, by name: http, grpc, metrics."""
        server = self.settings.server
        named = {"http": server.http_port, "grpc": server.rpc_port, "metrics": server.prometheus_port}
        return {name: port for name, port in named.items() if port is not None}

    @property
    def tls(self) -> bool:
        return "--tls-cert" in self.secrets

    @property
    def title(self) -> str:
        """In words: ``classification with ResNet50_vd``."""
        names = dict.fromkeys(name for folder, name in self.models.values() if name != "none")
        return f"{self.entry.kind} with {' and '.join(names)}"

    def command(self, home: str, secrets: str, host: str = "") -> tuple[str, ...]:
        """The words after ``pdserve``.

        ``home``, ``secrets``: the folders of the bundle's home and of the secrets where it runs; ``host``:
        where it listens unless the settings say.
        """
        words = ["serve", self.entry.kind]
        words += ["--config", f"{home}/{_CONFIG}"] if _CONFIG in self.files else []
        for role, (_, name) in self.models.items():
            words += [f"--{role}", name]
        words += ["--index", self.index[1]] if self.index else []
        words += ["--labels", f"{home}/{_LABELS}"] if _LABELS in self.files else []
        words += self.options
        sources = self.settings.sources
        given = "host" in {*sources.given, *sources.block}
        words += ["--host", self.settings.server.host if given or not host else host]
        for option, name in self.secrets.items():
            words += [option, f"{secrets}/{name}"]
        return (*words, "--offline")


def bundle(
    entry: ServiceEntry, settings: ServiceSettings, home: Home, name: str | None, config: Path | None
) -> Bundle:
    """What is to be deployed of a service whose models are here.

    Raises UsageError, SettingsError for what a deployment cannot have, ModelError for a model that is not
    here.
    """
    server = settings.server
    if 0 in (server.http_port, server.rpc_port, server.prometheus_port):
        raise UsageError("A port of 0 means any free one, which only a server can find; give a number.")
    if server.log_file:
        raise UsageError(
            f"--log-file {server.log_file}: the log goes to standard error, which whatever runs the server "
            "keeps; leave it out."
        )
    if server.api_key and "api_key" not in settings.sources.given:
        raise SettingsError(
            f"{config}: it holds a key, which would be in every copy of these files; give --api-key FILE."
        )
    secrets = {option: file for key, (option, file) in _SECRETS.items() if getattr(server, key)}
    notes = []
    if server.api_key:  # in the environment
        secrets["--api-key"] = _SECRETS["api_key_file"][1]
        notes.append("the key in PDSERVE_API_KEY was not written; put it into keys.txt, as README.md says")
    files = {_CONFIG: config} if config else {}
    if labels := getattr(settings.options, "labels", None):
        files[_LABELS] = labels
    index = None
    if getattr(settings.options, "index", None) is not None:
        folder = index_folder(settings, home)
        index = folder, (folder.parent if folder.name == "index" else folder).resolve().name
    options, environment = _words(entry, settings)
    made = Bundle(
        name=name or f"pdserve-{entry.kind}".lower().replace("_", "-"),
        entry=entry,
        settings=settings,
        models=_models(entry, settings, home),
        index=index,
        options=options,
        environment=environment,
        secrets=secrets,
        files=files,
        notes=tuple(notes),
    )
    if not _NAME.fullmatch(made.name):
        raise UsageError(
            f"--name {made.name!r}: a name has small letters, digits and dashes, at most 52, and starts "
            "with a letter, as Kubernetes wants it."
        )
    return made


def _models(
    entry: ServiceEntry, settings: ServiceSettings, home: Home
) -> Mapping[str, tuple[Path | None, str]]:
    """By role the model's folder and its name in the bundle, where two folders may have one name."""
    found: dict[str, tuple[Path | None, str]] = {}
    for role in entry.roles:
        if role not in settings.models:
            found[role] = None, "none"
            continue
        folder = find_serving_model(settings.models[role].model, home, settings.config_dir)
        name = folder_name(folder)
        taken = {known: other for other, known in found.values()}
        if taken.get(name, folder) != folder:
            name = f"{role}_{name}"
        found[role] = folder, name
    return found


def _words(entry: ServiceEntry, settings: ServiceSettings) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The options that were given, by option or variable, as words; those without an option as variables."""
    words: list[str] = []
    environment: dict[str, str] = {}
    for setting in describe(entry):
        if setting.name not in settings.sources.given or setting.name in {*_OWN, *entry.roles, "model"}:
            continue
        value = _value(setting, settings)
        if setting.name == "devices":
            numbers = ",".join(each.partition(":")[2] or "0" for each in value)
            words += ["--cpu"] if value == ("cpu",) else ["--gpu", numbers]
        elif setting.kind == "repeated" and setting.flags:
            words += [word for each in value for word in (setting.flags[0], str(each))]
        elif setting.kind == "switch" and setting.flags and value:
            words.append(setting.flags[0])
        elif setting.kind == "switch" or not setting.flags:
            environment[setting.variable] = _text(value)
        else:
            words += [setting.flags[0], _text(value)]
    return tuple(words), environment


def _value(setting: Setting, settings: ServiceSettings) -> Any:
    groups = (settings.options, settings.server, settings.first_model)
    return next(getattr(group, setting.name) for group in groups if hasattr(group, setting.name))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def write(made: Bundle, home: Home, out: Path, texts: Mapping[str, str], with_home: bool = True) -> Path:
    """Write a folder of these texts and, ``with_home``, the bundle's home; it appears when it is complete.

    Raises UsageError where there is something else at ``out``, DiskError.
    """
    folder = user_path(out).absolute()
    ours = (folder / MARK).is_file()
    if folder.exists() and not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and was not written by `pdserve export`; give --out another name.")
    lock = home.root / "exports.lock"
    with file_lock(lock, folder.name), disk_errors(folder), replace_folder(folder) as new:
        (new / MARK).write_text("Written by `pdserve export`, which may replace this folder.\n", "utf-8")
        for name, text in texts.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_text(text, "utf-8", newline="\n")
        if with_home:
            _write_home(made, new / HOME)
        for path in (new, *new.rglob("*")):  # another user reads them there
            path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def _write_home(made: Bundle, folder: Path) -> None:
    for source, name in {each for each in made.models.values() if each[0]}:
        assert source
        target = folder / "models" / f"{name}_serving"
        _copy_files(source, target)
        if (source / DERIVED).is_dir():
            shutil.copytree(source / DERIVED, target / DERIVED, copy_function=shutil.copyfile)
    if made.index and made.index[0]:
        source, target = made.index[0], folder / "indexes" / made.index[1]
        _copy_files(source, target)
        if manifest := store.read_manifest(source):
            current = store.version_folder(Path(), manifest.version)
            _copy_files(source / current, target / current)
    if not made.entry.built_in and made.entry.path:
        (folder / "pipelines").mkdir(parents=True)
        shutil.copyfile(made.entry.path, folder / "pipelines" / f"{made.entry.kind}.yml")
    for name, path in made.files.items():
        shutil.copyfile(path, folder / name)


def _copy_files(source: Path, target: Path) -> None:
    """The files of a folder, not those of its folders: a model's may hold whatever its maker left there."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith((".lock", ".tmp")):
            shutil.copyfile(path, target / path.name)
