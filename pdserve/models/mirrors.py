"""Where an address of the model host is read: there, or from mirrors in order.

Mirrors stand for the hosts that the catalog names, and replace them: where all mirrors fail, the public host
is not asked. An address on another host is read where it says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pdserve.errors import UsageError
from pdserve.files import user_path
from pdserve.models import catalog


def choose_mirrors(given: Sequence[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """The mirrors to try, in order: those given, else those of ``PDSERVE_MIRROR``, between commas."""
    return tuple(given) or tuple(
        each.strip() for each in environ.get("PDSERVE_MIRROR", "").split(",") if each.strip()
    )


def places(url: str, mirrors: Sequence[str]) -> list[str | Path]:
    """Where to read ``url``, in order: http(s) addresses, and local paths for folders and ``file://``.

    Raises UsageError for a mirror that is none, whether it would be asked or not.
    """
    replaced = [mirrored(url, mirror) for mirror in mirrors]
    return replaced if replaced and urlsplit(url).hostname in catalog.hosts() else [mirrored(url, None)]


def mirrored(url: str, mirror: str | None) -> str | Path:
    """Where to read ``url``, an http(s) address or a local path: the mirror replaces scheme and host.

    ``mirror``: a URL, a folder or ``file://``; a path in it is put before the address's path. Raises
    UsageError for a mirror that is none of these.
    """
    if mirror is None:
        return _local(url) or url
    path = urlsplit(url).path.lstrip("/")
    wrong = UsageError(f"The mirror {mirror!r} is neither http://, https://, file:// nor a folder.")
    try:
        parts = urlsplit(mirror)
    except ValueError as error:
        raise wrong from error
    if parts.scheme in ("http", "https") and parts.netloc:
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}"))
    if folder := _local(mirror):
        return folder / unquote(path)
    # A scheme of one letter is a drive.
    if len(parts.scheme) > 1 and "://" in mirror:
        raise wrong
    return user_path(mirror) / unquote(path)


def _local(url: str) -> Path | None:
    """The path of a ``file://`` address, None for another."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    from urllib.request import url2pathname

    # file://server/share is a network path on Windows.
    host = "" if parts.netloc in ("", "localhost") else f"//{parts.netloc}"
    return Path(url2pathname(host + parts.path))
