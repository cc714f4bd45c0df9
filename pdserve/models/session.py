"""The HTTP session of downloads: whose proxies, where an answer may send on to, how long its head may take.

The certificates are those of ``REQUESTS_CA_BUNDLE`` or ``CURL_CA_BUNDLE``, and user and password those of
``~/.netrc``, as with requests itself.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.connection import HTTPConnection, HTTPSConnection

from pdserve import __version__
from pdserve.errors import FetchError
from pdserve.models.catalog import public
from pdserve.proxies import find_proxy, is_this_machine

MAX_REDIRECTS = 10
HEAD_S = 60.0
"""Seconds in which the head of an answer must have come: status line and headers, whatever trickles."""


def open_session(url: str, auth: AuthBase | None = None, retries: Any = 0) -> requests.Session:
    """A session for requests to the host of ``url``; ``auth`` signs those to it alone.

    Answers are asked for as they are, not compressed. Raises UsageError for a proxy that cannot be used, and
    FetchError where an answer sends on from https to http, or from elsewhere to this machine.
    """
    session = _Session()
    session.headers.update({"User-Agent": f"pdserve/{__version__}", "Accept-Encoding": "identity"})
    session.trust_env = False  # its proxies are ours to choose
    session.max_redirects = MAX_REDIRECTS
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    session.proxies = _proxies(url)
    session.auth = auth or requests.utils.get_netrc_auth(url)
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(max_retries=retries))
    return session


def _proxies(url: str) -> dict[str, str]:
    """The proxy for an address, as requests takes it."""
    parts = urlsplit(url)
    found = find_proxy(parts.scheme, parts.hostname or "", parts.port, package="socks")
    return {parts.scheme: found.url} if found else {}


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target is None:
            return None
        before, after = urlsplit(resp.url), urlsplit(urljoin(resp.url, target))
        to, wrong = public(after.geturl()), ""
        if after.scheme not in ("http", "https") or (before.scheme, after.scheme) == ("https", "http"):
            wrong = "which is not https"
        elif is_this_machine(after.hostname or "") and not is_this_machine(before.hostname or ""):
            wrong = "on this machine"
        if wrong:
            resp.close()
            raise FetchError(f"{public(resp.url)} sends on to {to}, {wrong}; check the mirror.")
        return target

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> dict[str, str]:
        found = _proxies(prepared_request.url or "")
        # What may be for a proxy is not for the next host.
        prepared_request.headers.pop("Proxy-Authorization", None)
        return found


class _Adapter(HTTPAdapter):
    """Connections that bound the time of an answer's head."""

    def init_poolmanager(self, *given: Any, **named: Any) -> None:
        super().init_poolmanager(*given, **named)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *given: Any, **named: Any) -> Any:
        manager = super().proxy_manager_for(*given, **named)
        if not str(given[0] if given else named.get("proxy", "")).startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager


@contextmanager
def _head_in_time(connection: HTTPConnection) -> Iterator[None]:
    """Shut the connection where its answer's head takes too long: a time-out is per read, not in all."""
    sock, late = connection.sock, threading.Event()

    def shut() -> None:
        late.set()
        with suppress(OSError):
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(HEAD_S, shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if late.is_set():  # what came until then may look whole
            raise TimeoutError(f"the head of the answer took more than {HEAD_S:g} s")


class _Http(HTTPConnection):
    def getresponse(self) -> Any:
        with _head_in_time(self):
            return super().getresponse()


class _Https(HTTPSConnection):
    def getresponse(self) -> Any:
        with _head_in_time(self):
            return super().getresponse()


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Https


_POOLS = {"http": _HttpPool, "https": _HttpsPool}
