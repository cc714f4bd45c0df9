"""The SERVICES table: for each kind of service its pipeline, options, answer, default ports and names.

A kind of its own code is an entry here; one of the usual parts is a file in ``kinds/``, or a user's own in
``pipelines/`` of pdserve's home. Importing this loads no NumPy, no engine and no settings library, and reads
no file; an entry's parts are loaded when they are used.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pdserve.errors import PdserveError
from pdserve.pipelines.entry import KINDS, Role, ServiceEntry, entry_of

__all__ = ["SERVICES", "TASKS", "Role", "ServiceEntry"]

_ENTRIES = (
    ServiceEntry(
        kind="classification",
        help="Image classification: labels with scores.",
        name="imagenet",
        http_port=18080,
        rpc_port=9993,
        roles={"model": Role("ResNet50_vd", "A model's name, folder or address.")},
        pipeline="pdserve.pipelines.classification:open_classification",
        options="pdserve.settings:ClassificationOptions",
        answer="pdserve.answers:Labels",
        items="labels",
    ),
)
# A model's task -> the service that answers it.
TASKS: Mapping[str, str] = {
    "classification": "classification",
    "multilabel": "classification",
    "attributes": "classification",
    "embedding": "embedding",
    "detection": "detection",
}
_KINDS = ("recognition", "detection", "embedding", "attributes", "face")
_SUFFIXES = (".yml", ".yaml")


class Services(Mapping[str, ServiceEntry]):
    """The kinds of service by name: pdserve's own, and then the user's whose files are right.

    A file's path, ``….yml``, is a name too, and what it defines is a kind of this process from then on. The
    name of a file that is wrong is in the table, and taking it raises what is wrong.
    """

    def __init__(self) -> None:
        self._entries: dict[str, ServiceEntry] = {entry.kind: entry for entry in _ENTRIES}
        self._files: dict[Path, ServiceEntry | PdserveError] = {}

    def __getitem__(self, kind: str) -> ServiceEntry:
        """Raises KeyError, and SettingsError for a file that is wrong."""
        if kind in self._entries:
            return self._entries[kind]
        if kind in _KINDS:
            self._entries[kind] = _built_in(kind)
            return self._entries[kind]
        if kind.endswith(_SUFFIXES):
            found = self._read(Path(kind))
        else:
            path = next((path for path in _own_files() if path.stem == kind), None)
            if path is None:
                raise KeyError(kind)
            found = self._read(path)
        if isinstance(found, PdserveError):
            raise found
        self._entries[found.kind] = found
        return found

    def __iter__(self) -> Iterator[str]:
        yield from (*(entry.kind for entry in _ENTRIES), *_KINDS)
        own = [found.kind for path in _own_files() if isinstance(found := self._read(path), ServiceEntry)]
        yield from own
        named = [kind for kind in self._entries if kind not in (*own, *_KINDS)]  # by their paths
        yield from named[len(_ENTRIES) :]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, kind: object) -> bool:
        return isinstance(kind, str) and (
            kind in self._entries
            or kind in _KINDS
            or kind.endswith(_SUFFIXES)
            or any(path.stem == kind for path in _own_files())
        )

    def broken(self) -> Mapping[Path, PdserveError]:
        """The user's files that are wrong, and what is."""
        read = {path: self._read(path) for path in _own_files()}
        return {path: found for path, found in read.items() if isinstance(found, PdserveError)}

    def _read(self, path: Path) -> ServiceEntry | PdserveError:
        if path not in self._files:
            from pdserve.errors import OnlyClientError, SettingsError

            try:
                from pdserve.pipelines.definition import read
            except ModuleNotFoundError:
                return OnlyClientError(f"{path}, a kind of service of your own,")
            try:
                entry = read(path)
                known = self._entries.get(entry.kind)
                if entry.kind in _KINDS or (known and known.path != path):
                    raise SettingsError(f"{path}: there is a service {entry.kind} already; rename the file.")
                self._files[path] = entry
            except SettingsError as error:
                self._files[path] = error
        return self._files[path]


def _built_in(kind: str) -> ServiceEntry:
    """A kind of pdserve's own; that its file is right is for the tests to see."""
    import json

    if (listed := KINDS / "kinds.json").exists():  # written for pdserve-client, which has no YAML
        return entry_of(kind, json.loads(listed.read_text("utf-8"))[kind], KINDS / f"{kind}.yml")
    import yaml

    path = KINDS / f"{kind}.yml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where PyYAML is built with it
    return entry_of(kind, yaml.load(path.read_text("utf-8"), loader), path)


def _own_files() -> list[Path]:
    """The user's files, by name."""
    from pdserve.models.home import Home

    folder = Home.from_environ(os.environ).pipelines
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    except OSError:
        return []


SERVICES = Services()
