"""The results of compare.py in a file, and its progress on standard error."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, MODELS
from benchmarks.measurement import machine


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Report:
    """The measurements so far, in a file that is replaced as a whole after each."""

    def __init__(self, path: Path, given: argparse.Namespace) -> None:
        self._path = path
        before = json.loads(path.read_text("utf-8")) if given.resume and path.is_file() else {}

        def seen(what: str) -> set[str]:
            return {run[what] for run in before.get("runs", ())}

        self.content: dict[str, Any] = {
            "command": " ".join(sys.argv),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(given.rounds),
            "image": {"file": given.image.name, "bytes": given.image.stat().st_size},
            "settings": {
                "models": [name for name in MODELS if name in {*given.models, *seen("model")}],
                "clients": given.clients,
                "seconds": given.seconds,
                "rounds": given.rounds,
            },
            "contenders": {
                name: {"title": one.title, "kind": one.kind, "settings": one.settings}
                for name, one in CONTENDERS.items()
                if name in {*given.servers, *seen("server")}
            },
            "random_weights": given.random_weights or before.get("random_weights", []),
            "installed": before.get("installed", {}),
            "notes": [],
            "skipped": {},
            "runs": before.get("runs", []),
        }
        for name in ("clients", "seconds"):
            if before and before["settings"][name] != self.content["settings"][name]:
                value = before["settings"][name]
                sys.exit(f"{path} was measured with {name} {value}: give the same, or leave out --resume.")

    def has(self, number: int, model: str, server: str) -> bool:
        """Whether this was measured before."""
        wanted = (number, model, server)
        return any((run["round"], run["model"], run["server"]) == wanted for run in self.content["runs"])

    def add(self, run: dict[str, Any]) -> None:
        self.content["runs"].append(run)
        self.write()

    def skip(self, what: str, why: str) -> None:
        say(f"left out: {what}: {why}")
        self.content["skipped"][what] = why
        self.write()

    def write(self) -> None:
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        beside.replace(self._path)
