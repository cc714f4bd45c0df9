"""OpenCV, in one thread per call: the one room that knows how it is set up."""

from functools import cache
from typing import Any


@cache
def opencv() -> Any:
    """The module ``cv2``, its own threads turned off.

    Images are worked on side by side already, a thread each. OpenCV's threads would take the engine's
    cores, and after each call they wait for the next one in a loop: of a resize of half a millisecond
    every 4 ms that doubles the CPU time. The setting is the process's: whoever wants another makes it after
    this was called.
    """
    import cv2

    cv2.setNumThreads(1)
    return cv2
