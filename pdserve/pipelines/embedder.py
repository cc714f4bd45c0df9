"""Run an embedder: crops of images in, L2-normalised feature vectors out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np

from pdserve.engines import Engine
from pdserve.engines.runner import as_batch
from pdserve.errors import AliasError, EngineError, PdserveError, SettingsError
from pdserve.files import sha256
from pdserve.formats.model_files import parameter_files, read_program
from pdserve.formats.serving_model import ServingModel, alias_command
from pdserve.models import catalog, find
from pdserve.models.home import Home
from pdserve.pipelines.base import Clock, PipelineModel, Steps, record_laps, together
from pdserve.pipelines.loading import load_engines
from pdserve.pipelines.model_config import build_chain
from pdserve.settings import ModelSettings
from pdserve.vision import preprocess
from pdserve.vision.types import Image8, Tensor, Vectors

# The alias that the guide gives the embedder's fetch. Its feed keeps the model's own name.
FETCH = "features"


@dataclass(frozen=True)
class Embedder:
    """Two stages, ``prepare`` for any thread and ``infer`` as the engine allows, and both in one.

    ``fetch`` is the alias of the feature vector. ``path``: the model's folder, where that is not the home's.
    """

    model: ServingModel
    engines: tuple[Engine, ...]
    chain: preprocess.Chain
    fetch: str = FETCH
    batch_size: int = 8
    path: str | None = None

    @property
    def name(self) -> str:
        return self.model.name

    @cached_property
    def dimension(self) -> int:
        """How long a vector is, by running the model once."""
        size = self.chain.size or (224, 224)
        return len(self.infer([np.zeros((3, *size), np.float32)])[0])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the model's files and its preprocessing: the same vectors come of the same."""
        files = self.model.files
        params = [files.params] if files.params else parameter_files(files, read_program(files))
        ops = json.dumps([dict(op) for op in self.chain.ops], sort_keys=True).encode()
        return sha256(files.model, *params, ops)

    def prepare(self, image: Image8) -> Tensor:
        """H×W×3 uint8 RGB -> C×H×W float32."""
        return self.chain(image)

    def infer(self, tensors: Sequence[Tensor], engine: int = 0) -> list[Tensor]:
        """Tensors -> vectors, each (dimension,) float32 of length 1, as one batch. Raises EngineError."""
        feed = self.engines[engine].feeds[0].alias
        features = self.engines[engine].run({feed: as_batch(tensors)})[self.fetch]
        if features.ndim != 2 or len(features) != len(tensors):
            raise EngineError(f"The embedder gives {features.shape}, not (images, dimension).")
        # A vector of zeros has no direction; it stays as it is and is near to nothing.
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        return list(features / np.maximum(norms, np.finfo(np.float32).tiny))

    def embed(self, images: Sequence[Image8]) -> Vectors:
        """H×W×3 uint8 RGB images -> (n, dimension) float32, in batches of ``batch_size``."""
        rows: list[Tensor] = []
        for at in range(0, len(images), self.batch_size):
            rows += self.infer([self.prepare(image) for image in images[at : at + self.batch_size]])
        return np.stack(rows) if rows else np.empty((0, self.dimension), np.float32)

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    def __enter__(self) -> "Embedder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def embed_images(
    embedder: Embedder,
    role: str,
    images: Sequence[bytes | PdserveError],
    steps: Steps,
) -> list[Tensor | PdserveError]:
    """Embed whole image files by a request's steps, under a pipeline's ``role``: see `Pipeline.embed`."""

    def prepare(image: Image8, decode_s: float) -> tuple[Tensor, Clock]:
        clock = Clock()
        clock.laps["decode"] = decode_s * 1000
        tensor = embedder.prepare(image)
        clock.lap("preprocess")
        return tensor, clock

    prepared = await together([steps.decoded(image, prepare) for image in images])
    tensors: list[Tensor] = []
    for each in prepared:
        if not isinstance(each, PdserveError):
            tensors.append(each[0])
            record_laps(steps, each[1], embedder.name, embedder.name)
    vectors = iter(await steps.infer(role, tensors))
    return [each if isinstance(each, PdserveError) else next(vectors) for each in prepared]


def embedder_model(embedder: Embedder, settings: ModelSettings) -> PipelineModel:
    """An embedder as a pipeline's model."""
    return PipelineModel(
        "embedder",
        embedder.model,
        embedder.engines,
        settings,
        embedder.infer,
        embedder.prepare,
        embedder.chain.size,
    )


def check_embedder(embedder: Embedder) -> None:
    """Run every engine once, on a black image. Raises EngineError."""
    blank = np.zeros((64, 64, 3), np.uint8)
    for number in range(len(embedder.engines)):
        embedder.infer([embedder.prepare(blank)], number)


def open_embedder(settings: ModelSettings, home: Home, base: Path = Path()) -> Embedder:
    """Find, check and load an embedder. Raises ModelError, AliasError, SettingsError, DeviceError."""
    model = find.open_model(settings.model, home, base)
    chain, fetch = describe_embedder(model, settings)
    engines = load_engines(model, settings, chain.size)
    batch_size = 8 if settings.max_batch_size == "auto" else settings.max_batch_size
    own = home.serving_model(model.name)
    path = None if model.path == own else str(model.path.absolute())
    return Embedder(model, engines, chain, fetch, batch_size, path)


def describe_embedder(model: ServingModel, settings: ModelSettings) -> tuple[preprocess.Chain, str]:
    """How an embedder wants its images, and the alias of its features. Raises AliasError, SettingsError."""
    fetch = _fetch(model, settings.fetch_list)
    ops: preprocess.TransformOps | None = model.description.transforms
    entry = catalog.load().get(model.name)
    ops = ops or (entry.transforms if entry else None)
    if ops is None:
        # The size is the model's own; what PP-ShiTu's embedders share is the rest.
        shape = model.config.feeds[0].shape
        if len(shape) != 3:
            raise SettingsError(
                f"Nothing says how {model.name} wants its images; add an inference.yml to it."
            )
        ops = [{"ResizeImage": {"size": [shape[2], shape[1]]}}, {"NormalizeImage": {}}, {"ToCHWImage": None}]
    return build_chain(ops, model.description), fetch


def _fetch(model: ServingModel, wanted: Sequence[str]) -> str:
    """The alias of the features: the one asked for, the guide's, or the only one there is."""
    aliases = [v.alias for v in model.config.fetches]
    if len(model.config.feeds) != 1:
        raise AliasError(f"{model.path} has {len(model.config.feeds)} feeds; an embedder has one.")
    for alias in (*wanted, FETCH):
        if alias in aliases:
            return alias
    if len(aliases) == 1 and not wanted:
        return aliases[0]
    raise AliasError(
        f"{model.path} has no fetch {(*wanted, FETCH)[0]!r}; its fetches are {', '.join(aliases)}: "
        f"type `{alias_command(model.path, fetches=[f'{aliases[0]}={FETCH}'])}`."
    )
