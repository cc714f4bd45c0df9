"""The Python that runs Paddle Serving: found, and asked what it has."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pdserve.errors import EngineMissingError, UsageError
from pdserve.models.home import Home
from pdserve.runtimes.paddle_serving import packages
from pdserve.runtimes.paddle_serving.work_folder import SCRIPTS

VARIABLE = "PDSERVE_PADDLE_SERVING_PYTHON"
RUNTIME = "paddle-serving"
INSTALL = "pdserve runtime install paddle-serving"
_ELSEWHERE = ("python3.9", "python3.8", "python3.7", "python3.6", "python3")
_ASK_S = 60


@dataclass(frozen=True)
class Interpreter:
    """``versions``: of the packages that were asked for and are there; ``missing``: the other packages."""

    path: Path
    python: str
    versions: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path} (Python {self.python})"


def choose(
    given: Path | None, environ: Mapping[str, str], home: Home, needed: Mapping[str, str]
) -> Interpreter:
    """The interpreter given, else the environment's, else the installed runtime, else one on the PATH.

    ``needed``: module -> package. Raises UsageError for one that cannot be run, EngineMissingError with
    what is missing and the versions that work.
    """
    named = [(given, "--python"), (environ.get(VARIABLE), VARIABLE)]
    for wanted, where in named:
        if wanted:
            return _complete(_named(str(wanted), where, needed))
    own = home.runtime(RUNTIME) / "bin" / "python"
    if own.is_file():
        return _complete(_named(str(own), "The installed runtime", needed))
    for path in _on_the_path():
        found = ask(path, needed)
        if found and not found.missing:
            return found
    raise EngineMissingError(
        f"No Python here has Paddle Serving; type `{INSTALL}`, or name one that has it with --python PATH "
        f"or in {VARIABLE}. What works together on Python 3.8 and 3.9: {packages.pins('PYTHON')}."
    )


def ask(path: Path, needed: Mapping[str, str]) -> Interpreter | None:
    """What an interpreter has, by running it once; None for one that does not run."""
    wanted = [f"{module}={','.join(_names(package))}" for module, package in needed.items()]
    command = [str(path), str(SCRIPTS / "versions.py"), *wanted]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                cwd=scratch,
                timeout=_ASK_S,
                stdin=subprocess.DEVNULL,
                check=True,
            )
            told = json.loads(done.stdout)
            found = {package: told["packages"][module] for module, package in needed.items()}
            return Interpreter(
                path,
                str(told["python"]),
                tuple(each["version"] for each in found.values() if each["version"]),
                tuple(package for package, each in found.items() if not each["there"]),
            )
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
            return None


def _names(package: str) -> Iterator[str]:
    yield package
    if package in packages.ALSO:
        yield packages.ALSO[package]


def _named(wanted: str, where: str, needed: Mapping[str, str]) -> Interpreter:
    path = shutil.which(str(Path(wanted).expanduser()))
    found = ask(Path(path).absolute(), needed) if path else None
    if not found:
        raise UsageError(f"{where} is {wanted!r}, which does not run as a Python; give the path of one.")
    return found


def _complete(found: Interpreter) -> Interpreter:
    if found.missing:
        raise EngineMissingError(
            f"{found} lacks {', '.join(found.missing)}; type `{INSTALL}`, or install there what works "
            f"together on Python 3.8 and 3.9: {packages.pins(str(found.path))}."
        )
    return found


def _on_the_path() -> Iterator[Path]:
    for name in _ELSEWHERE:
        if path := shutil.which(name):
            yield Path(path)
