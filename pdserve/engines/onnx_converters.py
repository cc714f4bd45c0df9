"""Converters of Paddle models to ONNX: a table, in the order in which they are tried.

Each runs in a separate process, for so long at most, and of what it prints only the end is kept. What it
wrote is compared with the program: the opset, the names and types of feeds and fetches, the free extents.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pdserve.child_process import Limits, ended, limit, memory_for, too_much, wants_memory
from pdserve.engines import pir_rewrites
from pdserve.errors import DiskError, ModelError
from pdserve.files import disk_errors
from pdserve.formats.model_files import Kind, ModelFiles
from pdserve.formats.onnx import OnnxFile, read_onnx
from pdserve.formats.parameters import read_parameters
from pdserve.formats.program import Program, TensorSpec

OPSET = 17

# Seconds. A model of 1.2 GB takes p2o 10 s and paddle2onnx a minute on two slow cores.
TIMEOUT_S = 600
_KEPT_OUTPUT = 64 * 1024  # bytes, of what a converter prints


@dataclass(frozen=True)
class Source:
    """A model to convert, and an empty folder to work in.

    ``model``: the file of its program, which may be another than the model's own.
    """

    model: Path
    files: ModelFiles
    program: Program
    scratch: Path


@dataclass(frozen=True)
class Converter:
    """``run``: writes the ONNX file, or says what went wrong. ``reads``: the formats that it converts.

    ``distributions``: the packages that it needs, itself first, alternatives with a bar between them;
    ``install``: what brings them.
    """

    run: Callable[[Source, Path], str | None]
    reads: Sequence[Kind]
    distributions: Sequence[str]
    install: str

    def version(self) -> str | None:
        """Version as installed, None where it or another package that it needs is not."""
        versions = [_version(name) for name in self.distributions]
        return versions[0] if all(versions) else None


def _p2o(source: Source, out: Path) -> str | None:
    """It needs no Paddle. ``--strict``: what it could only convert to something else is refused."""
    program = _command("p2o")
    if program is None:
        return "its program is not where pip puts it; install it again"
    model, scratch = source.model, source.scratch / "rewritten.json"
    if pir_rewrites.OPERATORS & source.program.operators:
        try:
            rewritten = pir_rewrites.rewritten(model.read_bytes())
        except (LookupError, ValueError, TypeError) as error:
            return f"it has an operator in a form that is not known ({type(error).__name__}, {error})"
        if rewritten is not None:
            with disk_errors(scratch):
                scratch.write_bytes(rewritten)
            model = scratch
    paths = [str(path.absolute()) for path in (model, _parameters(source), out)]
    size = sum(Path(path).stat().st_size for path in paths[:2])
    return _run([str(program), *paths, "--opset", str(OPSET), "--strict"], out, size)


# paddle2onnx loads all of Paddle, writes on standard output, and dies of some models. "none" keeps it from
# Polygraphy, which would install packages by itself.
_PADDLE2ONNX = """
import sys, warnings
warnings.simplefilter("ignore")
import paddle2onnx
model, params, out, opset = sys.argv[1:]
paddle2onnx.export(model, params, out, opset_version=int(opset), optimize_tool="none")
"""


def _paddle2onnx(source: Source, out: Path) -> str | None:
    # It goes by these very names, whatever it is given.
    program = source.scratch / ("inference.json" if source.files.kind == "PIR" else "inference.pdmodel")
    params = source.scratch / "inference.pdiparams"
    with disk_errors(source.scratch):
        shutil.copyfile(source.model, program)
        shutil.copyfile(_parameters(source), params)
    return run_python(_PADDLE2ONNX, out, str(program), str(params), str(out), str(OPSET))


CONVERTERS: dict[str, Converter] = {
    "p2o": Converter(_p2o, ("PIR",), ("p2o",), "pip install p2o"),
    "paddle2onnx": Converter(
        _paddle2onnx,
        ("PIR", "ProgramDesc"),
        ("paddle2onnx", "paddlepaddle|paddlepaddle-gpu"),
        'pip install "pdserve[onnx]"',
    ),
}


def difference(path: Path, program: Program, kind: Kind) -> str | None:
    """How an ONNX file differs from the program that it is to compute, in words; None where it does not."""
    try:
        file = read_onnx(path)
    except ModelError as error:
        return error.message.rstrip(".")
    if file.opset > OPSET:
        return f"it wrote opset {file.opset}, not {OPSET}"
    feeds = {spec.name: spec for spec in file.signature.feeds}
    if feeds.keys() != {spec.name for spec in program.signature.feeds}:
        return f"it made the feeds {', '.join(sorted(feeds))}"
    names = output_names(file, program)
    if names is None:
        return f"it made {len(file.signature.fetches)} fetches of {len(program.signature.fetches)}"
    if kind == "ProgramDesc":  # paddle2onnx derives the types anew, and some differ in name alone
        return None
    for spec in program.signature.feeds:
        if problem := _changed(spec, feeds[spec.name], "feed"):
            return problem
    outputs = {spec.name: spec for spec in file.signature.fetches}
    for spec in program.signature.fetches:
        if outputs[names[spec.name]].dtype != spec.dtype:
            return f"it made the fetch {spec.name!r} {outputs[names[spec.name]].dtype}, not {spec.dtype}"
    return None


def output_names(file: OnnxFile, program: Program) -> dict[str, str] | None:
    """A program's fetches -> what an ONNX file calls them; None where it has others.

    p2o calls them as Paddle 3 does, ``fetch_name_0``; paddle2onnx by their place.
    """
    fetches = [spec.name for spec in program.signature.fetches]
    outputs = [spec.name for spec in file.signature.fetches]
    if sorted(fetches) == sorted(outputs):
        return {name: name for name in fetches}
    return dict(zip(fetches, outputs, strict=True)) if len(fetches) == len(outputs) else None


def _changed(spec: TensorSpec, made: TensorSpec, kind: str) -> str | None:
    shapes = f"the {kind} {spec.name!r} the shape {list(made.shape)}, not {list(spec.shape)}"
    if made.dtype != spec.dtype:
        return f"it made the {kind} {spec.name!r} {made.dtype}, not {spec.dtype}"
    if len(made.shape) != len(spec.shape):
        return f"it gave {shapes}"
    fixed = any(got >= 0 and got != known for got, known in zip(made.shape, spec.shape, strict=True))
    return f"it gave {shapes}" if fixed else None


def _version(distributions: str) -> str | None:
    for name in distributions.split("|"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def _command(distribution: str) -> Path | None:
    """The program that a package brought, by the package's own list of files, else beside this Python's.

    Not by PATH: a service's may lack the environment that it runs in, or find a stranger's program.
    """
    names = (f"{distribution}.exe", distribution) if sys.platform == "win32" else (distribution,)
    listed = importlib.metadata.files(distribution) or ()
    found = [Path(str(file.locate())) for file in listed if file.name in names]
    found += [Path(sysconfig.get_path("scripts")) / name for name in names]
    return next((path for path in found if path.is_file() and os.access(path, os.X_OK)), None)


def _parameters(source: Source) -> Path:
    """The parameters in one file, which a model has or gets here."""
    if source.files.params is not None:
        return source.files.params
    joined = source.scratch / "parameters"
    if not joined.exists():
        with disk_errors(joined):
            joined.write_bytes(read_parameters(source.files, source.program))
    return joined


def run_python(code: str, out: Path, *arguments: str) -> str | None:
    """Run Python code that is to write ``out``; what went wrong, or None.

    Those of the arguments that are files are what it reads.
    """
    size = sum(Path(each).stat().st_size for each in arguments if Path(each).is_file())
    return _run([sys.executable, "-c", code, *arguments], out, size)


def _run(command: Sequence[str], out: Path, size: int = 0, timeout_s: float = TIMEOUT_S) -> str | None:
    """Run a converter of ``size`` bytes that is to write ``out``; what went wrong, or None."""
    limits = Limits(timeout_s, memory_for(size))
    try:
        process = subprocess.Popen(
            command,
            cwd=out.parent,
            env=os.environ | {"RUST_BACKTRACE": "0"},  # p2o's error is one line then
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
    except OSError as error:
        return f"it does not start: {error.strerror}"
    limit(process.pid, limits)
    printed = bytearray()
    reader = threading.Thread(target=_keep_end, args=(process.stdout, printed), daemon=True)
    reader.start()
    try:
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return f"it took more than {timeout_s:.0f} s"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(5)  # a process of its own may hold the pipe open
    if status == 0 and out.is_file() and out.stat().st_size > 0:
        return None
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed.decode("utf-8", "replace"))  # colours
    if "No space left on device" in text:
        raise DiskError(f"Cannot write {out}: no space is left; free some, or set TMPDIR to another disk.")
    return too_much(limits) if wants_memory(text) else _why(text, status)


def _keep_end(pipe: object, printed: bytearray) -> None:
    descriptor = pipe.fileno()  # type: ignore[attr-defined]
    while chunk := os.read(descriptor, 1 << 16):
        printed += chunk
        del printed[:-_KEPT_OUTPUT]
    pipe.close()  # type: ignore[attr-defined]


def _why(output: str, status: int) -> str:
    # paddle2onnx; p2o's errors; p2o's panics, which come in the next line.
    pattern = r"Failed to convert PaddlePaddle model: (.+)|^Error: (.+)|^thread .+ panicked at .+\n(.+)"
    if match := re.search(pattern, output, re.MULTILINE):
        return (match[1] or match[2] or match[3]).strip().rstrip(". ")[:300]
    lines = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    return lines[-1][:300] if lines and status >= 0 else ended(status)
