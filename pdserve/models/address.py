"""Reads what a person names: a name of the catalog, or the address of a model.

An address is one of these; its model's name is the last part, without ``_infer`` and an archive's ending::

    https://HOST/…/NAME_infer.tar    an archive (also .tar.gz, .tgz; also http)
    hf://OWNER/NAME[@REVISION]       a repository of a model hub
    ./NAME, /…/NAME_infer            a folder with an inference model
    ./NAME_infer.tar                 an archive of this machine
"""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pdserve.errors import UsageError
from pdserve.files import user_path
from pdserve.models import catalog
from pdserve.models.catalog import Archive, Entry, Folder, Hub, Source
from pdserve.models.home import is_path

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_ENDINGS = (".tar.gz", ".tgz", ".tar")
_HUB = re.compile(r"hf://([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,200}))?", re.ASCII)
# What is a file name on every system, and cannot be taken for an option or a path.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
# Devices of Windows, whatever their ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_FORMS = (
    "`pdserve fetch --list` shows the names; addresses are https://HOST/…/NAME_infer.tar, hf://OWNER/NAME, "
    "and a folder or archive of this machine, ./NAME"
)


def is_source(wanted: str) -> bool:
    """Whether a model is fetched to be opened: from an address or an archive; a folder is opened in place."""
    return _SCHEME.match(wanted) is not None or (is_path(wanted) and user_path(wanted).is_file())


def entry_for(address: str) -> Entry:
    """The entry of a catalog's name, or one made from an address: its name, and its source.

    An address that is a catalog's gives the catalog's entry. An entry made has no task, no aliases and no
    generation: the model itself says them when it is there. Raises UsageError for a name that the catalog
    has not, with the nearest, for an address of another kind or without a name in it, and for a path where
    there is nothing.
    """
    scheme = _SCHEME.match(address)
    if scheme is None:
        return _local(address) if is_path(address) else _known(address)
    if scheme[1].lower() == "hf":
        found = _HUB.fullmatch(address)
        if found is None or ".." in address:
            raise UsageError(
                f"{address!r} is no repository of a hub; the form is hf://OWNER/NAME[@REVISION]."
            )
        owner, name, revision = found.groups()
        return _entry(address, name.removesuffix("_infer"), Hub(owner, name, revision or "main"))
    if scheme[1].lower() not in ("http", "https"):
        raise UsageError(f"Models cannot be fetched from {address!r}; {_FORMS}.")
    source = _archive(address)
    known = next((e for e in catalog.load().values() if e.source == source), None)
    return known or _entry(address, _stem(unquote(urlsplit(address).path)), source)


def _known(name: str) -> Entry:
    if name not in catalog.load() and Path(name).exists():
        raise UsageError(f"The catalog has no {name!r}; type `pdserve fetch ./{name}` for what is here.")
    return catalog.get(name)


def _local(address: str) -> Entry:
    path = user_path(address).resolve()
    if path.is_dir():
        return _entry(address, path.name.removesuffix("_infer"), Folder(path))
    if not path.exists():
        raise UsageError(f"There is no file or folder {address!r}; {_FORMS}.")
    if not path.name.lower().endswith(_ENDINGS):
        raise UsageError(f"{address!r} is no folder and no archive ({', '.join(_ENDINGS)}); {_FORMS}.")
    return _entry(address, _stem(path.name), Archive(path.as_uri()))


def _archive(address: str) -> Archive:
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or not parts.path.lower().endswith(_ENDINGS):
        raise UsageError(f"{address!r} is no address of an archive ({', '.join(_ENDINGS)}); {_FORMS}.")
    return Archive(address)


def _stem(path: str) -> str:
    """The last part of a path, without an archive's ending and ``_infer``."""
    last = path.rpartition("/")[2]
    ending = next(ending for ending in _ENDINGS if last.lower().endswith(ending))
    return last[: -len(ending)].removesuffix("_infer")


def _entry(address: str, name: str, source: Source) -> Entry:
    if not _NAME.fullmatch(name) or name.endswith(".") or _DEVICE.fullmatch(name):
        raise UsageError(
            f"{address!r} gives the model the name {name!r}, which is no safe file name; "
            "rename the file or folder: letters, digits, '.', '_', '+' and '-', at most 128."
        )
    return Entry(name=name, family="", task=None, source=source)
