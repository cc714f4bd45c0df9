"""A user's own kind of service: a file ``pipelines/NAME.yml`` in pdserve's home, or one named by its path.

At most some 30 lines; those in ``kinds/``, which are pdserve's own, have the same form. A file that is wrong
is refused with its path, the key, its value and what is allowed.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pdserve.errors import SettingsError
from pdserve.formats import yaml_file
from pdserve.pipelines.entry import REGIONS, RESULTS, ServiceEntry, entry_of

MAX_BYTES = 64 * 1024
_KIND = re.compile(r"[a-z][a-z0-9_-]{0,39}")
# Of routes below /v1, and of what the routes of Paddle Serving's protocol cannot begin with.
_TAKEN = {"gallery", "embeddings", "services", "v1", "v2", "docs", "metrics", "openapi", "redoc"}

_Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\r\n]+$")]
_Word = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
_Port = Annotated[int, Field(ge=1, le=65535)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Model(_Part):
    """A model: its ``default``, and of its option the ``help``; see `pdserve.pipelines.entry.Role`."""

    default: _Line
    help: _Line | None = None
    operator: _Word | None = None
    optional: bool = False


class Definition(_Part):
    """What a file says. ``models``: by role; a model's name stands for its ``default``."""

    help: _Line
    name: _Word | None = None
    http_port: _Port | None = None
    rpc_port: _Port | None = None
    regions: Literal["boxes", "image", "boxes and image"]
    result: Literal["boxes", "search", "labels", "features"]
    models: Annotated[
        dict[Literal["detector", "embedder", "classifier", "model"], Model], Field(min_length=1, max_length=2)
    ]
    sets: Annotated[dict[_Word, dict[str, _Line]], Field(max_length=50)] = {}
    options: dict[str, str | int | float | bool] = {}

    @field_validator("models", mode="before")
    @classmethod
    def _names_are_defaults(cls, models: Any) -> Any:
        if not isinstance(models, dict):
            return models
        return {role: {"default": each} if isinstance(each, str) else each for role, each in models.items()}


def read(path: Path, kind: str | None = None) -> ServiceEntry:
    """The kind of service that a file defines, by default named as the file. Raises SettingsError."""
    kind = path.stem if kind is None else kind
    if not _KIND.fullmatch(kind) or kind in _TAKEN:
        raise SettingsError(
            f"{path}: a pipeline cannot be called {kind!r}; name the file by small letters, digits, - and _, "
            f"at most 40, and not {', '.join(sorted(_TAKEN))}."
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError(f"{path} has more than {MAX_BYTES >> 10} KiB; a pipeline has some 30 lines.")
        content = yaml_file.read(path)
    except OSError as error:
        raise SettingsError(f"Cannot read the pipeline {path}: {error.strerror}.") from error
    except yaml_file.YamlError as error:
        raise SettingsError(f"{path} is no YAML that can be read: {error}.") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path} defines no pipeline; it should have keys such as regions and result.")
    try:
        found = Definition.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"{path}: {_explained(error)}") from error
    if fault := _fault(found):
        raise SettingsError(f"{path}: {fault}.")
    entry = entry_of(kind, found.model_dump(exclude_none=True), path)
    _check_options(entry)
    return entry


def _explained(error: ValidationError) -> str:
    """The first thing that is wrong, as a sentence."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        return f"{key} is no key of a pipeline; there are {', '.join(Definition.model_fields)}."
    if first["type"] == "missing":
        return f"{key} is missing: {_allowed(key)}."
    return f"{key} is {str(first['input'])[:60]!r}: {first['msg']}."


def _allowed(key: str) -> str:
    known = {"regions": " | ".join(REGIONS), "result": " | ".join(RESULTS), "help": "a line on what it does"}
    return known.get(key, "models by role, or a model's name")


def _fault(found: Definition) -> str | None:
    """What does not go together, as the end of a sentence."""
    result = RESULTS[found.result]
    own = [role for role in found.models if role != "detector"]
    if found.regions != "boxes" and result.whole is None:  # the image is nothing that was detected
        return f"result is {found.result}, for which regions must be boxes"
    if found.regions != "image" and result.boxed is None:
        return f"result is {found.result}, for which regions must be image"
    if ("detector" in found.models) != (found.regions != "image"):
        lacks = "which needs a" if found.regions != "image" else "which has no"
        return f"regions is {found.regions}, {lacks} detector among models"
    if found.regions == "boxes" and found.models["detector"].optional:
        return "models.detector.optional is true, and without it no region is left; add the image to regions"
    if len(own) != bool(result.models) or not set(own) <= set(result.models):
        wanted = " or ".join(result.models) or "no other model than the detector"
        return f"result is {found.result}, for which models has {wanted}, and not {', '.join(own) or 'none'}"
    if own and found.models[own[0]].optional:
        return f"models.{own[0]}.optional is true; only a detector may be left out"
    if found.sets and "model" in found.models:
        return "sets are named by --model, which is a model's option here; call that model by what it does"
    for name, each in found.sets.items():
        if set(each) != set(found.models):
            return f"sets.{name} must name a model for each of {', '.join(found.models)}"
    return None


def _check_options(entry: ServiceEntry) -> None:
    try:
        entry.options_type().model_validate(dict(entry.defaults))
    except SettingsError as error:
        raise SettingsError(f"{entry.path}: {error.message}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(
            f"{entry.path}: options.{first['loc'][0]} is {first['input']!r}: {first['msg']}."
        ) from error
