"""The load that the benchmarks put on a server: a closed loop on one route, from this process."""

from pdserve.tools.bench import Run, build_target, closed_loop
from pdserve.tools.bench.session import in_loop


def offer(
    url: str,
    image: bytes,
    route: str,
    clients: int,
    seconds: float,
    service: str,
    warm_up_s: float = 1,
    timeout_s: float = 120,
) -> Run:
    """``clients`` that send one image again and again. ``url`` as build_target takes it."""
    target = build_target(route, url, [image], service=service)
    return in_loop(
        closed_loop(target, clients=clients, duration_s=seconds, warm_up_s=warm_up_s, timeout_s=timeout_s)
    )
