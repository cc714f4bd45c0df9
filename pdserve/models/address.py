"""Reads what a person names: a name of the catalog, or the address of a model.

An address is ``https://…/NAME_infer.tar`` (also ``.tar.gz``, ``.tgz``). The name of its model is the last
part of its path, without ``_infer`` and the file's ending.
"""

import re
from urllib.parse import unquote, urlsplit

from pdserve.errors import UsageError
from pdserve.models import catalog
from pdserve.models.catalog import Archive, Entry, Source

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_ENDINGS = (".tar", ".tar.gz", ".tgz")
# What is a file name on every system, and cannot be taken for an option or a path.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
# Devices of Windows, whatever their ending.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_FORMS = "`pdserve fetch --list` shows the names; an address is https://HOST/…/NAME_infer.tar"


def entry_for(address: str) -> Entry:
    """The entry of a catalog's name, or one made from an address: its name, and its source.

    An address that is a catalog's gives the catalog's entry. An entry made has no task, no aliases and no
    generation: the model itself says them when it is there. Raises UsageError for a name that the catalog
    has not, with the nearest, and for an address of another kind or without a name in it.
    """
    scheme = _SCHEME.match(address)
    if scheme is None:
        return catalog.get(address)
    if scheme[1].lower() not in ("http", "https"):
        raise UsageError(f"Models cannot be fetched from {address!r}; {_FORMS}.")
    source = _archive(address)
    known = next((e for e in catalog.load().values() if e.source == source), None)
    return known or _entry(address, _stem(unquote(urlsplit(address).path)), source)


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
    last = path.rstrip("/").rpartition("/")[2]
    ending = next((ending for ending in sorted(_ENDINGS, key=len)[::-1] if last.lower().endswith(ending)), "")
    return last.removesuffix(last[len(last) - len(ending) :]).removesuffix("_infer")


def _entry(address: str, name: str, source: Source) -> Entry:
    if not _NAME.fullmatch(name) or name.endswith(".") or _DEVICE.fullmatch(name):
        raise UsageError(
            f"{address!r} gives the model the name {name!r}, which is no safe file name; "
            "rename the file or folder: letters, digits, '.', '_', '+' and '-', at most 128."
        )
    return Entry(name=name, family="", task=None, source=source)
