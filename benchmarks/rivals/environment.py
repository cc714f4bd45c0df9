"""A rival's virtual environment: pdserve and the rival's pinned requirements, made once."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def requirements(name: str) -> Path:
    """The file that names what a rival needs."""
    return HERE / f"requirements-{name}.txt"


def stamp_of(name: str) -> str:
    """What an environment is known by: the rival's requirements, and pdserve's dependencies."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    found = re.search(r"^dependencies = \[.*?^\]", project, re.MULTILINE | re.DOTALL)
    assert found
    return hashlib.sha256(requirements(name).read_bytes() + found[0].encode()).hexdigest()


def prepare(name: str, folder: Path) -> Path:
    """The Python of ``folder/name``, made or mended where requirements or dependencies have changed.

    Raises RuntimeError, with pip's last line, where it cannot be made.
    """
    wanted = stamp_of(name)
    place = folder.absolute() / name
    python, stamp = place / "bin" / "python", place / "installed"
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return python
    print(f"making {place}", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", str(place)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--editable", str(ROOT), "--requirement", str(requirements(name))])
    stamp.write_text(wanted, "utf-8")
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            done.stderr[-300:]
        ]
        raise RuntimeError(f"`{' '.join(command[-4:])}` failed: {errors[-1].strip()}")
