"""The gRPC server: all gRPC protocols on one port, with bounds on size and time, and TLS."""

import contextlib
from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio

from pdserve.errors import SettingsError
from pdserve.formats.protos import pipeline
from pdserve.services.budget import Entrance
from pdserve.services.grpc.intake import Intake
from pdserve.services.net import bind, bracketed, check_tls
from pdserve.services.protocols import PROTOCOLS
from pdserve.services.repository import Repository
from pdserve.services.service import Answering
from pdserve.settings import ServerSettings

# A silent peer is pinged after the first, and taken for gone the second later.
_PING_AFTER_S = 60
_PING_TIMEOUT_S = 20
# How often clients may ping: gRPC's own default cuts off those that do it more than once in five minutes.
_PINGED_EVERY_S = 10
# Requests at once on one connection; more wait at the client.
_STREAMS = 256
# Calls at once in all, those that watch the health among them; more are refused.
_CALLS = 2048
# Only "identity": a compressed message of 250 kB may become 250 MB, which gRPC knows when it has them.
_COMPRESSION = 1 << grpc.Compression.NoCompression


@contextlib.asynccontextmanager
async def grpc_listener(
    service: Answering | Repository,
    entrance: Entrance,
    port: int,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
) -> AsyncIterator[int]:
    """Serve a service over gRPC; yields the port. On leaving, running requests have ``grace_s`` to finish.

    Raises SettingsError for a port in use, or a certificate that cannot be read.
    """
    settings = entrance.settings
    server, bound = build_server(service, entrance, port, interceptors, check_tls(settings).credentials)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(settings.grace_s)


def build_server(
    service: Answering | Repository,
    entrance: Entrance,
    port: int,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    credentials: grpc.ServerCredentials | None = None,
) -> tuple[grpc.aio.Server, int]:
    """A server bound to the port (0: any free one) and not started yet, and the port it has.

    ``credentials`` make it speak TLS. Raises SettingsError where it cannot listen.
    """
    settings = entrance.settings
    server = grpc.aio.server(
        interceptors=tuple(interceptors), options=_options(settings), maximum_concurrent_rpcs=_CALLS
    )
    services, intake = Repository.of(service, settings.name), Intake(entrance)
    for protocol in PROTOCOLS.values():
        if protocol.transport == "grpc":
            handlers = protocol.function()(services, intake)
            if not handlers:
                continue
            generic = grpc.method_handlers_generic_handler(protocol.grpc_service, handlers)
            server.add_generic_rpc_handlers((generic,))
    opened = bind(settings.host, port)
    hosts = [each.getsockname()[0] for each in opened]  # gRPC looks up less than the system, as 127.1
    bound = opened[0].getsockname()[1] if len(opened) > 1 else port  # one that is free at all of them
    for each in opened:
        each.close()
    for host in hosts:
        address = f"{bracketed(host)}:{bound}"
        try:
            if credentials:
                bound = server.add_secure_port(address, credentials)
            else:
                bound = server.add_insecure_port(address)
        except RuntimeError as error:
            raise SettingsError(f"Cannot listen on {address}; give another port with --rpc-port.") from error
    return server, bound


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", pipeline.MAX_MESSAGE_BYTES),
        # Between the two limits gRPC would refuse some, by chance.
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.server_handshake_timeout_ms", _ms(settings.header_timeout_s)),
        ("grpc.max_connection_idle_ms", _ms(settings.keep_alive_s)),
        ("grpc.keepalive_time_ms", _ms(_PING_AFTER_S)),
        ("grpc.keepalive_timeout_ms", _ms(_PING_TIMEOUT_S)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # as many as it takes
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(_PINGED_EVERY_S)),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.compression_enabled_algorithms_bitset", _COMPRESSION),
        ("grpc.so_reuseport", 0),  # or a second server would quietly take half of the requests
    ]


def _ms(seconds: float) -> int:
    """Whole milliseconds that fit into a C int."""
    return min(max(1, round(seconds * 1000)), 2**31 - 1)
