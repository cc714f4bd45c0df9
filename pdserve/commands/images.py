"""The images that a command line names: files, folders, URLs, standard input."""

import os
import select
import stat
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from pdserve import console
from pdserve.errors import ClientError, ImageError, UsageError
from pdserve.files import format_size, read_errors
from pdserve.proxies import Proxy, find_proxy, is_this_machine
from pdserve.vision.image_files import SUFFIXES, find_images, summaries

if TYPE_CHECKING:
    import httpx

STANDARD_INPUT = "-"
MAX_IMAGE_BYTES = 256 << 20
"""The most bytes of an image that is read to be sent: what a server takes of a request by default."""
_PATIENCE_S = 60  # for an image in all, from an address or a pipe
_REDIRECTS = 5


@dataclass(frozen=True)
class Source:
    """One image: the ``name`` it is shown under, and how to get its bytes (raises ImageError)."""

    name: str
    read: Callable[[], bytes]


def find_sources(named: Sequence[str]) -> list[Source]:
    """Files, folders (their images at any depth, in order of path), URLs, and ``-``.

    Raises UsageError for a folder without images and for a second ``-``.
    """
    if list(named).count(STANDARD_INPUT) > 1:
        raise UsageError("Standard input (-) can be read once only.")
    sources: list[Source] = []
    for name in named:
        path = Path(name)
        if name == STANDARD_INPUT:
            sources.append(Source(name, _read_standard_input))
        elif name.lower().startswith(("http://", "https://")):
            sources.append(Source(name, _url_reader(name)))
        elif _is_folder(path):
            found = find_images(path)
            for text in summaries(path, found.left_out):
                console.say(text)
            if not found.images:
                raise UsageError(f"The folder {name} has no images ({', '.join(sorted(SUFFIXES))}).")
            sources += [Source(str(p), _file_reader(p)) for p in found.images]
        else:
            sources.append(Source(name, _file_reader(path)))
    return sources


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or has a NUL: reading it says so
        return False


def _read_standard_input() -> bytes:
    try:
        data = sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1)
        _check_size("Standard input", len(data))
        return data
    except OSError as error:
        raise ImageError(
            f"Cannot read standard input: {error.strerror}; give a file, or pipe an image into it."
        ) from error


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        with read_errors(ImageError, path):
            # A pipe that nobody writes to must not be waited for, be it to open.
            number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            with os.fdopen(number, "rb", buffering=0) as file:
                found = os.fstat(number)
                if stat.S_ISREG(found.st_mode):
                    _check_size(str(path), found.st_size)
                    return file.read()
                return _read_stream(file, str(path))

    return read


def _read_stream(file: IO[bytes], name: str) -> bytes:
    """What comes from a pipe or a device, within bounds of bytes and time."""
    parts: list[bytes] = []
    size, until = 0, time.monotonic() + _PATIENCE_S
    while True:
        if not select.select([file], [], [], max(0, until - time.monotonic()))[0]:
            raise ImageError(f"{name} gave no whole image within {_PATIENCE_S} s; give a file.")
        part = file.read(1 << 20)
        if not part:
            return b"".join(parts)
        size += len(part)
        _check_size(name, size)
        parts.append(part)


def _check_size(name: str, size: int) -> None:
    if size > MAX_IMAGE_BYTES:
        raise ImageError(f"{name} has more than {format_size(MAX_IMAGE_BYTES)}, the limit of an image.")


def _url_reader(url: str) -> Callable[[], bytes]:
    def read() -> bytes:
        import httpx

        from pdserve.clients.transport import Transport, within

        try:
            with httpx.Client(transport=Transport(), trust_env=False, timeout=_PATIENCE_S) as client:
                request = client.build_request("GET", url, headers={"accept-encoding": "gzip, deflate"})
                with within(_PATIENCE_S):
                    for _ in range(_REDIRECTS + 1):
                        response, content = _get(client, request)
                        if response.next_request is None:
                            break
                        request = _checked(request.url, response.next_request)
                    else:
                        raise ImageError(f"Cannot get {url}: it sends on more than {_REDIRECTS} times.")
        except httpx.TimeoutException as error:
            raise ImageError(f"Cannot get {url}: it did not come within {_PATIENCE_S} s.") from error
        except (httpx.HTTPError, httpx.InvalidURL, UsageError, ClientError) as error:
            proxy = _proxy_of(url) if isinstance(error, httpx.ConnectError | httpx.ProxyError) else None
            through = f", through the proxy {proxy}" if proxy else ""
            raise ImageError(f"Cannot get {url}{through}: {str(error).rstrip('.')}.") from error
        if not response.is_success:
            raise ImageError(f"Cannot get {url}: {response.status_code} {response.reason_phrase}.")
        return content

    return read


def _get(client: "httpx.Client", request: "httpx.Request") -> "tuple[httpx.Response, bytes]":
    """An answer, and its body where it is an image's. Raises ClientError beyond the limit."""
    from pdserve.clients.transport import Body

    response = client.send(request, stream=True)
    with closing(response):
        if not response.is_success:
            return response, b""
        body = Body(response.headers, MAX_IMAGE_BYTES, request.url.host)
        for chunk in response.iter_raw():
            body.add(chunk)
    return response, body.content()


def _checked(before: "httpx.URL", request: "httpx.Request") -> "httpx.Request":
    """A request that an answer sends on to. Raises ImageError where a page must not send anybody."""
    url = request.url
    if url.scheme not in ("http", "https") or (before.scheme, url.scheme) == ("https", "http"):
        raise ImageError(f"{before} sends on to {url}, which is not https; give that address if it is right.")
    if is_this_machine(url.host) and not is_this_machine(before.host):
        raise ImageError(f"{before} sends on to {url}, on this machine; give that address if it is right.")
    return request


def _proxy_of(url: str) -> Proxy | None:
    parts = urlsplit(url)
    try:
        return find_proxy(parts.scheme, parts.hostname or "", parts.port)
    except (UsageError, ValueError):
        return None
