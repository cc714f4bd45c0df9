"""What browsers do for web pages: writes that only this server's own pages may send, headers on answers.

A browser sends what a stranger's page asks for, to any address that it reaches, loopback too; it only hides
the answer. Some requests it announces first (a preflight, fetch.spec.whatwg.org, "CORS protocol"): those with
a header of their own, for one. So a write needs a key, or such a header.
"""

from collections.abc import Callable, Sequence

from pdserve.errors import RequestError
from pdserve.services.protocols import App, Message, Receive, Resource, Scope, Send
from pdserve.settings import ServerSettings

WRITE_HEADER = "X-Pdserve-Write"
_WRITE = WRITE_HEADER.lower().encode()

# On every answer: nothing in it is to be taken for a page, a script or a part of another site's page. A page
# of our own has a policy of its own.
POLICY: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of a page of our own: files of this server, no script or style within the page."""


class OtherSiteError(RequestError):
    """A write that a page of another site has sent."""

    code = "other_site"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


class WriteHeaderError(RequestError):
    """A write with neither a key nor the header that no page of a stranger can send."""

    code = "write_header_missing"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


# Paddle Serving's gateway says it for its errors alone; its answers are JSON without a "<" in it.
_FOREIGN_POLICY = tuple(each for each in POLICY if each[0] != b"x-content-type-options")


def with_policy(app: App, find: Callable[[str], Resource | None] = lambda path: None) -> App:
    """The same ASGI application with POLICY on its answers, as far as they have none of their own.

    ``find``: the resource at a path; those of foreign protocols keep a header out.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        resource = find(scope["path"])
        policy = _FOREIGN_POLICY if resource is not None and resource.protocol.foreign else POLICY

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                own = {name for name, _ in headers}
                message["headers"] = [*headers, *(each for each in policy if each[0] not in own)]
            await send(message)

        await app(scope, receive, send_with_policy)

    return application


def check_write(scope: Scope, *, keyed: bool, origins: Sequence[str] = ()) -> None:
    """See that no stranger's page has sent a request that changes something.

    ``keyed``: it came with a key. ``origins``: those of ``--cors-origin``, whose pages may write. Raises
    OtherSiteError, WriteHeaderError.
    """
    sent: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        sent.setdefault(name, []).append(value)
    for origin in sent.get(b"origin", ()):
        if not _may_write(origin.decode("latin-1"), sent, origins):
            raise OtherSiteError(
                f"A page of {origin.decode('latin-1')!r} may not change anything here; start the server with "
                "--cors-origin to allow it."
            )
    if b"origin" not in sent and not {*sent.get(b"sec-fetch-site", ())} <= _OWN_SITE:
        raise OtherSiteError("A page of another site may not change anything here.")
    if not keyed and not any(sent.get(_WRITE, ())):
        raise WriteHeaderError(
            f"A change without a key needs the header `{WRITE_HEADER}: 1`, which no stranger's web page can "
            "send; send it, or start the server with --api-key."
        )


# Sec-Fetch-Site, which a browser writes and no page can (w3c.github.io/webappsec-fetch-metadata). It leaves
# it out where the server is reached by http under a name that is not the loopback's.
_OWN_SITE = frozenset((b"same-origin", b"none"))


def _may_write(origin: str, sent: dict[bytes, list[bytes]], origins: Sequence[str]) -> bool:
    if "*" in origins or origin in origins:
        return True
    if sites := sent.get(b"sec-fetch-site"):
        return _OWN_SITE.issuperset(sites)
    # The scheme is left out: TLS may end at a proxy.
    host = b"".join(sent.get(b"host", ())).decode("latin-1").lower()
    return bool(host) and origin.lower().partition("://")[2] in (
        host,
        host.removesuffix(":80").removesuffix(":443"),
    )


def any_page_warning(settings: ServerSettings) -> str | None:
    """A warning where any web page may use a server that needs no key; None otherwise."""
    if settings.api_key or settings.api_key_file:
        return None
    given = {"--cors-origin": settings.cors_origins, "--allowed-host": settings.allowed_hosts}
    options = [option for option, values in given.items() if "*" in values]
    if not options:
        return None
    return (
        f"any web page can use this server through a browser that reaches it ({options[0]} *), since it "
        "needs no key; give --api-key FILE, or name those that may"
    )
