"""The images that a command line names: files, folders, URLs, standard input."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdserve import console
from pdserve.clients.address import is_this_machine
from pdserve.errors import ImageError, UsageError
from pdserve.files import read_errors
from pdserve.vision.image_files import SUFFIXES, find_images, summaries

STANDARD_INPUT = "-"


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
        elif path.is_dir():
            found = find_images(path)
            for text in summaries(path, found.left_out):
                console.say(text)
            if not found.images:
                raise UsageError(f"The folder {name} has no images ({', '.join(sorted(SUFFIXES))}).")
            sources += [Source(str(p), _file_reader(p)) for p in found.images]
        else:
            sources.append(Source(name, _file_reader(path)))
    return sources


def _read_standard_input() -> bytes:
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ImageError(
            f"Cannot read standard input: {error.strerror}; give a file, or pipe an image into it."
        ) from error


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        with read_errors(ImageError, path):
            return path.read_bytes()

    return read


def _url_reader(url: str) -> Callable[[], bytes]:
    def read() -> bytes:
        import httpx

        try:
            local = is_this_machine(httpx.URL(url).host)
            response = httpx.get(url, follow_redirects=True, timeout=60, trust_env=not local)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: a proxy's address
            raise ImageError(f"Cannot get {url}: {error}.") from error
        if not response.is_success:
            raise ImageError(f"Cannot get {url}: {response.status_code} {response.reason_phrase}.")
        return response.content

    return read
