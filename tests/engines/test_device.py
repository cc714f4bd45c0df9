"""Device words, and what the NVIDIA driver says, real or built here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pdserve.engines import Device
from pdserve.engines.device import cores
from pdserve.errors import UsageError


def test_parse() -> None:
    assert Device.parse("cpu") == Device("cpu", 0)
    assert Device.parse("gpu") == Device("gpu", 0)
    assert Device.parse("gpu:3") == Device("gpu", 3)
    assert [str(Device.parse(text)) for text in ("cpu", "gpu:3")] == ["cpu", "gpu:3"]


@pytest.mark.parametrize(
    "text", ["", "CPU", "gpu:", "gpu:-1", "gpu:x", "cpu:0", "cuda:0", "gpu:٣", "gpu:1\n"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="no device"):
        Device.parse(text)


def test_cores() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
@pytest.mark.parametrize(
    ("status", "count", "said"),
    [
        (0, 2, "None"),
        (0, 1, "there is no GPU 1, the last is gpu:0"),
        (0, 0, "the NVIDIA driver sees no GPU"),
        (100, 0, "the NVIDIA driver sees no GPU"),
        (803, 0, "the NVIDIA driver does not start (CUDA error 803)"),
    ],
)
def test_the_drivers_answers(tmp_path: Path, status: int, count: int, said: str) -> None:
    """A driver library of the right name, whose two functions answer as CUDA's would."""
    (tmp_path / "cuda.c").write_text(
        f"int cuInit(unsigned flags) {{ return {status}; }}\n"
        f"int cuDeviceGetCount(int *count) {{ *count = {count}; return 0; }}\n"
    )
    command = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "cuda.c")]
    subprocess.run(command, check=True)
    environ = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    code = "from pdserve.engines.device import gpu_problem; print(gpu_problem(1))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == said
