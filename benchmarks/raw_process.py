"""The process of raw_engine.py, as its parent sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Raw:
    """The raw engine in its own process; ``common`` goes with everything that is asked of it."""

    def __init__(self, common: dict[str, Any]) -> None:
        self._common = common
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "raw_engine.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE.parent,
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def measure(self, **asked: Any) -> dict[str, Any]:
        """What raw_engine.py answers. Raises RuntimeError where it cannot."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(self._common | asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the raw engine's process ended at {asked}")
        answer = dict(json.loads(line))
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
