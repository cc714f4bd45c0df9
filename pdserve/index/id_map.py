"""``id_map.pkl``: id -> "path<TAB>label", a pickled dict as PaddleClas writes it.

A pickle is a program for a small stack machine, and one from a stranger can run anything. Here is a
machine that knows only the instructions that a dict of int and str needs (opcodes: CPython,
``Lib/pickletools.py``). It imports nothing and calls nothing, and what it keeps is no more than what is
written in the file: ``pickle.Unpickler`` without globals would still take gigabytes at a word from it.

PaddleClas pickles its ids as they come out of an array, as NumPy integers: a call of NumPy's ``scalar``
with a type and eight bytes. That one call is understood (not made) and gives an int.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pdserve.errors import IndexFolderError

IdMap = dict[int, str]

MAX_BYTES = 4 << 30


class _RefusedError(Exception):
    """The pickle holds what an id map has no use for."""


def read(path: Path, max_bytes: int = MAX_BYTES) -> IdMap:
    """Read an id map, the entries in the order of the file.

    Raises IndexFolderError for a file of more than ``max_bytes``, a pickle of anything but a dict of
    int and str, and a broken one; FileNotFoundError and other OSErrors as they come.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise IndexFolderError(f"{path} has {size} bytes, more than the limit of {max_bytes} for an id map.")
    try:
        return loads(path.read_bytes())
    except _RefusedError as error:
        raise IndexFolderError(
            f"{path} is no id map, it {error}; it may hold a dict of int and str and nothing else."
        ) from None


def dumps(entries: Mapping[int, str]) -> bytes:
    """Pickle an id map as PaddleClas does; readable from Python 3.4 on."""
    return pickle.dumps(dict(entries), protocol=4)


def split(entry: str) -> tuple[str, str]:
    """An entry's image path and label.

    PaddleClas keeps the whole line of the label list, whose delimiter is a tab; where there is none, the
    first blank parts the two. A third column is not the label's.
    """
    parts = entry.split("\t") if "\t" in entry else entry.split(None, 1)
    return (parts[0], parts[1]) if len(parts) > 1 else (entry, "")


def join(image: str, label: str) -> str:
    """An entry of an image path and a label."""
    return f"{image}\t{label}"


# Stand-ins on the stack for the only names that are known; they can do nothing.
_SCALAR, _DTYPE, _INT64 = object(), object(), object()
_NAMES = {
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy", "dtype"): _DTYPE,
}
_STACK_GLOBAL, _GLOBAL = 0x93, 0x63
_SHORT_STR, _STR, _MEMOIZE, _INT1, _INT2, _INT4, _LONG1 = 0x8C, 0x58, 0x94, 0x4B, 0x4D, 0x4A, 0x8A
_PUT, _LONG_PUT, _GET, _LONG_GET = 0x71, 0x72, 0x68, 0x6A
_SHORT_BYTES, _REDUCE, _BUILD, _MARK, _EMPTY_DICT = 0x43, 0x52, 0x62, 0x28, 0x7D
_SETITEM, _SETITEMS, _PROTO, _FRAME, _STOP = 0x73, 0x75, 0x80, 0x95, 0x2E
_TUPLE, _TUPLE1, _TUPLE2, _TUPLE3 = 0x74, 0x85, 0x86, 0x87
_NONE, _TRUE, _FALSE = 0x4E, 0x88, 0x89


def loads(data: bytes) -> IdMap:
    """The id map in a pickle of protocol 2 to 5. Raises _RefusedError, which `read` translates."""
    try:
        return _run(data)
    except UnicodeDecodeError:
        raise _RefusedError("has a text that is not UTF-8") from None
    except (IndexError, KeyError, ValueError, TypeError):
        raise _RefusedError("is truncated or broken") from None


