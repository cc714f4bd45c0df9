"""What a server answered -> labels or errors."""

import ast
from collections.abc import Sequence
from typing import Any

from pdserve.clients.address import Address
from pdserve.errors import ClientError, UnreachableError
from pdserve.vision.scores import Label

# Of an answer in the pipeline protocol's own form, which does not carry class ids.
UNKNOWN_CLASS = -1


def unreachable(address: Address, service: str) -> UnreachableError:
    """Nobody listens: how to start the server."""
    return UnreachableError(
        f"Nobody answers at {address}; start the server with `pdserve serve {service}`, "
        "or say where it is with --url."
    )


def single(answers: Sequence[list[Label] | ClientError]) -> list[Label]:
    """The answer of a request with one image, raised if it is an error."""
    answer = answers[0]
    if isinstance(answer, ClientError):
        raise answer
    return answer


def from_results(content: Any, count: int) -> list[list[Label] | ClientError]:
    """``{"results": […]}`` -> one entry per image. Raises ClientError for anything else."""
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, list) or len(results) != count:
        raise ClientError(f"The server's answer is not {count} results: {str(content)[:200]}")
    return [_one(result) for result in results]


def _one(result: Any) -> list[Label] | ClientError:
    try:
        if "error" in result:
            return ClientError(str(result["error"]["message"]))
        return [Label(int(x["class_id"]), str(x["label"]), float(x["score"])) for x in result["labels"]]
    except (TypeError, KeyError, ValueError, OverflowError):
        return ClientError(f"The server's answer cannot be read: {str(result)[:200]}")


def from_pipeline(keys: Sequence[str], values: Sequence[str], count: int) -> list[list[Label] | ClientError]:
    """``label`` and ``prob`` of the pipeline protocol: the reprs of two lists with an entry per image.

    That form has the best label only. Raises ClientError for anything else.
    """
    fields = dict(zip(keys, values, strict=False))
    try:
        names, scores = ast.literal_eval(fields["label"]), ast.literal_eval(fields["prob"])
        labels = [[Label(UNKNOWN_CLASS, str(n), float(s))] for n, s in zip(names, scores, strict=True)]
    except (KeyError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ClientError(f"The server's answer has no label and prob: {str(fields)[:200]}") from error
    if len(labels) != count:
        raise ClientError(f"The server answered {len(labels)} images of {count}.")
    return list(labels)
