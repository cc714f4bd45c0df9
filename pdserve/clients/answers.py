"""Read a server's answers, JSON or the old pipeline protocol's fields, as the types of pdserve.answers."""

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pdserve.errors import ClientError

Item = TypeVar("Item")
MAX_FIELDS = 4 << 20
"""The most characters of the pipeline protocol's fields: their syntax tree takes a hundred times as much."""
# What ast.literal_eval and the readers raise for other content than they expect.
_UNREADABLE = (LookupError, MemoryError, OverflowError, RuntimeError, SyntaxError, TypeError, ValueError)


def from_results(content: Any, count: int, kind: Any) -> list[Any]:
    """Read ``{"results": […]}``: per image an answer of the type ``kind``, or its ClientError.

    Raises ClientError for content that has no such list of ``count`` results.
    """
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, list) or len(results) != count:
        raise ClientError(f"The server's answer is not {count} results: {_start(content)}")
    return [_result(result, kind) for result in results]


def _result(result: Any, kind: Any) -> Any:
    try:
        if "error" in result:
            return ClientError(str(result["error"]["message"]))
        return json_reader(kind)(result)
    except _UNREADABLE:
        return ClientError(f"The server's answer cannot be read: {_start(result)}")


def _start(content: Any) -> str:
    """The first 200 characters of what cannot be read; the text of a nested giant is not even made."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 160
    return short.repr(content)[:200]


def from_pipeline(keys: Sequence[str], values: Sequence[str], count: int, kind: type[Any]) -> list[Any]:
    """Read the pipeline protocol's fields: per image an answer of the type ``kind``.

    Raises ClientError for fields that are missing or cannot be read.
    """
    given = dict(zip(keys, values, strict=False))
    if sum(map(len, given.values())) > MAX_FIELDS:
        raise ClientError(f"The server's answer has fields of over {MAX_FIELDS:,} characters, the limit.")
    try:
        answers: list[Any] = kind.from_fields(given, count)
    except _UNREADABLE as error:
        raise ClientError(f"The server's answer cannot be read: {_start(given)}") from error
    if len(answers) != count:
        raise ClientError(f"The server answered {len(answers)} images of {count}.")
    return answers


def single(answers: Sequence[Item | ClientError]) -> Item:
    """The answer of a request with one image; raised if it is an error."""
    answer = answers[0]
    if isinstance(answer, ClientError):
        raise answer
    return answer


def items(answer: Any) -> Any:
    """The items of an answer, labels or objects: its first field, as a list. An error stays one."""
    return answer if isinstance(answer, ClientError) else list(getattr(answer, fields(answer)[0].name))


@cache
def json_reader(kind: Any) -> Callable[[Any], Any]:
    """Compile the function that reads JSON content as a type.

    ``kind``: int, float, str; tuple, dict and Optional of these; frozen dataclasses of these, whose keys
    are their fields, unknown ones ignored. The function raises TypeError, KeyError, ValueError or
    OverflowError for other content.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _object_reader(kind)
    if origin is tuple and arguments[1:] == (...,):
        each = json_reader(arguments[0])
        return lambda content: tuple(map(each, content))
    if origin is tuple:
        sides = [json_reader(argument) for argument in arguments]
        return lambda content: tuple(of(side) for of, side in zip(sides, content, strict=True))
    if origin is dict:
        value = json_reader(arguments[1])
        return lambda content: {str(k): value(v) for k, v in content.items()}
    if origin in (Union, UnionType):
        inner = next(json_reader(argument) for argument in arguments if argument is not NoneType)
        return lambda content: None if content is None else inner(content)
    scalar: Callable[[Any], Any] = kind
    return scalar


def _object_reader(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    readers = {field.name: json_reader(hints[field.name]) for field in fields(kind)}
    optional = {f.name for f in fields(kind) if not (f.default is f.default_factory is MISSING)}

    def read(content: Any) -> Any:
        given = [name for name in readers if name in content or name not in optional]
        return kind(**{name: readers[name](content[name]) for name in given})

    return read
