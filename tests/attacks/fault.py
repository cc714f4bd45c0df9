"""What the machine does to it: full disks, few descriptors, kills, stops, overload."""

import contextlib
import json
import threading
import time

import httpx

from pdserve.services.http.browsers import WRITE_HEADER
from tests.attacks.attack import Target, attack
from tests.tiny import picture


@attack(service=None, full=True, without={"pdserve.index.publish:_switch": lambda *_: None})
def killed_while_the_gallery_is_written(target: Target) -> None:
    """A server is killed in the middle of writes: what it acknowledged is there, and can be changed."""
    options = ("--gallery-writes", "--detector", "none")
    acknowledged: list[str] = []
    with target.start(*options, service="recognition") as own:

        def write() -> None:
            for number in range(10_000):
                label = f"label {number}"
                image = {"images": ("x.png", picture((number % 250, 99, number // 250)))}
                with contextlib.suppress(httpx.HTTPError):
                    answer = own.http.post(
                        "/v1/gallery", files=image, data={"label": label}, headers={WRITE_HEADER: "1"}
                    )
                    if answer.status_code != 200:
                        return
                    acknowledged.append(label)
                    continue
                return

        writer = threading.Thread(target=write)
        writer.start()
        deadline = time.monotonic() + 60
        while len(acknowledged) < 5:
            assert time.monotonic() < deadline, "nothing is acknowledged"
            time.sleep(0.01)
        own.running.process.kill()
        writer.join()
        entries = own.command("index", "info", "--entries", "--index", "colors", "--json")
        found = [json.loads(line)["label"] for line in entries.stdout.splitlines()]
        assert set(acknowledged) <= set(found)
        assert len(found) <= 2 + len(acknowledged) + 1
        assert own.command("index", "remove", "--label", acknowledged[0], "--index", "colors").returncode == 0
        assert own.command("index", "verify", "--index", "colors").returncode == 0
