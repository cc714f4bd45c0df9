"""The Python that runs Paddle Serving: which packages it needs, how it is found and queried.

The versions were measured with Python 3.8 and 3.9. What the published packages themselves require no longer
installs, so they are installed without their dependencies.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pdserve.errors import EngineMissingError, UsageError
from pdserve.files import user_path
from pdserve.models.home import Home

SCRIPTS = Path(__file__).with_name("scripts")
VARIABLE = "PDSERVE_PADDLE_SERVING_PYTHON"
RUNTIME = "paddle-serving"
INSTALL = "pdserve runtime install paddle-serving"
PYTHONS = ("3.9", "3.8")
PUBLISHED = ("paddle-serving-server==0.9.0", "paddle-serving-client==0.9.0", "paddle-serving-app==0.9.0")
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# Module -> the package that brings it.
NEEDED: Mapping[str, str] = {
    "paddle_serving_server": "paddle-serving-server",
    "paddle_serving_client": "paddle-serving-client",
    "paddle_serving_app": "paddle-serving-app",
    "paddle": "paddlepaddle",
    "google.protobuf": "protobuf",
    "numpy": "numpy",
    "cv2": "opencv-python",
    "grpc": "grpcio",
    "flask": "flask",
    "yaml": "pyyaml",
    "six": "six",
    "PIL": "pillow",
    "func_timeout": "func-timeout",
}
FAISS = {"faiss": "faiss-cpu"}
PROMETHEUS = {"prometheus_client": "prometheus-client"}
# The published names of builds for CUDA.
_GPU_NAMES = {
    "paddlepaddle": "paddlepaddle-gpu",
    "paddle-serving-server": "paddle-serving-server-gpu",
    "faiss-cpu": "faiss-gpu",
}
_ON_PATH = ("python3.9", "python3.8", "python3.7", "python3.6", "python3")
_QUERY_S = 60


@dataclass(frozen=True)
class Interpreter:
    """``versions``: of the requested packages that are installed; ``missing``: the other packages."""

    path: Path
    python: str
    versions: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path} (Python {self.python})"


def find(home: Home, environ: Mapping[str, str]) -> str | None:
    """Describe the interpreter that `choose` would take without ``given``; None where it is not Linux."""
    if sys.platform != "linux":
        return None
    found = choose(None, environ, home, {**NEEDED, **FAISS})
    return f"{found}: {', '.join(found.versions)}"


def choose(
    given: Path | None, environ: Mapping[str, str], home: Home, needed: Mapping[str, str]
) -> Interpreter:
    """The interpreter given, else the environment's, else the installed runtime, else one on the PATH.

    ``needed``: module -> package. Raises UsageError for one that cannot be run, EngineMissingError with
    what is missing and the versions that work.
    """
    installed = home.runtime(RUNTIME) / "bin" / "python"
    for path, origin in (
        (given, "--python"),
        (environ.get(VARIABLE), VARIABLE),
        (installed if installed.is_file() else None, "The installed runtime"),
    ):
        if path:
            return _complete(path, origin, needed)
    for name in _ON_PATH:
        found = query(name, needed)
        if found and not found.missing:
            return found
    raise EngineMissingError(
        f"No Python here has Paddle Serving; type `{INSTALL}`, or name one that has it with --python PATH "
        f"or in {VARIABLE}. Versions that work together on Python 3.8 and 3.9: {_pip_commands('PYTHON')}."
    )


def query(name: Path | str, needed: Mapping[str, str]) -> Interpreter | None:
    """Run an interpreter (a path, or a name on the PATH) once to see what it has; None if it does not run."""
    program = shutil.which(user_path(name))
    if not program:
        return None
    path = Path(program).absolute()
    wanted = [
        f"{module}={','.join(filter(None, (package, _GPU_NAMES.get(package))))}"
        for module, package in needed.items()
    ]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(
                [str(path), str(SCRIPTS / "versions.py"), *wanted],
                capture_output=True,
                cwd=scratch,
                timeout=_QUERY_S,
                stdin=subprocess.DEVNULL,
                check=True,
            )
            reported = json.loads(done.stdout)
            found = {package: reported["packages"][module] for module, package in needed.items()}
            return Interpreter(
                path,
                str(reported["python"]),
                tuple(each["version"] for each in found.values() if each["version"]),
                tuple(package for package, each in found.items() if not each["there"]),
            )
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
            return None


def _complete(path: Path | str, origin: str, needed: Mapping[str, str]) -> Interpreter:
    found = query(path, needed)
    if not found:
        raise UsageError(f"{origin} is {str(path)!r}, which does not run as a Python; give the path of one.")
    if found.missing:
        raise EngineMissingError(
            f"{found} lacks {', '.join(found.missing)}; type `{INSTALL}`, or install there what works "
            f"together on Python 3.8 and 3.9: {_pip_commands(str(found.path))}."
        )
    return found


def _pip_commands(python: str) -> str:
    """The two commands that install versions that work together."""
    lines = REQUIREMENTS.read_text("utf-8").splitlines()[1:]
    pins = " ".join(f'"{pin}"' if "<" in pin else pin for pin in lines)
    pip = f"{python} -m pip install"
    return f"`{pip} --no-deps {' '.join(PUBLISHED)}` and `{pip} {pins}`"
