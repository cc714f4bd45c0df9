"""Searches while the gallery changes: is every answer explained by the version that it names?

Clients ask a real server about four colours while images of the fourth are appended and removed over
HTTP, each change a published version. An answer must name a version, and say the fourth colour if and
only if that version has it.

    python benchmarks/publishing.py                      # 10,000 searches, 8 clients, 200 changes
    python benchmarks/publishing.py --searches 500 --changes 10
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measurement import machine
from tests.running import pdserve, start
from tests.tiny import build_embedder, picture

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
FOURTH = (255, 255, 0)


def build_home(home: Path) -> None:
    """A tiny embedder and an index of three colours."""
    build_embedder(home / "models")
    gallery = home / "gallery"
    for name, color in COLORS.items():
        (gallery / name).mkdir(parents=True)
        (gallery / name / "0.png").write_bytes(picture(color))
    options = ("--gallery", str(gallery), "--out", "colors", "--model", "tiny_embedder")
    done = pdserve(home, "index", "build", *options)
    if done.returncode:
        sys.exit(done.stderr)


def run(searches: int, clients: int, changes: int) -> dict[str, object]:
    """One run; what it came to."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        build_home(home)
        options = ("--embedder", "tiny_embedder", "--detector", "none", "--index", "colors")
        with start(home, *options, "--gallery-writes", service="recognition") as server:
            return measure(server.url, searches, clients, changes)


def measure(url: str, searches: int, clients: int, changes: int) -> dict[str, object]:
    has_fourth = {1: False}
    seen: list[tuple[int, bool]] = []
    errors: list[str] = []
    left = threading.Semaphore(searches)
    query = picture(tuple(c // 2 for c in FOURTH))

    def ask() -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            while left.acquire(blocking=False):
                response = client.post("/v1/recognition", content=query)
                if response.status_code != 200:
                    errors.append(response.text[:200])
                    continue
                result = response.json()["results"][0]
                seen.append((result["index_version"], result["objects"][0]["label"] == "yellow"))

    def change() -> None:
        headers = {"X-Pdserve-Write": "1"}
        with httpx.Client(base_url=url, trust_env=False, timeout=60, headers=headers) as client:
            for i in range(changes):
                if i % 2:
                    response = client.delete("/v1/gallery", params={"label": "yellow"})
                else:
                    files = [("images", ("y.png", picture(FOURTH)))]
                    response = client.post("/v1/gallery", files=files, data={"label": "yellow"})
                if response.status_code != 200:
                    errors.append(response.text[:200])
                    return
                has_fourth[response.json()["index_version"]] = i % 2 == 0

    started = time.perf_counter()
    threads = [threading.Thread(target=ask) for _ in range(clients)]
    changer = threading.Thread(target=change)
    for thread in [*threads, changer]:
        thread.start()
    changer.join()
    took_changes = time.perf_counter() - started
    for thread in threads:
        thread.join()
    unexplained = [(version, yellow) for version, yellow in seen if has_fourth.get(version) != yellow]
    return {
        "searches": len(seen),
        "changes": len(has_fourth) - 1,
        "versions seen": len({version for version, _ in seen}),
        "errors": len(errors),
        "unexplained answers": len(unexplained),
        "first error": errors[0] if errors else "",
        "seconds": round(time.perf_counter() - started, 1),
        "seconds of changes": round(took_changes, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--searches", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    given = parser.parse_args()
    figures = run(given.searches, given.clients, given.changes)
    for name, value in figures.items():
        print(f"{name:>20}: {value}")
    if given.out:
        given.out.write_text(json.dumps(figures | {"machine": machine()}, indent=1) + "\n", "utf-8")
    sys.exit(1 if figures["errors"] or figures["unexplained answers"] else 0)


if __name__ == "__main__":
    main()
