"""Reads pickles of plain data without running them.

A pickle is a program for a small stack machine (opcodes: CPython, ``Lib/pickletools.py``).
``pickle.Unpickler`` runs it, and even with ``find_class`` refusing everything nine bytes make it allocate
gigabytes (a large memo index), sixty make it hash for ever (a dict key of tuples in tuples) and some more
overflow the C stack. Plain data needs some thirty opcodes, so these are interpreted here: nothing is imported
or called, and time and memory grow with the file alone.
"""

import io
import pickle
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# Those that come once per entry of a large dict.
_SHORT_TEXT, _TEXT, _MEMOIZE = pickle.SHORT_BINUNICODE[0], pickle.BINUNICODE[0], pickle.MEMOIZE[0]
_INT1, _INT2, _INT4 = pickle.BININT1[0], pickle.BININT2[0], pickle.BININT[0]
_PUT, _LONG_PUT = pickle.BINPUT[0], pickle.LONG_BINPUT[0]
_GET, _LONG_GET = pickle.BINGET[0], pickle.LONG_BINGET[0]
_SHORT_BYTES, _REDUCE, _STOP = pickle.SHORT_BINBYTES[0], pickle.REDUCE[0], pickle.STOP[0]
_TUPLES = (pickle.TUPLE1[0], pickle.TUPLE2[0], pickle.TUPLE3[0])


class BadPickleError(Exception):
    """What is wrong with a pickle, as the end of a sentence that begins with its path."""


@dataclass(frozen=True)
class Global:
    """A name that a pickle refers to, as "module.name"; it is only compared, never imported."""

    name: str


class Unpickler:
    """Interprets pickles; subclasses say which names, calls and types they admit.

    ``names``: admitted globals. ``key_type``, ``value_type`` (None: any): what dicts may hold.
    """

    names: Collection[str] = ()
    protocols: Collection[int] = range(2, 6)
    key_type: type = str
    value_type: type | None = None
    max_opcodes = sys.maxsize
    max_int_bytes = 255

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The value of an admitted call. Raises BadPickleError."""
        raise BadPickleError("calls a function, which is not run")

    def persistent(self, identity: Any) -> Any:
        """The value of an admitted persistent id. Raises BadPickleError."""
        raise BadPickleError("refers to an object outside the file")

    def check_state(self, value: Any, state: Any) -> None:
        """Raise BadPickleError unless ``value`` may be given this state, which is left out."""
        raise BadPickleError("sets the state of an object")

    def load(self, file: io.BytesIO) -> Any:
        """The value of the pickle at the file's position, which moves behind it. Raises BadPickleError."""
        try:
            return self._run(file)
        except UnicodeDecodeError:
            raise BadPickleError("is altered: a text in it is not UTF-8") from None
        except (ValueError, IndexError, KeyError, TypeError):
            raise BadPickleError("is truncated or altered") from None

    def _run(self, file: io.BytesIO) -> Any:
        data, at = file.getvalue(), file.tell()
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        # One byte makes a container of up to 72 bytes; honest files have more bytes than that for each.
        self._containers = 64 + len(data) // 8
        for _ in range(self.max_opcodes):
            op = data[at]  # after the end: IndexError, truncated
            at += 1
            if op == _SHORT_TEXT:
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
            elif op == _TEXT:
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
            elif op == _REDUCE:
                arguments, function = expect(stack.pop(), tuple), stack.pop()
                stack.append(self.call(function, arguments))
            elif op in _TUPLES:
                self._append_container(stack, tuple(_pop(stack, 1 + op - _TUPLES[0])))
            elif op == _STOP:
                (value,) = stack
                file.seek(at)
                return value
            else:
                at = self._step(data[at - 1 : at], data, at, stack, marks)
        raise BadPickleError(f"has a pickle of more than {self.max_opcodes} opcodes")

    def _step(self, op: bytes, data: bytes, at: int, stack: list[Any], marks: list[int]) -> int:
        """Do what a rarer opcode says; return the place after its argument."""
        match op:
            case pickle.MARK:
                marks.append(len(stack))
            case pickle.SETITEMS | pickle.SETITEM:
                items = _pop(stack, len(stack) - marks.pop() if op == pickle.SETITEMS else 2)
                self._fill(expect(stack[-1], dict), items)
            case pickle.APPENDS | pickle.APPEND:
                items = _pop(stack, len(stack) - marks.pop() if op == pickle.APPENDS else 1)
                expect(stack[-1], list).extend(items)
            case pickle.TUPLE:
                self._append_container(stack, tuple(_pop(stack, len(stack) - marks.pop())))
            case pickle.EMPTY_DICT:
                self._append_container(stack, {})
            case pickle.EMPTY_LIST:
                self._append_container(stack, [])
            case pickle.EMPTY_TUPLE:
                stack.append(())
            case pickle.BUILD:
                state = stack.pop()
                self.check_state(stack[-1], state)
            case pickle.BINPERSID:
                stack.append(self.persistent(stack.pop()))
            case pickle.STACK_GLOBAL:
                module, name = _pop(stack, 2)
                stack.append(self._global(f"{module}.{name}"))
            case pickle.GLOBAL:
                end = data.index(b"\n", data.index(b"\n", at) + 1)
                stack.append(self._global(data[at:end].decode().replace("\n", ".")))
                at = end + 1
            case pickle.LONG1:
                end = at + 1 + data[at]
                if data[at] > self.max_int_bytes:
                    raise BadPickleError(f"has an integer of more than {8 * self.max_int_bytes} bits")
                stack.append(int.from_bytes(data[at + 1 : end], "little", signed=True))
                at = end
            case pickle.NONE | pickle.NEWTRUE | pickle.NEWFALSE:
                stack.append({pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}[op])
            case pickle.PROTO:
                if data[at] not in self.protocols:
                    raise BadPickleError(f"has a pickle of protocol {data[at]}")
                at += 1
            case pickle.FRAME:
                at += 8
            case _:
                raise BadPickleError(f"uses the pickle opcode {op!r}, which plain data has no need of")
        return at

    def _append_container(self, stack: list[Any], value: Any) -> None:
        self._containers -= 1
        if self._containers < 0:
            raise BadPickleError("has more containers than data to put into them")
        stack.append(value)

    def _fill(self, target: dict[Any, Any], items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not self.key_type or self.value_type not in (None, type(value)):
                raise BadPickleError(f"maps {type(key).__name__} to {type(value).__name__}")
            target[key] = value

    def _global(self, name: str) -> Global:
        if name not in self.names:
            raise BadPickleError(f"refers to {name!r:.100}, and nothing was run")
        return Global(name)


def _pop(stack: list[Any], count: int) -> list[Any]:
    if not 0 <= count <= len(stack):
        raise IndexError
    start = len(stack) - count
    items = stack[start:]
    del stack[start:]
    return items


def expect(value: Any, kind: type) -> Any:
    """The value, if it is of exactly this type. Raises BadPickleError."""
    if type(value) is not kind:
        raise BadPickleError(f"has a {type(value).__name__} where a {kind.__name__} belongs")
    return value
