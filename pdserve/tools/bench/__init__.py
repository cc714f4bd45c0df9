"""Load on a running service, and the figures that come of it. See pdserve.tools.bench.load."""

from pdserve.tools.bench.load import closed_loop, open_loop
from pdserve.tools.bench.run import Load, Run
from pdserve.tools.bench.targets import build_target

__all__ = ["Load", "Run", "build_target", "closed_loop", "open_loop"]
