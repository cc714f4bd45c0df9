"""An entry of the SERVICES table: a kind of service, its models, options, answer, default ports and names.

Importing this loads no NumPy, no engine and no settings library; an entry's parts are loaded when they are
used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdserve.models.home import Home
    from pdserve.pipelines.base import Pipeline
    from pdserve.settings import ServiceSettings, SettingsGroup


KINDS = Path(__file__).parent / "kinds"
"""The folder of the files of pdserve's own kinds."""


@dataclass(frozen=True)
class Role:
    """A model's part in a service.

    ``default``: the model's name where none is named. ``help`` and ``metavar``: of the option that names
    it, ``--{role}``. ``operator``: its name under ``op`` in config.yml; None where the service has one
    model, whose operator may have any name. ``optional``: "none" leaves the model out.
    """

    default: str
    help: str
    operator: str | None = None
    optional: bool = False

    @property
    def metavar(self) -> str:
        return "NAME|DIR|none" if self.optional else "NAME|DIR"


@dataclass(frozen=True)
class ServiceEntry:
    """A kind of service.

    ``name``: its name in the pipeline protocol; ``http_port``, ``rpc_port``: where it listens by default.
    ``roles``: its models, in the order of an image's way, by the name of their option. ``pipeline``,
    ``answer``: import strings "module:name" of the function that opens the pipeline (settings, home), and
    of the class of one image's answer. ``options``: those of the settings models of the service's own
    options, separated by spaces. ``items``: the answer's first field.

    ``sets``: models that belong together, role -> name, by the name that ``--model`` takes for them.
    ``defaults``: of options, where this kind has others. ``regions`` and ``result``: of a pipeline of
    regions, see `pdserve.pipelines.regions`. ``path``: the file that defines it.
    """

    kind: str
    help: str
    name: str
    http_port: int
    rpc_port: int
    roles: Mapping[str, Role]
    pipeline: str
    options: str
    answer: str
    items: str
    sets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    regions: str = ""
    result: str = ""
    path: Path | None = None

    @property
    def built_in(self) -> bool:
        """Whether it is pdserve's own, and no file of the user's."""
        return self.path is None or self.path.parent == KINDS

    @property
    def ports(self) -> tuple[int, int]:
        """The default ports: HTTP, gRPC."""
        return self.http_port, self.rpc_port

    @property
    def operators(self) -> Mapping[str, str]:
        """Role -> its operator in config.yml; empty for a service of one model."""
        return {role: each.operator for role, each in self.roles.items() if each.operator}

    @property
    def route(self) -> str:
        """pdserve's own HTTP route."""
        return f"/v1/{self.kind}"

    @property
    def top_k(self) -> bool:
        """Whether a request may say how many items it wants for an image."""
        return not self.result or RESULTS[self.result].top_k

    def answer_type(self) -> type[Any]:
        """The class of one image's answer, a frozen dataclass of pdserve.answers or alike."""
        answer: type[Any] = resolve_name(self.answer)
        return answer

    def options_type(self) -> "type[SettingsGroup]":
        """The settings model of the service's own options: its groups in one, with this kind's defaults."""
        from pdserve.pipelines.options import joined

        groups = tuple(resolve_name(each) for each in self.options.split())
        return joined(f"{self.kind}_options", groups, tuple(self.defaults.items()))

    def settings(
        self, flags: Mapping[str, Any], environ: Mapping[str, str], config: Path | None = None
    ) -> "ServiceSettings":
        """Resolve the service's settings: flags over environment over file over defaults.

        ``flags``: setting -> value, None where the flag was not given. Raises SettingsError with the
        setting's name, where it came from and what was wrong with it.
        """
        from pdserve.settings import resolve

        return resolve(self, flags, environ, config)

    def open(self, settings: "ServiceSettings", home: "Home") -> "Pipeline[Any]":
        """Find, check, load and warm up the service's models, and its index where it has one.

        Raises ModelError, AliasError, SettingsError, DeviceError, EngineError or IndexFolderError, each
        before any port is open. Nothing is downloaded.
        """
        followed = resolve_name("pdserve.pipelines.loading:follow_index")(settings, home)
        pipeline: Pipeline[Any] = resolve_name(self.pipeline)(followed, home)
        return pipeline


