"""An inference model's files: found in a folder, and its program read.

Two formats of programs: ProgramDesc (``*.pdmodel``, ``__model__``; read in ``program.py``) and PIR
(``*.json``, Paddle 3; read in ``pir.py``).
"""

from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Literal

from pdserve.errors import ModelError
from pdserve.files import read_errors
from pdserve.formats.pir import parse_pir
from pdserve.formats.program import Program, parse_program_desc

Kind = Literal["ProgramDesc", "PIR"]

# Programs hold no weights: the largest we know is 2 MB. Parsed, a hostile one takes 30 times its size.
MAX_PROGRAM_BYTES = 32 * 2**20
# JSON is parsed into Python's objects, 8 MiB of the worst in two seconds and 250 MB.
MAX_JSON_BYTES = 8 * 2**20
# Parsing is in C; what is then done for each is not. The largest vision model that we know has 3,000.
MAX_PARAMETERS, MAX_VARIABLES = 20_000, 1000
_NO_MODEL = "it is no model of images"

_OLD_PARAMS = {"__model__": "__params__", "model": "params"}


@dataclass(frozen=True)
class ModelFiles:
    """A program and its parameters: in one file, or (``params`` None) in a file per variable beside it."""

    model: Path
    params: Path | None
    kind: Kind


def find_model_files(
    dirname: Path, model_filename: str | None = None, params_filename: str | None = None
) -> ModelFiles:
    """Find the model in a folder, by the names that Paddle's releases gave it or by those given here.

    Where one stem comes in both formats, the ProgramDesc is taken: more engines read it.
    Raises ModelError, with what the folder holds, where there is none or more than one.
    """
    try:
        names = sorted(p.name for p in dirname.iterdir() if p.is_file())
    except OSError as error:
        raise ModelError(f"There is no model folder {dirname}: {error.strerror}.") from error
    for given in (model_filename, params_filename):
        if given and not _is_file(dirname / given):
            raise ModelError(f"{dirname} has no file {given!r}; it holds {_listing(names)}.")
    model = dirname / (model_filename or _model_name(dirname, names))
    kind = _kind(model)
    params = params_filename or _params_name(dirname, model, names)
    files = ModelFiles(model, dirname / params if params else None, kind)
    if files.params is None:
        missing = [p for p in parameter_files(files, read_program(files)) if not _is_file(p)]
        if missing:
            raise ModelError(
                f"{dirname} has {model.name} but not its parameters, neither in one file nor, for instance, "
                f"{missing[0].name}; it holds {_listing(names)}. Name the file with --params-filename."
            )
    return files


def parameter_files(files: ModelFiles, program: Program) -> list[Path]:
    """The file of all parameters, or one for each. Raises ModelError for a name that leads outside."""
    if files.params is not None:
        return [files.params]
    for spec in program.parameters:
        path = PureWindowsPath(spec.name)  # which knows both separators, and drives
        if path.anchor or ".." in path.parts:
            raise ModelError(f"{files.model} names a parameter file outside its folder: {spec.name!r}.")
    return [files.model.parent / spec.name for spec in program.parameters]


def read_program(files: ModelFiles) -> Program:
    """Parse the program. Raises ModelError for a file that is missing, broken or no program."""
    most = MAX_JSON_BYTES if files.kind == "PIR" else MAX_PROGRAM_BYTES
    with read_errors(ModelError, files.model), files.model.open("rb") as file:
        data = file.read(most + 1)
    if not data:
        raise ModelError(f"{files.model} is empty; fetch or export the model again.")
    if len(data) > most:
        raise ModelError(f"{files.model} is larger than {most >> 20} MiB, so it is no program.")
    parse = parse_pir if files.kind == "PIR" else parse_program_desc
    program = parse(data, str(files.model))
    for what, specs in (("feeds", program.signature.feeds), ("fetches", program.signature.fetches)):
        if not specs:
            raise ModelError(f"{files.model} has no {what}, so it is no inference model; export it again.")
        if len(specs) > MAX_VARIABLES:
            raise ModelError(f"{files.model} has more than {MAX_VARIABLES} {what}: {_NO_MODEL}.")
    if len(program.parameters) > MAX_PARAMETERS:
        raise ModelError(f"{files.model} has more than {MAX_PARAMETERS} parameters: {_NO_MODEL}.")
    return program


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name comes from a file: it may be too long, for instance
        return False


def _listing(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "no files"


def _model_name(dirname: Path, names: list[str]) -> str:
    programs = [n for n in names if n.endswith(".pdmodel")]
    jsons = [n for n in names if n.endswith(".json") and _may_be_pir(dirname / n, names)]
    old = [n for n in names if n == "__model__" or (n == "model" and "params" in names)]
    found = programs + [n for n in jsons if n.removesuffix(".json") + ".pdmodel" not in programs] + old
    for standard in ("inference.pdmodel", "inference.json"):
        if standard in found:
            return standard
    if len(found) != 1:
        which = f"several models ({', '.join(found[:20])})" if found else "no model"
        raise ModelError(
            f"{dirname} has {which}; it holds {_listing(names)}. "
            "Name the files with --model-filename and --params-filename."
        )
    return found[0]


def _may_be_pir(path: Path, names: list[str]) -> bool:
    """A serving folder holds other JSON too; a program's begins with ``base_code``, as Paddle sorts keys."""
    if path.stem in ("inference", "__model__") or path.stem + ".pdiparams" in names:
        return True
    try:
        with path.open("rb") as file:
            return b'"base_code"' in file.read(256)
    except OSError:
        return False


def _kind(model: Path) -> Kind:
    if model.suffix == ".json":
        return "PIR"
    with read_errors(ModelError, model), model.open("rb") as file:
        return "PIR" if file.read(1) == b"{" else "ProgramDesc"  # no ProgramDesc starts with a brace


def _params_name(dirname: Path, model: Path, names: list[str]) -> str | None:
    for name in (model.stem + ".pdiparams", _OLD_PARAMS.get(model.name)):
        if name in names:
            return name
    found = [n for n in names if n.endswith(".pdiparams")]
    if len(found) > 1:
        raise ModelError(
            f"{dirname} has several parameter files ({', '.join(found[:20])}) and none is called "
            f"{model.stem}.pdiparams; name the one of {model.name} with --params-filename."
        )
    return found[0] if found else None
