"""Reads and writes ``serving_server_conf.prototxt``: a serving model's feeds and fetches, with aliases.

Paddle Serving keeps the same GeneralModelConfig message twice: as protobuf text
(``*_conf.prototxt``) and in wire format (``*_conf.stream.prototxt``), for the server and for the
client. Both are written byte for byte as the published converter 0.9.0 writes them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from pdserve.errors import AliasError, ModelError
from pdserve.files import read_errors
from pdserve.formats import text_file
from pdserve.formats.protos import message

SERVER_TEXT = "serving_server_conf.prototxt"
SERVER_STREAM = "serving_server_conf.stream.prototxt"
CLIENT_TEXT = "serving_client_conf.prototxt"
CLIENT_STREAM = "serving_client_conf.stream.prototxt"

MAX_BYTES = 256 << 10
MAX_VARIABLES = 1000
"""Feeds, or fetches; what a file of the size above holds is parsed in a second."""

# feed_type and fetch_type by NumPy's name of the dtype; the numbers are Paddle Serving's.
TYPE_CODES: Mapping[str, int] = {
    "int64": 0,
    "float32": 1,
    "int32": 2,
    "float64": 3,
    "int16": 4,
    "float16": 5,
    "bfloat16": 6,
    "uint8": 7,
    "int8": 8,
    "bool": 9,
    "complex64": 10,
    "complex128": 11,
}
_TYPE_NAMES = {code: name for name, code in TYPE_CODES.items()}


@dataclass(frozen=True)
class Variable:
    """A feed or a fetch.

    ``name`` is the model's own, ``alias`` the caller's; ``dtype`` a NumPy dtype name; ``shape`` the
    known extents only, without the batch and other free dimensions, as the format has it (but (-1,) for a
    tensor with LoD).
    """

    name: str
    alias: str
    dtype: str
    shape: tuple[int, ...]
    lod: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """All feeds and fetches, in the file's order."""

    feeds: tuple[Variable, ...]
    fetches: tuple[Variable, ...]

    def with_aliases(self, feeds: Mapping[str, str], fetches: Mapping[str, str]) -> "ModelConfig":
        """A copy in which a variable known by name or present alias gets a new alias.

        Raises AliasError for a key that is no feed (fetch), and for aliases that are not distinct.
        """
        return ModelConfig(_patched("feed", self.feeds, feeds), _patched("fetch", self.fetches, fetches))


def _patched(kind: str, variables: tuple[Variable, ...], wanted: Mapping[str, str]) -> tuple[Variable, ...]:
    names = {v.name for v in variables}
    plural = "fetches" if kind == "fetch" else f"{kind}s"
    for key, alias in wanted.items():
        if key not in names and all(key != v.alias for v in variables):
            there = (v.name if v.name == v.alias else f"{v.name} (alias {v.alias})" for v in variables)
            raise AliasError(
                f"The model has no {kind} {key!r}; its {plural} are: {', '.join(there) or 'none'}."
            )
        if not alias:
            raise AliasError(f"The new alias of {kind} {key!r} is empty; give it as {key}=NAME.")
    # A name goes before an alias, so that two variables can swap their aliases.
    by_alias = {key: alias for key, alias in wanted.items() if key not in names}
    patched = tuple(replace(v, alias=wanted.get(v.name, by_alias.get(v.alias, v.alias))) for v in variables)
    aliases = [v.alias for v in patched]
    for alias in aliases:
        if aliases.count(alias) > 1:
            raise AliasError(f"Two {plural} would be called {alias!r}; give each a different alias.")
    return patched


def parse_text(text: str, source: str = "prototxt") -> ModelConfig:
    """Read protobuf text. Raises ModelError, with line and column, for anything else."""
    config = message("pdserve.model_config.GeneralModelConfig")()
    try:
        _check_escapes(text)
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise ModelError(f"{source} is no serving configuration: {error}.") from error
    return _from_message(config, source)


# Comments and strings of protobuf text (protobuf.dev, text format), and what may follow a backslash. A string
# without its end goes to the end of its line: to look for one again at each quote would take the square.
_QUOTED = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?""", re.DOTALL)
_ESCAPES = frozenset("abfnrtv?\\'\"01234567xXuU")


def _check_escapes(text: str) -> None:
    """Raise ParseError for an invalid escape, which the parser accepts literally, with a Python warning."""
    for quoted in _QUOTED.finditer(text):
        escapes = () if quoted[0].startswith("#") else re.finditer(r"\\(.)", quoted[0], re.DOTALL)
        for escape in escapes:
            if escape[1] not in _ESCAPES:
                at = quoted.start() + escape.start()
                line, before = text.count("\n", 0, at) + 1, text.rfind("\n", 0, at)
                raise text_format.ParseError(f"{escape[0]} is no escape", line, at - before)


def parse_stream(data: bytes, source: str = "stream.prototxt") -> ModelConfig:
    """Read the wire format. Raises ModelError for anything else."""
    config = message("pdserve.model_config.GeneralModelConfig")()
    try:
        config.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{source} is no serving configuration: {error}.") from error
    return _from_message(config, source)


def read(path: Path) -> ModelConfig:
    """Read a ``.prototxt`` or ``.stream.prototxt`` file. Raises ModelError if missing or unreadable."""
    with read_errors(ModelError, path):
        data = text_file.read_bytes(path, MAX_BYTES)
    if path.name.endswith(".stream.prototxt"):
        return parse_stream(data, str(path))
    try:
        text = text_file.decode_text(data)
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not text.") from error
    except ValueError as error:
        raise ModelError(f"{path} is not text as it should be: {error}.") from error
    return parse_text(text, str(path))


def dump_text(config: ModelConfig) -> str:
    """The text file's content."""
    text: str = text_format.MessageToString(_to_message(config))
    return text


def dump_stream(config: ModelConfig) -> bytes:
    """The stream file's content."""
    data: bytes = _to_message(config).SerializeToString()
    return data


def _from_message(config: Any, source: str) -> ModelConfig:
    def variable(v: Any, code: int) -> Variable:
        if not all(isinstance(name, str) for name in (v.name, v.alias_name)):
            raise ModelError(f"{source} has the name {v.name!r}, which is no UTF-8 text.")
        if code not in _TYPE_NAMES:
            raise ModelError(f"{source} gives {v.name!r} the unknown type {code}.")
        # Written by hand, free dimensions may stand there as -1.
        shape = tuple(v.shape) if v.is_lod_tensor else tuple(extent for extent in v.shape if extent >= 0)
        return Variable(v.name, v.alias_name or v.name, _TYPE_NAMES[code], shape, v.is_lod_tensor)

    if max(len(config.feed_var), len(config.fetch_var)) > MAX_VARIABLES:
        raise ModelError(f"{source} has more than {MAX_VARIABLES} feeds or fetches.")
    return ModelConfig(
        tuple(variable(v, v.feed_type) for v in config.feed_var),
        tuple(variable(v, v.fetch_type) for v in config.fetch_var),
    )


def _to_message(config: ModelConfig) -> Any:
    out = message("pdserve.model_config.GeneralModelConfig")()
    for field, type_field, variables in (
        (out.feed_var, "feed_type", config.feeds),
        (out.fetch_var, "fetch_type", config.fetches),
    ):
        for v in variables:
            # Every scalar is set, defaults too: the published files carry them.
            item = field.add(name=v.name, alias_name=v.alias, is_lod_tensor=v.lod)
            setattr(item, type_field, TYPE_CODES[v.dtype])
            item.shape.extend(v.shape)
    return out
