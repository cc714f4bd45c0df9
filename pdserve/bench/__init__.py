"""Load on a running service, and what came of it. See pdserve.bench.load."""

from pdserve.bench.load import closed_loop, open_loop
from pdserve.bench.run import Load, Run
from pdserve.bench.targets import build_target

__all__ = ["Load", "Run", "build_target", "closed_loop", "open_loop"]
