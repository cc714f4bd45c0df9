"""Devices: the CPU, or a CUDA GPU by its number."""

import ctypes
import re
import sys
from dataclasses import dataclass
from typing import Literal

from pdserve.errors import UsageError
from pdserve.machine import cores as cores  # as the device CPU has them


@dataclass(frozen=True)
class Device:
    """``cpu`` or ``gpu:N``; ``index`` counts the GPUs that CUDA_VISIBLE_DEVICES leaves."""

    kind: Literal["cpu", "gpu"] = "cpu"
    index: int = 0

    @classmethod
    def parse(cls, text: str) -> "Device":
        """Read ``cpu``, ``gpu`` or ``gpu:1``. Raises UsageError."""
        if text == "cpu":
            return cls()
        if match := re.fullmatch(r"gpu(?::(\d{1,4}))?", text, re.ASCII):
            return cls("gpu", int(match[1] or 0))
        raise UsageError(f"There is no device {text!r}; give cpu, or gpu:0 for the first GPU.")

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"gpu:{self.index}"


def gpu_problem(index: int) -> str | None:
    """Why the NVIDIA driver cannot use GPU ``index``, in words, or None. Needs no package."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"there is no NVIDIA driver ({library} does not load)"
    count = ctypes.c_int()
    # CUDA's driver API: both return 0 (CUDA_SUCCESS) or a CUresult; 100 is CUDA_ERROR_NO_DEVICE.
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, 100):
        return f"the NVIDIA driver does not start (CUDA error {status})"
    if status == 100 or count.value == 0:
        return "the NVIDIA driver sees no GPU"
    if index >= count.value:
        return f"there is no GPU {index}, the last is gpu:{count.value - 1}"
    return None
