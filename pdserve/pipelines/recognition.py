"""Recognition: regions are embedded, looked up in a gallery, and chosen among by similarity and overlap."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pdserve.answers import Detection, FoundMatch, FoundObject, Objects
from pdserve.engines import Device
from pdserve.errors import RequestError
from pdserve.index import search
from pdserve.index.search import LoadedIndex, Match
from pdserve.models import catalog
from pdserve.models.home import Home
from pdserve.pipelines.base import Steps
from pdserve.pipelines.embedder import Embedder, check_embedder, embedder_model, open_embedder
from pdserve.pipelines.loading import index_folder, open_model
from pdserve.pipelines.options import SearchOptions
from pdserve.pipelines.parameters import Parameters
from pdserve.pipelines.regions import Cut, Region, Stage
from pdserve.settings import ModelSettings, ServiceSettings
from pdserve.vision.boxes import crop_corners, suppress_results
from pdserve.vision.postprocess import score_of
from pdserve.vision.types import Image8, Tensor

log = logging.getLogger("pdserve")

# Entries of all objects of an image together.
_MOST_ENTRIES = 2 * search.MAX_TOP_K


def choose(
    found: Sequence[Region], matches: Sequence[Sequence[Match]], options: SearchOptions
) -> tuple[FoundObject, ...]:
    """Keep what is similar enough, and of overlapping boxes the most similar."""
    enough = [
        (region, near)
        for region, near in zip(found, matches, strict=True)
        if near and near[0].similarity >= options.score_threshold
    ]
    corners = [crop_corners(region.box) for region, _ in enough]
    kept = suppress_results(corners, [near[0].similarity for _, near in enough], options.nms_threshold)
    return tuple(_object(corners[i], *enough[i]) for i in kept)


def _object(corners: tuple[int, int, int, int], region: Region, near: Sequence[Match]) -> FoundObject:
    matches = tuple(FoundMatch(m.label, m.image, score_of(m.similarity)) for m in near)
    detection = None
    if region.detected:
        x1, y1, x2, y2 = (round(x, 4) for x in (region.box.x1, region.box.y1, region.box.x2, region.box.y2))
        detection = Detection((x1, y1, x2, y2), score_of(region.box.score))
    best = matches[0] if matches else FoundMatch("", "", 0.0)
    return FoundObject(corners, best.label, best.score, matches, detection)


def every(
    found: Sequence[Region], matches: Sequence[Sequence[Match]], least: float
) -> tuple[FoundObject, ...]:
    """Every region, in the detector's order; without entries where the best is not similar enough."""
    return tuple(
        _object(crop_corners(region.box), region, near if near and near[0].similarity >= least else ())
        for region, near in zip(found, matches, strict=True)
    )


class Search(Stage):
    """Embeds regions, and searches an index for them. ``options``: `SearchOptions` and others."""

    lap = "embed"
    index: LoadedIndex
    embedder: Embedder

    def __init__(
        self,
        role: str,
        embedder: Embedder,
        index: LoadedIndex,
        settings: ModelSettings,
        options: SearchOptions,
    ) -> None:
        self.role, self.embedder, self.index = role, embedder, index
        self.model = embedder_model(embedder, settings)
        self._options = options

    def prepare(self, part: Image8) -> Tensor:
        """See `Stage.prepare`."""
        return self.embedder.prepare(part)

    async def answer(self, cut: Cut, results: Sequence[Tensor], steps: Steps, top_k: int | None) -> Objects:
        """See `Stage.answer`."""
        if top_k is not None and top_k > search.MAX_TOP_K:
            raise RequestError(f"top_k is {top_k}; a gallery gives at most {search.MAX_TOP_K} entries.")
        answer = await steps.work(self._look_up, cut, results, top_k, steps.parameters)
        steps.record("search", answer.timings_ms["search"] / 1000)
        return answer

    def _look_up(
        self, cut: Cut, vectors: Sequence[Tensor], top_k: int | None, parameters: Parameters
    ) -> Objects:
        index = parameters.index or self.index  # one version for the whole of the image
        wanted = min(top_k or self._options.top_k, index.count)
        if wanted * len(vectors) > _MOST_ENTRIES:
            raise RequestError(
                f"The image has {len(vectors)} objects; with top_k {wanted} each that is more than the "
                f"{_MOST_ENTRIES} entries that an answer may have; ask for {_MOST_ENTRIES // len(vectors)}."
            )
        matches = index.search(np.stack(vectors), top_k or self._options.top_k) if vectors else []
        least = parameters.least_similarity
        if least is None:
            objects = choose(cut.found, matches, self._options)
        else:
            objects = every(cut.found, matches, least)
        cut.clock.lap("search")
        return Objects(objects, index.version, cut.clock.laps)

    def fields(self, answers: Sequence[Objects]) -> Mapping[str, str]:
        """``result``: the repr of a list of objects, or of such a list per image where there are several."""
        lists = [
            [
                {"bbox": list(each.bbox), "rec_docs": each.label, "rec_scores": float(np.float32(each.score))}
                for each in answer.objects
            ]
            for answer in answers
        ]
        return {"result": repr(lists[0] if len(lists) == 1 else lists)}

    def load_index(self) -> LoadedIndex:
        """The index that is published now, on the embedder's device where faiss can search there.

        Raises IndexFolderError, OtherEmbedderError.
        """
        assert self.model
        return load_index(self.index.folder, self.embedder, self.model.settings)

    def check(self) -> None:
        """See `Stage.check`."""
        check_embedder(self.embedder)


def open_stage(role: str, settings: ServiceSettings, home: Home) -> Search:
    """Find, check and load the embedder and the index that the settings name."""
    wanted = settings.models[role]
    _, loaded = open_model(wanted, home, settings.config_dir)
    embedder = open_embedder(wanted, home, settings.config_dir)
    try:
        folder = index_folder(settings, home)
        stage = Search(role, embedder, load_index(folder, embedder, wanted), wanted, settings.options)
    except BaseException:
        embedder.close()
        raise
    stage.loaded = loaded
    if stage.index.embedder is None:
        _warn(role, stage, settings)
    log.info("index %s: %d entries", folder, stage.index.count)
    return stage


def _warn(role: str, stage: Search, settings: ServiceSettings) -> None:
    """Say that an index names no embedder: whether this one made it, nobody knows."""
    if {settings.options.index, stage.embedder.name} <= set(catalog.DEFAULTS):
        return  # these were made for each other
    if role in settings.sources.models:
        log.warning(
            "index %s does not say which embedder made it; if not %s, answers are wrong without an error",
            stage.index.folder,
            stage.embedder.name,
        )
        return
    log.warning(
        "index %s does not say which embedder made it, and --%s names none: %s, the default, is taken; "
        "another one of as many numbers would give wrong answers without an error",
        stage.index.folder,
        role,
        stage.embedder.name,
    )


def load_index(folder: Path, embedder: Embedder, settings: ModelSettings) -> LoadedIndex:
    """Load an index, which must be this embedder's. Raises UsageError, IndexFolderError."""
    index = search.load(folder)
    index.require(embedder)
    device = Device.parse(settings.devices[0])
    return index if device.kind != "gpu" else index.on_gpu(device.index)