@dataclass(frozen=True)
class Result:
    """What comes of an image's regions.

    ``stage``: import string of the function that opens what is done with them (role, settings, home), a
    `pdserve.pipelines.regions.Stage`. ``options``: as in `ServiceEntry`. ``boxed`` and ``whole``: class and
    first field of the answer where boxes are detected, and where the region is the image; None where there
    is none. ``models``: of a region, the names that its role may have; none where it is not looked at.
    ``top_k``: a request may say how many items it wants.
    """

    stage: str
    options: str
    boxed: tuple[str, str] | None
    whole: tuple[str, str] | None
    models: tuple[str, ...] = ()
    top_k: bool = True


REGIONS = ("boxes", "image", "boxes and image")
"""What is cut out of an image: what a detector finds, nothing (the whole image), or both."""

RESULTS: Mapping[str, Result] = {
    "boxes": Result(
        "pdserve.pipelines.detection:open_stage",
        "pdserve.pipelines.options:BoxOptions",
        boxed=("pdserve.answers:Detections", "objects"),
        whole=None,
    ),
    "search": Result(
        "pdserve.pipelines.recognition:open_stage",
        "pdserve.pipelines.options:SearchOptions",
        boxed=("pdserve.answers:Objects", "objects"),
        whole=("pdserve.answers:Objects", "objects"),
        models=("embedder", "model"),
    ),
    "labels": Result(
        "pdserve.pipelines.attributes:open_stage",
        "pdserve.settings:PostprocessSettings",
        boxed=("pdserve.answers:LabelledObjects", "objects"),
        whole=("pdserve.answers:Labels", "labels"),
        models=("classifier", "model"),
    ),
    "features": Result(
        "pdserve.pipelines.embedding:open_stage",
        "",
        boxed=None,
        whole=("pdserve.answers:Embedding", "embedding"),
        models=("embedder", "model"),
        top_k=False,
    ),
}

_HELP = {
    "detector": "The detector.",
    "embedder": "The model that makes the features.",
    "classifier": "The model that labels a region.",
    "model": "A model's name, folder or address.",
}
HTTP_PORT, RPC_PORT = 18090, 10000
"""Where a service listens whose file does not say."""


def entry_of(kind: str, content: Mapping[str, Any], path: Path | None = None) -> ServiceEntry:
    """The entry that a file of `pdserve.pipelines.definition` defines; ``content`` is right."""
    models: dict[str, Mapping[str, Any]] = {
        role: {"default": each} if isinstance(each, str) else each for role, each in content["models"].items()
    }
    several = len(models) > 1
    roles = {
        role: Role(
            each["default"],
            each.get("help") or _HELP[role],
            each.get("operator") or (role if several else None),
            each.get("optional", False),
        )
        for role, each in models.items()
    }
    regions, result = content["regions"], RESULTS[content["result"]]
    answer = result.whole if regions == "image" else result.boxed
    if answer is None:
        raise ValueError(f"{content['result']} of {regions}")
    detector = [] if regions == "image" else ["pdserve.pipelines.options:DetectorOptions"]
    return ServiceEntry(
        kind=kind,
        help=content["help"],
        name=content.get("name") or kind,
        http_port=content.get("http_port", HTTP_PORT),
        rpc_port=content.get("rpc_port", RPC_PORT),
        roles=roles,
        pipeline="pdserve.pipelines.regions:open_regions",
        options=" ".join([*detector, result.options]),
        answer=answer[0],
        items=answer[1],
        sets=content.get("sets") or {},
        defaults=content.get("options") or {},
        regions=regions,
        result=content["result"],
        path=path,
    )
