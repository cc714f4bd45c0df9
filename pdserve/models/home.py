"""Paths in pdserve's home: fetched and converted models, indexes, runtimes.

``PDSERVE_HOME`` if set, else the user's data folder by the platform's convention::

    models/NAME_infer/      an inference model, as fetched
    models/NAME_serving/    a serving model, as converted
    models/NAME_client/     its client configuration
    indexes/NAME/           a gallery and its index
    pipelines/NAME.yml      a user's own kind of service
    runtimes/NAME/          the Python environment of another runtime
    run/PID.json            a running server; see servers.py
    trials/HASH             a model that an engine has loaded and run; see engines/trial.py
"""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pdserve.files import user_path


def is_path(wanted: str) -> bool:
    """Whether what a person names is a path, and no name in the home: it has a separator, or is a dot."""
    separators = ("/", os.sep, os.altsep or "/")
    return wanted in (".", "..", "~") or any(each in wanted for each in separators)


@dataclass(frozen=True)
class Home:
    """The folder tree; paths are named, nothing is created."""

    root: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Home":
        """``PDSERVE_HOME`` of the environment given, else the platform's user data folder."""
        set_ = environ.get("PDSERVE_HOME")
        return cls(user_path(set_).absolute() if set_ else _data_folder(environ, sys.platform))

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def indexes(self) -> Path:
        return self.root / "indexes"

    @property
    def servers(self) -> Path:
        return self.root / "run"

    @property
    def pipelines(self) -> Path:
        return self.root / "pipelines"

    def model_names(self) -> list[str]:
        """The names of the models, in whatever form, sorted. An empty list where nothing can be read."""
        endings = ("_infer", "_serving", "_client")
        found = {
            name.removesuffix(end) for name in _folders(self.models) for end in endings if name.endswith(end)
        }
        return sorted(filter(None, found), key=str.lower)

    def fetched_names(self) -> list[str]:
        """The names of the inference models, sorted."""
        return [name.removesuffix("_infer") for name in _folders(self.models) if name.endswith("_infer")]

    def index_names(self) -> list[str]:
        """The names of the indexes and data sets, sorted."""
        return _folders(self.indexes)

    def inference_model(self, name: str) -> Path:
        return self.models / f"{name}_infer"

    def serving_model(self, name: str) -> Path:
        return self.models / f"{name}_serving"

    def serving_client(self, name: str) -> Path:
        return self.models / f"{name}_client"

    def index(self, name: str) -> Path:
        return self.indexes / name

    def runtime(self, name: str) -> Path:
        return self.root / "runtimes" / name


def _data_folder(environ: Mapping[str, str], platform: str) -> Path:
    """Where the platform keeps a program's data for its user; the same as platformdirs says.

    The clients come without that library, which weighs more than they do.
    """
    if platform == "win32":
        local = environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "pdserve" / "pdserve"
    if (shared := environ.get("XDG_DATA_HOME", "")).startswith("/"):
        return Path(shared) / "pdserve"
    folder = ("Library", "Application Support") if platform == "darwin" else (".local", "share")
    return Path.home().joinpath(*folder, "pdserve")


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, links included, hidden ones not; empty where it is unreadable."""
    with suppress(OSError):
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return sorted((p.name for p in paths if p.is_dir() or p.is_symlink()), key=str.lower)
    return []
