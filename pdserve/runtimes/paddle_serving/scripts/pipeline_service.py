"""Runs the published pipeline over the config.yml in this folder, until SIGTERM or SIGINT.

Part of a folder for Paddle Serving, which runs on Python 3.6 to 3.9. What it adds to the published server:
a stop that lets running requests finish, and an end when one of its processes has died, since the others
would wait for it for ever.
"""

import argparse
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict

import paddle
from paddle_serving_server.pipeline import Op, pipeline_server
from paddle_serving_server.pipeline.channel import ChannelDataErrcode
from paddle_serving_server.pipeline.proto import pipeline_service_pb2
from paddle_serving_server.web_service import WebService

SETTINGS: Dict[str, Any] = json.loads(Path("service.json").read_text("utf-8"))
CONFIG = "config.yml"


class Service(WebService):  # type: ignore[misc]
    """``build`` makes the last operator of the first one."""

    def __init__(self, build: Callable[[Op], Op]) -> None:
        super().__init__(SETTINGS["name"])
        self._build = build

    def get_pipeline_response(self, read_op: Op) -> Op:
        return self._build(read_op)


class Running:
    """The requests that run, counted, and whether more are taken."""

    def __init__(self) -> None:
        self._count = 0
        self._closed = False
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Whether the request may run; then ``leave`` must follow."""
        with self._lock:
            self._count += not self._closed
            return not self._closed

    def leave(self) -> None:
        with self._lock:
            self._count -= 1

    def drain(self, seconds: float) -> None:
        """Take no more, and wait for those that run."""
        self._closed = True
        end = time.monotonic() + seconds
        while self._count and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.1)  # in which the last answer gets through the gateway


RUNNING = Running()


def counted(inference: Callable[..., Any]) -> Callable[..., Any]:
    """The published servicer's method, its requests counted."""

    def count(servicer: Any, request: Any, context: Any) -> Any:
        if not RUNNING.enter():
            closed = ChannelDataErrcode.CLOSED_ERROR.value
            return pipeline_service_pb2.Response(err_no=closed, err_msg="The server is stopping.")
        try:
            return inference(servicer, request, context)
        finally:
            RUNNING.leave()

    return count


def run(build: Callable[[Op], Op]) -> None:
    """Serve. ``build``: see Service."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--grace", type=float, default=30, help="seconds that running requests get at a stop")
    grace = parser.parse_args().grace
    getattr(paddle, "disable_signal_handler", int)()  # which would take SIGTERM for a crash
    servicer = pipeline_server.PipelineServicer
    servicer.inference = counted(servicer.inference)
    service = Service(build)
    service.prepare_pipeline_config(CONFIG)
    if service._server._http_port is None:  # which it sets against 0 when it starts the gateway
        service._server._http_port = 0
    shown = logging.StreamHandler()  # from here on, as until now it warns of each default that it takes
    shown.setLevel(logging.WARNING)
    shown.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(shown)
    threading.Thread(target=watch_children, daemon=True).start()
    main = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() == main:
            RUNNING.drain(grace)
            end(0)
        os._exit(0)  # one of its processes

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    service.run_service()


def watch_children() -> None:
    """End the service when one of its processes ends."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # there is none
            ended = None
        if ended:
            print(f"ERROR process {ended.si_pid} ended with {ended.si_status}", file=sys.stderr)
            end(1)
        time.sleep(0.2)


def end(code: int) -> None:
    """End at once, with all processes."""
    for child in multiprocessing.active_children():
        if child.pid:
            os.kill(child.pid, signal.SIGKILL)  # the gateway takes no other
    sys.stderr.flush()
    os._exit(code)
