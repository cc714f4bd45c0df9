"""Whether a server's answer on the old route is that of the raw pipeline."""

import ast
import json
from collections.abc import Mapping
from typing import Any

# Engines differ by rounding, Paddle's and OpenVINO's too: probabilities and similarities by 1e-4 at most.
SCORE = 1e-3
PIXELS = 1


def labels(fields: Mapping[str, str]) -> list[str]:
    """The labels in the fields of an answer."""
    found = {key: ast.literal_eval(value) for key, value in fields.items()}
    return [each["rec_docs"] for each in found["result"]] if "result" in found else list(found["label"])


def fault(body: bytes, wanted: Mapping[str, str]) -> str | None:
    """What is wrong with an answer; None where it is good.

    ``wanted`` has the fields of the right one: ``label`` and ``prob``, or ``result``, each the repr of a
    list.
    """
    try:
        answer = json.loads(body)
        if answer["err_no"] != 0:
            return f"err_no {answer['err_no']}: {answer['err_msg']}"
        given = {
            key: ast.literal_eval(value) for key, value in zip(answer["key"], answer["value"], strict=True)
        }
        right = {key: ast.literal_eval(value) for key, value in wanted.items()}
        if "result" in right:
            return _objects(given["result"], right["result"])
        if given["label"] != right["label"]:
            return f"the label is {given['label']}, not {right['label']}"
        return _score(given["prob"][0], right["prob"][0])
    except (ValueError, SyntaxError, KeyError, TypeError, IndexError) as error:
        return f"no answer of the protocol ({type(error).__name__}: {error}): {body[:200]!r}"


def _objects(given: list[dict[str, Any]], right: list[dict[str, Any]]) -> str | None:
    if len(given) != len(right):
        return f"{len(given)} objects, not {len(right)}"
    for one, other in zip(given, right, strict=True):
        if one["rec_docs"] != other["rec_docs"]:
            return f"the object is {one['rec_docs']}, not {other['rec_docs']}"
        if any(abs(a - b) > PIXELS for a, b in zip(one["bbox"], other["bbox"], strict=True)):
            return f"the box is {one['bbox']}, not {other['bbox']}"
        if wrong := _score(one["rec_scores"], other["rec_scores"]):
            return wrong
    return None


def _score(given: float, right: float) -> str | None:
    return None if abs(given - right) <= SCORE else f"the score is {given:.5f}, not {right:.5f}"
