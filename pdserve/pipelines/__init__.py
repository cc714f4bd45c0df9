"""The SERVICES table: for each kind of service its pipeline, options, answer, default ports and names.

Adding a service is one file beside this one and one entry here. Importing this loads no NumPy, no engine
and no settings library; an entry's parts are loaded when they are used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdserve.models.home import Home
    from pdserve.pipelines.base import Pipeline
    from pdserve.settings import ServiceSettings, SettingsGroup


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
    ``options``, ``answer``: import strings "module:name" of the function that opens the pipeline
    (settings, home), of the settings model of the service's own options, and of the class of one image's
    answer. ``items``: the answer's first field.
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

    def answer_type(self) -> type[Any]:
        """The class of one image's answer, a frozen dataclass of pdserve.answers or alike."""
        answer: type[Any] = resolve_name(self.answer)
        return answer

    def options_type(self) -> "type[SettingsGroup]":
        """The settings model of the service's own options."""
        options: type[SettingsGroup] = resolve_name(self.options)
        return options

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


_ENTRIES = (
    ServiceEntry(
        kind="classification",
        help="Image classification: labels with scores.",
        name="imagenet",
        http_port=18080,
        rpc_port=9993,
        roles={"model": Role("ResNet50_vd", "A converted model's name, or a serving folder.")},
        pipeline="pdserve.pipelines.classification:open_classification",
        options="pdserve.settings:ClassificationOptions",
        answer="pdserve.answers:Labels",
        items="labels",
    ),
    ServiceEntry(
        kind="recognition",
        help="Image recognition (PP-ShiTu): detect, embed, look up in a gallery.",
        name="recognition",
        http_port=18081,
        rpc_port=9994,
        roles={
            "detector": Role(
                "picodet_PPLCNet_x2_5_mainbody_lite_v1.0",
                "The detector; none recognises whole images.",
                operator="det",
                optional=True,
            ),
            "embedder": Role(
                "general_PPLCNet_x2_5_lite_v1.0", "The model that makes the features.", operator="rec"
            ),
        },
        pipeline="pdserve.pipelines.recognition:open_recognition",
        options="pdserve.settings:RecognitionOptions",
        answer="pdserve.answers:Objects",
        items="objects",
    ),
    ServiceEntry(
        kind="detection",
        help="Object detection: boxes with labels and scores.",
        name="detection",
        http_port=18082,
        rpc_port=9995,
        roles={"detector": Role("picodet_PPLCNet_x2_5_mainbody_lite_v1.0", "The detector.")},
        pipeline="pdserve.pipelines.detection:open_detection",
        options="pdserve.settings:DetectionOptions",
        answer="pdserve.pipelines.detection:Detections",
        items="objects",
    ),
    ServiceEntry(
        kind="embedding",
        help="Image embeddings: a model's features, of length 1.",
        name="embedding",
        http_port=18083,
        rpc_port=9996,
        roles={"model": Role("general_PPLCNet_x2_5_lite_v1.0", "The model that makes the features.")},
        pipeline="pdserve.pipelines.embedding:open_embedding",
        options="pdserve.settings:EmbeddingOptions",
        answer="pdserve.answers:Embedding",
        items="embedding",
    ),
)

SERVICES: Mapping[str, ServiceEntry] = {entry.kind: entry for entry in _ENTRIES}
