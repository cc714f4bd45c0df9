"""Stands in for a Python that has Paddle Serving: run as an interpreter, it answers what pdserve asks of one.

Asked for versions, it has all packages but those in ``FAKE_LACKS``. Asked to run a service script, it is a
service: it reads config.yml, starts a child that would live for ever, writes both numbers to ``FAKE_PIDS``
and answers every POST. ``FAKE_SERVICE``: "dies" at its start, "misfits" as of a wrong package, "says no" to
every request, "falls" two requests after the start, or "ignores" SIGTERM. Asked to run a module, it fails.
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

MODE = os.environ.get("FAKE_SERVICE", "")


def versions(wanted: list[str]) -> None:
    lacks = os.environ.get("FAKE_LACKS", "").split(",")
    packages = {}
    for each in wanted:
        module, _, names = each.partition("=")
        there = module not in lacks
        packages[module] = {"there": there, "version": f"{names.split(',')[0]} 1.0" if there else None}
    print(json.dumps({"python": "3.9.0", "packages": packages}))


class Handler(http.server.BaseHTTPRequestHandler):
    """The old answer, whatever is asked."""

    answered = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        number = 10000 if MODE == "says no" else 0
        answer: dict[str, Any] = {"err_no": number, "err_msg": "no model" if number else "", "tensors": []}
        answer |= {"key": ["label", "prob"], "value": ["['fake']", "[1.0]"]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        Handler.answered += 1
        if MODE == "falls" and Handler.answered == 2:
            print("ERROR fake: out of memory", file=sys.stderr, flush=True)
            os._exit(3)

    def log_message(self, *_: Any) -> None:
        pass


def serve() -> None:
    print("WARNING fake.service: starting", flush=True)
    child = subprocess.Popen(["sleep", "1000"])
    Path(os.environ["FAKE_PIDS"]).write_text(f"{os.getpid()} {child.pid}", "utf-8")
    if MODE == "dies":
        raise SystemExit("no model here")
    if MODE == "misfits":
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401
    if MODE == "ignores":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    config = yaml.safe_load(Path("config.yml").read_text("utf-8"))
    http.server.ThreadingHTTPServer(("127.0.0.1", config["http_port"]), Handler).serve_forever()


if __name__ == "__main__":
    if sys.argv[1].endswith("versions.py"):
        versions(sys.argv[2:])
    elif sys.argv[1] == "-m":
        raise SystemExit("ERROR: there is no space on the disk.")
    else:
        serve()