def _run(data: bytes) -> IdMap:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    made: IdMap = {}
    at = 0
    while True:
        op = data[at]  # behind the end: IndexError, truncated
        at += 1
        if op == _SHORT_STR:
            end = at + 1 + data[at]
            stack.append(data[at + 1 : end].decode())
            at = end
        elif op == _MEMOIZE:
            memo[len(memo)] = stack[-1]
        elif op == _INT4:
            stack.append(int.from_bytes(data[at : at + 4], "little", signed=True))
            at += 4
        elif op == _INT2:
            stack.append(data[at] | data[at + 1] << 8)
            at += 2
        elif op == _INT1:
            stack.append(data[at])
            at += 1
        elif op == _STR:
            end = at + 4 + int.from_bytes(data[at : at + 4], "little")
            stack.append(data[at + 4 : end].decode())
            at = end
        elif op == _PUT:
            memo[data[at]] = stack[-1]
            at += 1
        elif op == _LONG_PUT:
            memo[int.from_bytes(data[at : at + 4], "little")] = stack[-1]
            at += 4
        elif op == _GET:
            stack.append(memo[data[at]])
            at += 1
        elif op == _LONG_GET:
            stack.append(memo[int.from_bytes(data[at : at + 4], "little")])
            at += 4
        elif op == _SHORT_BYTES:
            end = at + 1 + data[at]
            stack.append(data[at + 1 : end])
            at = end
        elif op == _LONG1:
            end = at + 1 + data[at]
            if end - at > 9:
                raise _RefusedError("has an integer of more than 64 bits")
            stack.append(int.from_bytes(data[at + 1 : end], "little", signed=True))
            at = end
        elif op in (_TUPLE1, _TUPLE2, _TUPLE3):
            _pack(stack, len(stack) - 1 - (op - _TUPLE1))
        elif op == _TUPLE:
            _pack(stack, marks.pop())
        elif op == _REDUCE:
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif op == _MARK:
            marks.append(len(stack))
        elif op == _SETITEMS:
            mark = marks.pop()
            _fill(stack[mark - 1], stack[mark:])
            del stack[mark:]
        elif op == _SETITEM:
            value, key = stack.pop(), stack.pop()
            _fill(stack[-1], [key, value])
        elif op == _BUILD:
            if not isinstance(stack.pop(), tuple) or stack[-1] is not _INT64:
                raise _RefusedError("sets the state of an object")
        elif op == _STACK_GLOBAL:
            name, module = stack.pop(), stack.pop()
            stack.append(_named(module, name))
        elif op == _GLOBAL:
            module, name = data[at : (middle := data.index(b"\n", at))], data[middle + 1 :]
            name = name[: name.index(b"\n")]
            stack.append(_named(module.decode(), name.decode()))
            at = middle + len(name) + 2
        elif op == _EMPTY_DICT:
            if made:
                raise _RefusedError("holds more than one dict")
            stack.append(made)
        elif op in (_NONE, _TRUE, _FALSE):
            stack.append({_NONE: None, _TRUE: True, _FALSE: False}[op])
        elif op == _PROTO:
            at += 1
        elif op == _FRAME:
            at += 8
        elif op == _STOP:
            complete = len(stack) == 1 and stack[0] is made
            if not complete:
                raise _RefusedError("holds something other than a dict")
            return made
        else:
            raise _RefusedError(f"uses the pickle instruction 0x{op:02x} at byte {at - 1}")


def _pack(stack: list[Any], start: int) -> None:
    if start < 0:
        raise _RefusedError("is truncated or broken")
    stack[start:] = [tuple(stack[start:])]


def _fill(made: Any, items: list[Any]) -> None:
    if not isinstance(made, dict) or len(items) % 2:
        raise _RefusedError("is truncated or broken")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not int or type(value) is not str:
            raise _RefusedError(f"maps {type(key).__name__} to {type(value).__name__}")
        made[key] = value


def _named(module: Any, name: Any) -> object:
    try:
        return _NAMES[module, name]
    except (KeyError, TypeError):
        _refuse_name(module, name)


def _refuse_name(module: Any, name: Any) -> NoReturn:
    raise _RefusedError(f"asks for {str(module)[:60]}.{str(name)[:60]}, which is not run")


def _call(function: Any, arguments: Any) -> object:
    """NumPy's ``dtype("i8", False, True)`` and ``scalar(that, eight bytes)``; see numpy/core/multiarray."""
    if function is _DTYPE and arguments == ("i8", False, True):
        return _INT64
    if function is _SCALAR and isinstance(arguments, tuple) and len(arguments) == 2:
        kind, value = arguments
        if kind is _INT64 and isinstance(value, bytes) and len(value) == 8:
            return int.from_bytes(value, "little", signed=True)
    raise _RefusedError("calls a function, which is not run")
