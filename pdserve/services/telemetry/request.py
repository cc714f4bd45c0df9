"""The request that runs, whichever door it came through: what its log lines, numbers and spans share.

It is held in a context variable, so that whatever runs for a request, tasks that it starts included,
finds it. A thread of a pool finds it where the context was carried there (``contextvars.copy_context``).
"""

import random
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdserve.services.telemetry.tracing import Span

HEADER = "x-request-id"

# Visible ASCII: it goes into headers and into lines of a log as it is.
_SANE = re.compile(r"[!-~]{1,128}")


class Call:
    """One request. ``err_no`` is the pipeline protocol's, None where that was not spoken."""

    __slots__ = ("err_no", "id", "images", "span")

    def __init__(self, asked_id: str | None = None) -> None:
        """``asked_id``: the id that the caller would like; taken if it is sane, else a new one is made."""
        if not asked_id or not _SANE.fullmatch(asked_id):
            asked_id = f"{random.getrandbits(64):016x}"  # to tell requests apart; it is no secret
        self.id = asked_id
        self.images = 0
        self.err_no: int | None = None
        self.span: Span | None = None

    def code(self, sent: str) -> str:
        """What the request's outcome is counted as: an HTTP status, a gRPC status's name, ``err_no_N``.

        The pipeline protocol reports failures in answers that are 200 and OK to HTTP and gRPC; those
        must not look like successes.
        """
        return f"err_no_{self.err_no}" if self.err_no and sent in ("200", "OK") else sent


current: ContextVar[Call | None] = ContextVar("pdserve_call", default=None)
