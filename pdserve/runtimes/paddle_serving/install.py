"""``pdserve runtime install paddle-serving``: a Python environment with packages that work together.

It is made next to its place, checked by serving a tiny model and sending one request, and appears under
``runtimes/paddle-serving`` when that succeeded.
"""

import ast
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pdserve.engines import PROBE_MODEL
from pdserve.errors import EngineError, EngineMissingError, FetchError, PdserveError, UsageError
from pdserve.files import replace_folder
from pdserve.locks import file_lock
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.classification import open_classification
from pdserve.progress import Progress
from pdserve.runtimes.paddle_serving import interpreter, launch, work_folder
from pdserve.runtimes.paddle_serving.interpreter import PYTHONS, RUNTIME, Interpreter, query

_TOLERANCE = 1e-4


def install(home: Home, python: Path | None, environ: Mapping[str, str], progress: Progress) -> Interpreter:
    """Make the environment, from the package index that pip is set to; its interpreter.

    ``python``: a Python 3.8 or 3.9, one that is found where None. What was installed before stays until the
    new one has passed. Raises UsageError, EngineMissingError for want of such a Python, FetchError where
    pip cannot bring a package, EngineError where the result does not serve.
    """
    base = _base(python, environ)
    target = home.runtime(RUNTIME)
    lock = target.with_name(f"{RUNTIME}.lock")
    with file_lock(lock, RUNTIME, progress), replace_folder(target) as folder:
        progress.note(RUNTIME, f"making an environment of {base}")
        _run([str(base.path), "-m", "venv", str(folder)], environ)
        own = folder / "bin" / "python"
        pip = [str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        progress.note(RUNTIME, "installing the packages; this takes minutes")
        _run([*pip, "--no-deps", *interpreter.PUBLISHED], environ)
        _run([*pip, "-r", str(interpreter.REQUIREMENTS)], environ)
        progress.note(RUNTIME, "serving a tiny model, to see that it works")
        check(own, home, environ)
    found = query(target / "bin" / "python", interpreter.NEEDED)
    if not found:
        raise EngineError(f"{target} does not run any more; install it again.")
    return found


def check(python: Path, home: Home, environ: Mapping[str, str]) -> None:
    """Serve the probe model and send one request.

    Raises EngineError, also for an answer other than that of pdserve's own engine.
    """
    found = query(python, {**interpreter.NEEDED, **interpreter.FAISS})
    if not found or found.missing:
        lacks = ", ".join(found.missing) if found else "a Python that runs"
        raise EngineError(f"The environment lacks {lacks} although pip has installed it; report this.")
    wanted = SERVICES["classification"].settings(
        {"model": str(PROBE_MODEL), "resize": (32, 32), "http_port": 0, "rpc_port": 0, "grace_s": 1}, {}
    )
    ports = launch.free_ports(wanted.server)
    with tempfile.TemporaryDirectory(prefix="pdserve-") as scratch:
        folder = work_folder.write(wanted, home, Path(scratch), ports, work_folder.copy)
        with launch.launched(found, folder, wanted.server, environ) as process:
            fields = launch.first_answer(process, wanted.server.name, ports, threading.Event())
    pipeline = open_classification(wanted, home)
    try:
        (own,) = pipeline.predict([launch.grey_image()], 1)
    finally:
        pipeline.close()
    if isinstance(own, PdserveError):
        raise own
    best = own.labels[0]
    answer = {key: ast.literal_eval(value) for key, value in (fields or {}).items()}
    if answer.get("label") != [best.label] or abs(answer["prob"][0] - best.score) > _TOLERANCE:
        raise EngineError(f"The environment answers {fields} where pdserve's own engine answers {best}.")


def _base(given: Path | None, environ: Mapping[str, str]) -> Interpreter:
    """The Python to make the environment with."""
    versions = " or ".join(PYTHONS)
    if given:
        found = query(given, {})
        if not found:
            raise UsageError(f"--python is {str(given)!r}, which does not run as a Python.")
        if not _is_supported(found):
            raise UsageError(f"--python is {found}; the packages of Paddle Serving need {versions}.")
        return found
    for candidate in _candidates(environ):
        found = query(candidate, {})
        if found and _is_supported(found):
            return found
    raise EngineMissingError(
        f"There is no Python {versions} here, which the packages of Paddle Serving need; install one, "
        f"with `uv python install {PYTHONS[0]}` or pyenv, and name it with --python PATH."
    )


def _is_supported(found: Interpreter) -> bool:
    return found.python.rpartition(".")[0] in PYTHONS


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    """Pythons of those versions on the PATH, and where pyenv and uv install theirs."""
    pyenv = Path(environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    uv = Path.home() / ".local/share/uv/python"
    for version in PYTHONS:
        if path := shutil.which(f"python{version}", path=environ.get("PATH")):
            yield Path(path)
        yield from sorted(pyenv.glob(f"{version}.*/bin/python"))
        yield from sorted(uv.glob(f"cpython-{version}.*/bin/python{version}"))


def _run(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Run a command. Raises FetchError with the last line of its output."""
    done = subprocess.run(
        command,
        env={**environ, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in os.fsdecode(done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["nothing"]
        reason = errors[-1].removeprefix("ERROR:").strip().rstrip(".")
        raise FetchError(
            f"`{' '.join(command[1:4])} …` failed: {reason}. "
            "Check the package index that pip uses (`pip config list`) and the network."
        )
