"""A mirror of the model host: a URL, a folder or ``file://``; scheme and host are replaced, the path kept."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pdserve.errors import UsageError

VARIABLE = "PDSERVE_MIRROR"


def choose(flag: str | None, environ: Mapping[str, str]) -> str | None:
    """The mirror to use: the flag, else ``PDSERVE_MIRROR``, else none."""
    return flag or environ.get(VARIABLE) or None


def resolve(url: str, mirror: str | None) -> str | Path:
    """Where to read ``url``: an http(s) address or a local path.

    A mirror with a path of its own has it put before the address's path.
    Raises UsageError for a mirror that is none of these.
    """
    path = urlsplit(url).path.lstrip("/")
    if mirror is None:
        return url
    wrong = UsageError(f"The mirror {mirror!r} is neither http://, https://, file:// nor a folder.")
    try:
        parts = urlsplit(mirror)
    except ValueError as error:
        raise wrong from error
    if parts.scheme in ("http", "https") and parts.netloc:
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}"))
    if parts.scheme == "file":
        from urllib.request import url2pathname

        # file://server/share is a network path on Windows.
        host = "" if parts.netloc in ("", "localhost") else f"//{parts.netloc}"
        return Path(url2pathname(host + parts.path)) / unquote(path)
    # A scheme of one letter is a drive.
    if len(parts.scheme) > 1 and "://" in mirror:
        raise wrong
    return Path(mirror).expanduser() / unquote(path)


def public(url: str) -> str:
    """A URL without the user name and password that may be in it, to show and to record."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
