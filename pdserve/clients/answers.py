"""What a server answered -> labels, objects, or errors."""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pdserve.answers import Label
from pdserve.clients.address import Address
from pdserve.clients.api_keys import VARIABLE
from pdserve.errors import BusyError, ClientError, KeyRefusedError, UnreachableError

Item = TypeVar("Item")

# Of an answer in the pipeline protocol's own form, which does not carry class ids.
UNKNOWN_CLASS = -1

# The words of OpenSSL, as Python's ssl gives them, and of gRPC, which builds on BoringSSL.
_OTHER_NAMES = (
    "Hostname mismatch",
    "IP address mismatch",
    "Hostname Verification Check failed",
    "is not in peer certificate",
)
_UNTRUSTED = re.compile(
    r"CERTIFICATE_VERIFY_FAILED\W+(?:certificate verify failed: )?(.*?)(?: \(_ssl|: OK|$)"
)


def unreachable(address: Address, service: str) -> UnreachableError:
    """Nobody listens: how to start the server."""
    return UnreachableError(
        f"Nobody answers at {address}; start the server with `pdserve serve {service}`, "
        "or say where it is with --url."
    )


def no_tls(address: Address, detail: str) -> UnreachableError | None:
    """Why TLS came to nothing, from an engine room's words; None where it was something else."""
    if any(words in detail for words in _OTHER_NAMES):
        return UnreachableError(f"The certificate of {address} is for other names; ask by one of those.")
    if untrusted := _UNTRUSTED.search(detail):
        return UnreachableError(
            f"The certificate of {address} is not trusted ({untrusted[1]}); give its authority with "
            "--ca FILE."
        )
    if "WRONG_VERSION_NUMBER" in detail:
        return UnreachableError(f"{address} speaks no TLS; ask it without.")
    return None


def key_refused(address: Address, shown: bool) -> KeyRefusedError:
    """A 401: what to give."""
    if shown:
        return KeyRefusedError(
            f"{address} does not take the key that was shown; give another with --api-key FILE, or in "
            f"{VARIABLE}."
        )
    return KeyRefusedError(f"{address} wants a key; give it with --api-key FILE, or in {VARIABLE}.")


def busy(address: Address, said: str) -> BusyError:
    """A full queue."""
    return BusyError(f"{address} is overloaded; ask again in a moment ({said.rstrip('.')}).")


@dataclass(frozen=True)
class FoundMatch:
    """An entry of the gallery: its label, its image's path there, the similarity."""

    label: str
    image: str
    score: float


@dataclass(frozen=True)
class FoundObject:
    """A recognised object: ``bbox`` x1, y1, x2, y2 in whole pixels (x2 and y2 outside), the gallery's label
    and the similarity; ``matches``: the nearest entries, best first, where the server tells them.
    """

    bbox: tuple[int, int, int, int]
    label: str
    score: float
    matches: tuple[FoundMatch, ...] = ()


@dataclass(frozen=True)
class Form(Generic[Item]):
    """How a service's answers are written: one result of /v1, and the fields of the pipeline protocol."""

    service: str
    of_result: Callable[[Any], list[Item]]
    of_fields: Callable[[Mapping[str, str], int], list[list[Item]]]


def single(answers: Sequence[list[Item] | ClientError]) -> list[Item]:
    """The answer of a request with one image, raised if it is an error."""
    answer = answers[0]
    if isinstance(answer, ClientError):
        raise answer
    return answer


def from_results(content: Any, count: int, form: Form[Item]) -> list[list[Item] | ClientError]:
    """``{"results": […]}`` -> one entry per image. Raises ClientError for anything else."""
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, list) or len(results) != count:
        raise ClientError(f"The server's answer is not {count} results: {str(content)[:200]}")
    return [_one(result, form) for result in results]


def _one(result: Any, form: Form[Item]) -> list[Item] | ClientError:
    try:
        if "error" in result:
            return ClientError(str(result["error"]["message"]))
        return form.of_result(result)
    except (TypeError, KeyError, ValueError, OverflowError, IndexError):
        return ClientError(f"The server's answer cannot be read: {str(result)[:200]}")


def from_pipeline(
    keys: Sequence[str], values: Sequence[str], count: int, form: Form[Item]
) -> list[list[Item] | ClientError]:
    """The pipeline protocol's own fields -> one entry per image. Raises ClientError for anything else."""
    fields = dict(zip(keys, values, strict=False))
    try:
        answers = form.of_fields(fields, count)
    except (
        KeyError,
        IndexError,
        ValueError,
        SyntaxError,
        TypeError,
        RecursionError,
        MemoryError,
        OverflowError,
    ) as error:
        raise ClientError(f"The server's answer cannot be read: {str(fields)[:200]}") from error
    if len(answers) != count:
        raise ClientError(f"The server answered {len(answers)} images of {count}.")
    return list(answers)


def _labels(result: Any) -> list[Label]:
    return [Label(int(x["class_id"]), str(x["label"]), float(x["score"])) for x in result["labels"]]


def _labels_of_fields(fields: Mapping[str, str], count: int) -> list[list[Label]]:
    """``label`` and ``prob``: the reprs of two lists with an entry per image, the best label only."""
    names, scores = ast.literal_eval(fields["label"]), ast.literal_eval(fields["prob"])
    return [[Label(UNKNOWN_CLASS, str(n), float(s))] for n, s in zip(names, scores, strict=True)]


def _corners(values: Any) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = values
    return int(x1), int(y1), int(x2), int(y2)


def _objects(result: Any) -> list[FoundObject]:
    return [
        FoundObject(
            _corners(x["bbox"]),
            str(x["label"]),
            float(x["score"]),
            tuple(
                FoundMatch(str(m["label"]), str(m["image"]), float(m["score"])) for m in x.get("matches", ())
            ),
        )
        for x in result["objects"]
    ]


def _objects_of_fields(fields: Mapping[str, str], count: int) -> list[list[FoundObject]]:
    """``result``: the repr of a list of objects, or of such a list per image where there are several."""
    content = ast.literal_eval(fields["result"])
    return [
        [FoundObject(_corners(x["bbox"]), str(x["rec_docs"]), float(x["rec_scores"])) for x in found]
        for found in ([content] if count == 1 else content)
    ]


LABELS: Form[Label] = Form("classification", _labels, _labels_of_fields)
OBJECTS: Form[FoundObject] = Form("recognition", _objects, _objects_of_fields)
