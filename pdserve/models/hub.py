"""Fetches inference models from a model hub, ``hf://owner/name``, over HTTPS alone.

The hub is huggingface.co, or what ``HF_ENDPOINT`` names. Two of its routes are used:

- ``GET /api/models/OWNER/NAME/tree/REVISION?recursive=true`` lists files as JSON, in pages that a ``Link``
  header joins: ``{"type": "file", "path": …, "size": …, "oid": git's SHA-1, "lfs": {"oid": SHA-256, …}}``,
  with ``lfs`` for large files alone;
- ``GET /OWNER/NAME/resolve/REVISION/PATH`` gives a file, often by a redirect to another host.

``HF_TOKEN`` is sent to the hub alone, never to a host that it redirects to. Mirrors do not apply.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

from pdserve import files
from pdserve.errors import ChecksumError, FetchError, UsageError
from pdserve.models.archive import LIMITS, check_name
from pdserve.models.catalog import Hub, public
from pdserve.models.download import Partial, download, reason
from pdserve.models.fetch import Fetched, Job
from pdserve.progress import Progress

if TYPE_CHECKING:
    import requests
    from requests.auth import AuthBase

ENDPOINT = "https://huggingface.co"
# What a model consists of, at the top of its repository.
PROGRAMS = (".pdmodel", "inference.json", "__model__")
PARAMETERS = (".pdiparams", "__params__")
BESIDE = (".pdiparams.info", ".yml", ".yaml", "config.json", ".txt")
# Bounds: a listing's pages and each one's bytes, the files taken, and the bytes of one that is no weights.
MAX_PAGES = 100
MAX_PAGE_BYTES = 8 << 20
MAX_FILES = 64
MAX_BESIDE_BYTES = 64 << 20


@dataclass(frozen=True)
class RepositoryFile:
    """A file of a listing: ``sha256`` (hex) of a large one, ``blob`` (hex, git's SHA-1) of a small one."""

    path: str
    size: int
    blob: str | None
    sha256: str | None


@dataclass(frozen=True)
class Endpoint:
    """The hub's address without a slash at the end, and the token for it, if any."""

    url: str
    token: str | None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Endpoint":
        """``HF_ENDPOINT`` and ``HF_TOKEN``. Raises UsageError for an address or a token that cannot be."""
        url = environ.get("HF_ENDPOINT", "").strip().rstrip("/") or ENDPOINT
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise UsageError(f"HF_ENDPOINT is {url!r}; set it to the hub's address, https://HOST.")
        token = environ.get("HF_TOKEN", "").strip() or None
        if token and not all("!" <= char <= "~" for char in token):
            raise UsageError("HF_TOKEN has characters that no token has; set it to the token alone.")
        if token and parts.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1"):
            raise UsageError(
                f"HF_TOKEN would go over plain http to {public(url)}, where others can read it; "
                "give HF_ENDPOINT with https://, or unset HF_TOKEN."
            )
        return cls(url, token)

    def auth(self) -> "AuthBase | None":
        """Adds the token to a request; requests itself takes it off again on the way to another host."""
        from requests.auth import AuthBase

        token = self.token
        if token is None:
            return None

        class Bearer(AuthBase):
            def __call__(self, request: "requests.PreparedRequest") -> "requests.PreparedRequest":
                request.headers["Authorization"] = f"Bearer {token}"
                return request

        return Bearer()


def fetch(job: Job, source: Hub) -> Fetched:
    """Fetch the model of a repository, each file checked with the hub's own digest.

    Raises UsageError, ChecksumError, DiskError, ArchiveError for a name that leads outside, and FetchError
    for a repository that is not there, not to be read, beyond the bounds, or without a model.
    """
    job.policy.require_network(source.address)
    endpoint = Endpoint.from_environ(job.environ)
    wanted = choose(source.address, listing(job, source, endpoint))
    size = sum(file.size for file in wanted)
    if size > LIMITS.bytes:
        raise FetchError(
            f"{source.address} has {files.format_size(size)}, more than {files.format_size(LIMITS.bytes)}, "
            "the limit."
        )
    scratch = job.downloads / f"{job.name}.hub"
    if job.force:
        shutil.rmtree(scratch, ignore_errors=True)
    files.require_space(job.downloads, 2 * size, f"Fetching {job.name}", job.free)
    came = 0
    for file in wanted:
        _download(job, source, endpoint, file, scratch, _Share(job.progress, came, size))
        came += file.size
    origin = f"{public(endpoint.url)}/{source.owner}/{source.repository}/tree/{source.revision}"
    if urlsplit(endpoint.url).scheme == "http":
        job.progress.warn(
            job.name, f"{origin} came over plain http, its digests too; an HF_ENDPOINT with https:// is safer"
        )
    with files.replace_folder(job.target) as folder:
        for file in wanted:
            with files.disk_errors(folder):
                shutil.move(Partial(scratch / file.path).path, folder / file.path)
        fetched = job.finish(folder, origin, None, size)
    shutil.rmtree(scratch, ignore_errors=True)
    return fetched


def choose(shown: str, listed: list[RepositoryFile]) -> list[RepositoryFile]:
    """The files of the inference model at the top of a repository. Raises FetchError where there is none."""
    top = [file for file in listed if "/" not in file.path]
    stems = {file.path.removesuffix(".pdiparams") for file in top if file.path.endswith(".pdiparams")}
    programs = [f for f in top if f.path.endswith(PROGRAMS) or f.path.removesuffix(".json") in stems]
    parameters = [f for f in top if f.path.endswith(PARAMETERS)]
    if not programs or not parameters:
        names = ", ".join(file.path for file in top[:10]) + (" …" if len(top) > 10 else "")
        raise FetchError(
            f"{shown} has no inference model of Paddle (inference.json or .pdmodel, and .pdiparams); "
            f"it has {names or 'no files'}. Check the name."
        )
    small = [*programs, *(f for f in top if f.path.endswith(BESIDE) and f not in programs)]
    chosen = [*small, *parameters]
    for file in small:
        if file.size > MAX_BESIDE_BYTES:
            raise FetchError(
                f"{shown} has {file.path} of {files.format_size(file.size)}, more than "
                f"{files.format_size(MAX_BESIDE_BYTES)}, so it is no file of a model. Check the name."
            )
    if len(chosen) > MAX_FILES:
        raise FetchError(f"{shown} has {len(chosen)} files of models, more than {MAX_FILES}, the limit.")
    return chosen


def listing(job: Job, source: Hub, endpoint: Endpoint) -> list[RepositoryFile]:
    """The files of a repository, all pages of it. Raises FetchError."""
    import requests
    import urllib3

    from pdserve.models.session import open_session

    revision = quote(source.revision, safe="")
    url = f"{endpoint.url}/api/models/{source.owner}/{source.repository}/tree/{revision}"
    policy = job.policy
    retry = urllib3.Retry(
        total=policy.attempts - 1,
        backoff_factor=policy.pause,
        backoff_max=policy.longest_pause,
        status_forcelist=(408, 429, 500, 502, 503, 504),
        respect_retry_after_header=False,
        raise_on_status=False,
    )
    found: list[RepositoryFile] = []
    cursor: str | None = None
    job.progress.note(job.name, "listing its files")
    with open_session(url, endpoint.auth(), retry) as session:
        for _ in range(MAX_PAGES):
            params = {"recursive": "true", **({"cursor": cursor} if cursor else {})}
            timeout = (policy.connect_timeout, policy.read_timeout)
            try:
                with session.get(url, params=params, stream=True, timeout=timeout) as response:
                    _check_status(response, source, endpoint)
                    body = b"".join(_bounded(response, source))
                    cursor = _next(response)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise FetchError(
                    f"Cannot list {source.address} at {public(endpoint.url)} ({reason(error)}); "
                    "check the network, the proxy and HF_ENDPOINT."
                ) from error
            found += _read(source, body)
            if cursor is None:
                return found
    raise FetchError(f"{source.address} has more than {MAX_PAGES} pages of files, the limit. Check the name.")


def _bounded(response: "requests.Response", source: Hub) -> "list[bytes]":
    parts, size = [], 0
    for chunk in response.iter_content(1 << 16):
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_PAGE_BYTES:
            raise FetchError(
                f"The listing of {source.address} has a page of more than "
                f"{files.format_size(MAX_PAGE_BYTES)}, the limit. Check HF_ENDPOINT."
            )
    return parts


def _check_status(response: "requests.Response", source: Hub, endpoint: Endpoint) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in (401, 403):
        hint = (
            "HF_TOKEN may not read it"
            if endpoint.token
            else "it is private, or not there; set HF_TOKEN for it"
        )
    elif status == 404:
        hint = f"there is no such repository, or it has no revision {source.revision!r}; check the name"
    else:
        hint = "check HF_ENDPOINT, or try again later"
    raise FetchError(f"{public(endpoint.url)} answered {status} for {source.address}: {hint}.")


def _next(response: "requests.Response") -> str | None:
    """The next page's cursor. The address that it stands in is not followed: it could be of another host."""
    link = response.links.get("next", {}).get("url")
    cursors = parse_qs(urlsplit(link).query).get("cursor") if link else None
    return cursors[0] if cursors else None


def _read(source: Hub, body: bytes) -> list[RepositoryFile]:
    try:
        return [_file(source, each) for each in json.loads(body) if each["type"] == "file"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FetchError(
            f"The listing of {source.address} is not in the hub's form ({error}); check HF_ENDPOINT."
        ) from error


def _file(source: Hub, each: Mapping[str, Any]) -> RepositoryFile:
    path = str(check_name(source.address, str(each["path"])))
    lfs = each.get("lfs")
    size = (lfs or each)["size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"{path!r} has the size {size!r}")
    if lfs:
        return RepositoryFile(path, size, None, _digest(lfs["oid"].removeprefix("sha256:"), 64))
    return RepositoryFile(path, size, _digest(each["oid"], 40), None)


def _digest(text: str, length: int) -> str:
    if len(text) != length or not all(char in "0123456789abcdef" for char in text):
        raise ValueError(f"{text!r} is no digest")
    return text


@dataclass(frozen=True)
class _Share(Progress):
    """One file's part in the progress of all."""

    whole: Progress
    before: int
    total: int

    def start(self, name: str, total: int | None, completed: int) -> None:
        self.whole.start(name, self.total, self.before + completed)

    def advance(self, name: str, n: int) -> None:
        self.whole.advance(name, n)

    def note(self, name: str, text: str) -> None:
        self.whole.note(name, text)


def _download(
    job: Job, source: Hub, endpoint: Endpoint, file: RepositoryFile, scratch: Path, progress: Progress
) -> None:
    """Download one file beside its final place, and compare it with the listing. Raises as `download`."""
    revision, path = quote(source.revision, safe=""), quote(file.path)
    url = f"{endpoint.url}/{source.owner}/{source.repository}/resolve/{revision}/{path}"
    part = Partial(scratch / file.path)
    got = download(
        url,
        part.target,
        name=job.name,
        sha256=file.sha256,
        promise="the hub lists",
        auth=endpoint.auth(),
        max_bytes=file.size,
        progress=progress,
        policy=job.policy,
        cancel=job.cancel,
        free=job.free,
    )
    if got.size != file.size or (file.blob and _blob(got.path) != file.blob):
        part.discard()
        raise ChecksumError(
            f"{public(url)} is not the file of {file.size} bytes that the hub lists; it was deleted. "
            "The repository may have changed meanwhile; fetch it again."
        )


def _blob(path: Path) -> str:
    """Git's name for a file: the SHA-1 of its length and its bytes."""
    with files.disk_errors(path):
        data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
