"""The folder in which Paddle Serving runs a service.

::

    config.yml                         the settings, in Paddle Serving's schema
    classification_web_service.py      or recognition_web_service.py: the service, see scripts/
    pipeline_service.py  images.py     what both share
    service.json                       what the service script reads
    NAME_serving/                      each model, its aliases the model's own names
    labels.txt                         of a classifier that has labels: a name per line
    index/                             of recognition: vector.index and id_map.pkl
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pdserve.errors import SettingsError
from pdserve.formats.program import Signature
from pdserve.formats.serving_model import ServingModel, open_serving_model
from pdserve.index import faiss_index, id_map
from pdserve.index import store as index_folders
from pdserve.index.embedder import EmbedderId, require_same
from pdserve.models.find import find_serving_model
from pdserve.models.home import Home
from pdserve.pipelines import detector as detection
from pdserve.pipelines.classification import FETCH, check_aliases, check_size
from pdserve.pipelines.embedder import Embedder, describe_embedder
from pdserve.pipelines.model_config import Description, describe
from pdserve.runtimes.paddle_serving import config, model_folder, preprocessing
from pdserve.runtimes.paddle_serving.config import Operator, Ports
from pdserve.runtimes.paddle_serving.model_folder import Place, name_of
from pdserve.runtimes.paddle_serving.refusals import AnySettings
from pdserve.settings import ClassificationSettings, ModelSettings, RecognitionOptions, RecognitionSettings

SCRIPTS = Path(__file__).with_name("scripts")
SERVICE = "service.json"
CONFIG = "config.yml"
_LABELS = "labels.txt"
_SHARED = ("pipeline_service.py", "images.py")
_KINDS = ("Topk", "ThreshOutput")


@dataclass(frozen=True)
class WorkFolder:
    """A folder that was written. ``script`` is to be run in it; ``notes`` say what is other than asked."""

    path: Path
    kind: str
    script: str
    notes: tuple[str, ...]


def write(settings: AnySettings, home: Home, folder: Path, ports: Ports, place: Place) -> WorkFolder:
    """Fill an empty folder; big files come by ``place``.

    Raises ModelError, AliasError, SettingsError, UnsupportedModelError, IndexFolderError for what Paddle
    Serving could not run.
    """
    if isinstance(settings, ClassificationSettings):
        kind, (content, operators) = "classification", _classification(settings, home, folder, place)
    else:
        kind, (content, operators) = "recognition", _recognition(settings, home, folder, place)
    made = config.build(settings, operators, ports)
    script = f"{kind}_web_service.py"
    for name in (script, *_SHARED):
        shutil.copyfile(SCRIPTS / name, folder / name)
    (folder / SERVICE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / CONFIG).write_text(yaml.safe_dump(made.content, sort_keys=False, allow_unicode=True), "utf-8")
    return WorkFolder(folder, kind, script, tuple(made.notes))


def _classification(
    settings: ClassificationSettings, home: Home, folder: Path, place: Place
) -> tuple[dict[str, Any], list[Operator]]:
    model = open_serving_model(find_serving_model(settings.model.model, home, settings.base))
    fetch = settings.model.fetch_list[0] if settings.model.fetch_list else FETCH
    check_aliases(model, fetch)
    description = describe(model, settings.results)
    check_size(model, description)
    kind = description.postprocess.kind
    if kind not in _KINDS:
        raise SettingsError(
            f"{model.name} answers by {kind}, which Paddle Serving's service does not know; "
            "use --runtime native."
        )
    names = _names(description)
    if names:
        lines = "".join(f"{' '.join(name.splitlines())}\n" for name in names)
        (folder / _LABELS).write_text(lines, "utf-8")
    operator, _ = _operator(settings.server.name, settings.model, model, folder, place)
    content = {
        "name": settings.server.name,
        "operator": operator.name,
        "feed": model.config.feeds[0].name,
        "fetch": name_of(model.config.fetches, fetch),
        "steps": preprocessing.steps(description.chain.ops),
        "labels": _LABELS if names else None,
        "threshold": description.params.get("threshold") if kind == "ThreshOutput" else None,
        "default_label": description.params.get("default_label_index", 0),
    }
    return content, [operator]


def _names(description: Description) -> tuple[str, ...] | None:
    """The labels by class; those of two outputs may stand in the postprocessing itself."""
    pair = [description.params.get(key) for key in ("label_0", "label_1")]
    if description.postprocess.kind == "ThreshOutput" and pair != [None, None]:
        return tuple(str(name or number) for number, name in enumerate(pair))
    return description.names


def _recognition(
    settings: RecognitionSettings, home: Home, folder: Path, place: Place
) -> tuple[dict[str, Any], list[Operator]]:
    operators, detector = [], None
    if settings.detector:
        model = open_serving_model(find_serving_model(settings.detector.model, home, settings.base))
        detection.check_aliases(model.config.feeds, str(model.path))
        operator, signature = _operator("det", settings.detector, model, folder, place)
        operators.append(operator)
        detector = _detector(model, signature)
    model = open_serving_model(find_serving_model(settings.embedder.model, home, settings.base))
    chain, fetch = describe_embedder(model, settings.embedder)
    operator, _ = _operator("rec", settings.embedder, model, folder, place)
    operators.append(operator)
    _index(settings, home, Embedder(model, (), chain, fetch), folder / "index")
    content = {
        "name": settings.server.name,
        "detector": detector,
        "embedder": {
            "feed": model.config.feeds[0].name,
            "fetch": name_of(model.config.fetches, fetch),
            "steps": preprocessing.steps(chain.ops),
        },
        **_options(settings.options),
    }
    return content, operators


def _operator(
    name: str, settings: ModelSettings, model: ServingModel, folder: Path, place: Place
) -> tuple[Operator, Signature]:
    # A name may be anything that a stranger's folder says, and two folders may have one name.
    own = f"{Path(model.name).name}_serving"
    own = f"{name}_{own}" if (folder / own).exists() else own
    signature = model_folder.write(model, folder / own, place)
    return Operator(name, settings, own, tuple(v.name for v in model.config.fetches)), signature


def _detector(model: ServingModel, signature: Signature) -> dict[str, Any]:
    """As detection.py prepares an image and tells whether the model takes several at once."""
    usual = detection.DetectorSettings()
    shape = next(v.shape for v in model.config.feeds if v.alias == detection.IMAGE)
    size = list(shape[1:] if len(shape) == 3 else usual.size)
    ops: list[dict[str, dict[str, Any]]] = [
        {"NormalizeImage": {"scale": 1 / 255, "mean": list(usual.mean), "std": list(usual.std)}},
        {"ResizeImage": {"size": size[::-1], "interpolation": usual.interpolation}},
    ]
    free = all(feed.shape[:1] == (-1,) for feed in signature.feeds)
    return {
        "feeds": {v.alias: v.name for v in model.config.feeds},
        "size": size,
        "batches": free and len(signature.fetches) > 1,
        "steps": preprocessing.steps(ops),
    }


def _options(options: RecognitionOptions) -> dict[str, Any]:
    wanted = {"det_threshold", "max_det_results", "score_threshold", "nms_threshold"}
    return options.model_dump(include=wanted)


def _index(settings: RecognitionSettings, home: Home, embedder: Embedder, folder: Path) -> None:
    """The version in force, which must be this embedder's, as PaddleClas keeps an index."""
    beside = settings.base / settings.options.index
    found = index_folders.find(str(beside) if beside.is_dir() else settings.options.index, home)
    snapshot = index_folders.read(found)
    shape = next(v.shape for v in embedder.model.config.fetches if v.alias == embedder.fetch)
    dimension = snapshot.form.dimension
    own = EmbedderId(embedder.name, embedder.fingerprint)
    built = snapshot.manifest.embedder if snapshot.manifest else None
    require_same(built, own, (dimension, shape[-1] if len(shape) == 1 else dimension), found)
    faiss_index.search_wider(snapshot.index)
    folder.mkdir()
    with (folder / index_folders.VECTORS).open("wb") as file:
        faiss_index.write(snapshot.index, file)
    (folder / index_folders.ID_MAP).write_bytes(id_map.dumps(snapshot.id_map))
