"""Requests and answers of the Open Inference Protocol, whatever they came by, and their parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdserve.errors import BodyTooLargeError, RequestError, WrongServiceError
from pdserve.services.inference.tensors import MAX_TENSORS, InputTensor, OutputTensor, shown

VERSION = "1"
"""The only version of a model: what is loaded is what was published last."""

_SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
_MOST = 10**9


class UnknownModelError(WrongServiceError):
    """There is no such model here, or no such version of it."""

    code = "unknown_model"


class NotOfferedError(RequestError):
    """A part of the protocol that this server does not have."""

    code = "not_offered"
    http_status = 501
    grpc_status = "UNIMPLEMENTED"


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for. ``classes``: the best so many classes in place of the scores.

    ``binary``: as bytes behind the JSON; None for what the request as a whole says.
    """

    name: str
    classes: int = 0
    binary: bool | None = None


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request. ``outputs``: none for all. ``top_k``: of labels or objects, ``timeout_s``: as of /v1.

    ``binary``: outputs are wanted as bytes, where they do not say otherwise.
    """

    model: str
    inputs: Sequence[InputTensor]
    outputs: Sequence[Wanted] = ()
    version: str = ""
    id: str = ""
    top_k: int | None = None
    timeout_s: float | None = None
    binary: bool = False


@dataclass(frozen=True, eq=False)
class InferResponse:
    """An answer; ``id`` is the request's."""

    model: str
    outputs: Sequence[OutputTensor]
    id: str = ""
    version: str = VERSION


@dataclass(frozen=True)
class Parameters:
    """Those of a request that mean something here."""

    top_k: int | None = None
    timeout_s: float | None = None
    binary: bool = False


def shared_memory() -> NotOfferedError:
    """What is said to whoever asks for it."""
    return NotOfferedError(
        "Shared memory is not offered by this server; send the tensors' bytes in the request."
    )


def request_parameters(given: Mapping[str, Any]) -> Parameters:
    """The parameters of a request. Raises RequestError."""
    if given.get("sequence_id") not in (None, 0, "", "0"):
        raise RequestError("The request has a sequence_id, and no model here keeps a state; leave it out.")
    timeout = _number(given, "timeout")  # in microseconds, as Triton has it
    return Parameters(
        _number(given, "top_k"),
        None if timeout is None else timeout / 1e6,
        flag(given, "binary_data_output") or False,
    )


def wanted_output(name: str, given: Mapping[str, Any]) -> Wanted:
    """An output that is asked for, with its parameters. Raises RequestError, NotOfferedError."""
    check_no_shared_memory(given)
    return Wanted(name, _number(given, "classification") or 0, flag(given, "binary_data"))


def check_no_shared_memory(given: Mapping[str, Any]) -> None:
    """Raise NotOfferedError where a tensor is said to be in shared memory."""
    if any(key in given for key in _SHARED_MEMORY):
        raise shared_memory()


def check_tensors(what: str, count: int) -> None:
    """Raise BodyTooLargeError for more inputs or outputs than any model has."""
    if count > MAX_TENSORS:
        raise BodyTooLargeError(f"The request has {count} {what}, more than the limit of {MAX_TENSORS}.")


def flag(given: Mapping[str, Any], key: str) -> bool | None:
    """A parameter that is true or false; None where it is not there. Raises RequestError."""
    value = given.get(key)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"The parameter {key} is {shown(str(value))}; it must be true or false.")
    return value


def _number(given: Mapping[str, Any], key: str) -> int | None:
    value = given.get(key)
    if value in (None, 0):
        return None
    if type(value) is not int or not 0 < value < _MOST:
        raise RequestError(
            f"The parameter {key} is {shown(str(value))}; it must be a whole number above 0, of 9 digits at "
            "most."
        )
    return value
