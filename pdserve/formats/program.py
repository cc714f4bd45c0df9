"""An inference model's files: which they are, what the program feeds, fetches, runs and keeps.

Two formats, both read without Paddle:

- ProgramDesc, a protobuf message: ``*.pdmodel``, ``__model__`` (Paddle 1 and 2);
- PIR, JSON: ``*.json`` (Paddle 3), read in ``pir.py``.

Names are those that Paddle's own predictor reports. Feeds have the same names in both formats; fetches
do not: a ProgramDesc fetches variables (``softmax_0.tmp_0``), whereas values have no names in PIR, so that
Paddle 3 calls them by their place, ``fetch_name_0``. Order, dtypes and shapes agree.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from google.protobuf.message import DecodeError

from pdserve.errors import ModelError
from pdserve.formats.protos import message

Kind = Literal["ProgramDesc", "PIR"]

# Programs hold no weights: the largest we know is 2 MB. Parsed, a hostile one takes 30 times its size.
MAX_PROGRAM_BYTES = 32 * 2**20
MAX_RANK = 32

_OLD_PARAMS = {"__model__": "__params__", "model": "params"}


@dataclass(frozen=True)
class ModelFiles:
    """A program and its parameters: in one file, or (``params`` None) in a file per variable beside it."""

    model: Path
    params: Path | None
    kind: Kind


@dataclass(frozen=True)
class TensorSpec:
    """``dtype`` is NumPy's name (and ``bfloat16``); ``shape`` has -1 where an extent is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    lod_level: int = 0


@dataclass(frozen=True)
class Signature:
    """Feeds and fetches in the order in which Paddle's predictor lists them."""

    feeds: tuple[TensorSpec, ...]
    fetches: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Program:
    """What there is to know of a program; ``parameters`` in the order of the parameter file, by name."""

    signature: Signature
    operators: frozenset[str]
    parameters: tuple[TensorSpec, ...]


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


def read_signature(files: ModelFiles) -> Signature:
    """The feeds and fetches. Raises ModelError for a file that is missing, broken or no program."""
    return read_program(files).signature


def operators(files: ModelFiles) -> frozenset[str]:
    """Types of the operators used, in all blocks, without the dialect: ``conv2d``. Raises ModelError.

    The two formats call some operators differently (``matmul_v2`` and ``matmul``, ``batch_norm`` and
    ``batch_norm_``). Feeding, fetching and parameters are left out.
    """
    return read_program(files).operators


def read_program(files: ModelFiles) -> Program:
    """Parse the program. Raises ModelError for a file that is missing, broken or no program."""
    from pdserve.formats.pir import parse_pir  # which imports the values above

    try:
        with files.model.open("rb") as file:
            data = file.read(MAX_PROGRAM_BYTES + 1)
    except OSError as error:
        raise ModelError(f"Cannot read {files.model}: {error.strerror}.") from error
    if not data:
        raise ModelError(f"{files.model} is empty; fetch or export the model again.")
    if len(data) > MAX_PROGRAM_BYTES:
        raise ModelError(f"{files.model} is larger than {MAX_PROGRAM_BYTES >> 20} MiB, so it is no program.")
    parse = parse_pir if files.kind == "PIR" else _parse_program_desc
    program = parse(data, str(files.model))
    for what, specs in (("feeds", program.signature.feeds), ("fetches", program.signature.fetches)):
        if not specs:
            raise ModelError(f"{files.model} has no {what}, so it is no inference model; export it again.")
    return program


def tensor_spec(name: Any, dtype: str, shape: Iterable[Any], lod_level: int = 0) -> TensorSpec:
    """Build a TensorSpec of what a file says. Raises ValueError for what cannot be served, or is no name."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f"a tensor has the name {name!r}")
    dims = tuple(shape)
    if len(dims) > MAX_RANK or any(type(d) is not int or d >= 2**31 for d in dims):
        raise ValueError(f"tensor {name!r} has the shape {dims[: MAX_RANK + 1]}")
    return TensorSpec(name, dtype, tuple(max(d, -1) for d in dims), lod_level)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name may be a stranger's: too long, for instance
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
    try:
        with model.open("rb") as file:  # no ProgramDesc starts with a brace
            return "PIR" if file.read(1) == b"{" else "ProgramDesc"
    except OSError as error:
        raise ModelError(f"Cannot read {model}: {error.strerror}.") from error


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


# VarType.Type of Paddle's framework.proto -> NumPy's name, bytes of an element.
_DTYPES = {
    "BOOL": ("bool", 1),
    "INT8": ("int8", 1),
    "UINT8": ("uint8", 1),
    "INT16": ("int16", 2),
    "INT32": ("int32", 4),
    "INT64": ("int64", 8),
    "FP16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "FP32": ("float32", 4),
    "FP64": ("float64", 8),
    "COMPLEX64": ("complex64", 8),
    "COMPLEX128": ("complex128", 16),
}


def _parse_program_desc(data: bytes, source: str) -> Program:
    program = message("pdserve.program.ProgramDesc")()
    try:
        program.ParseFromString(data)
        if not program.IsInitialized() or not program.blocks:
            raise ValueError("required fields are missing")
        main = program.blocks[0]
        variables = {v.name: v for v in main.vars}
        kept = [v for v in main.vars if v.persistable and v.type.type == v.type.DENSE_TENSOR]
        return Program(
            Signature(_columns(main, "feed", variables), _columns(main, "fetch", variables)),
            frozenset(str(op.type) for block in program.blocks for op in block.ops) - {"feed", "fetch"},
            tuple(sorted((_spec(v) for v in kept), key=lambda p: p.name)),
        )
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{source} is no readable ProgramDesc: {error}; export it again.") from error


def _columns(block: Any, kind: str, variables: dict[str, Any]) -> tuple[TensorSpec, ...]:
    """The variables that feed (fetch) operators name, by their column and not by their place in the block."""
    found: dict[int, TensorSpec] = {}
    for op in block.ops:
        if op.type != kind:
            continue
        slots, parameter = (op.outputs, "Out") if kind == "feed" else (op.inputs, "X")
        names = [name for slot in slots if slot.parameter == parameter for name in slot.arguments]
        columns = [attr.i for attr in op.attrs if attr.name == "col"]
        if len(names) != 1 or len(columns) != 1 or columns[0] in found or names[0] not in variables:
            raise ValueError(f"a {kind} operator is malformed")
        found[columns[0]] = _spec(variables[names[0]])
    return tuple(found[column] for column in sorted(found))


def _spec(variable: Any) -> TensorSpec:
    if not variable.type.HasField("dense_tensor"):
        raise ValueError(f"variable {variable.name!r} is no dense tensor")
    tensor = variable.type.dense_tensor.tensor
    dtype, _ = element(tensor)
    return tensor_spec(variable.name, dtype, tensor.dims, variable.type.dense_tensor.lod_level)


def element(desc: Any) -> tuple[str, int]:
    """NumPy's name of a TensorDesc's data type, and its bytes."""
    name = desc.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[desc.data_type].name
    if name not in _DTYPES:
        raise ValueError(f"a tensor has the data type {name}")
    return _DTYPES[name]
