"""The folder in which Paddle Serving runs a service; `export` writes one to be copied elsewhere.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pdserve.errors import SettingsError, UnsupportedModelError, UsageError
from pdserve.files import disk_errors, replace_folder, user_path
from pdserve.formats import prototxt
from pdserve.formats.model_files import parameter_files, read_program
from pdserve.formats.program import Signature
from pdserve.formats.prototxt import ModelConfig, Variable
from pdserve.formats.serving_model import ServingModel
from pdserve.index import faiss_index, id_map
from pdserve.index import store as index_folders
from pdserve.index.embed import EmbedderId, require_same
from pdserve.locks import file_lock
from pdserve.models.find import open_model
from pdserve.models.home import Home
from pdserve.pipelines import detector as detection
from pdserve.pipelines.classification import FETCH, check_aliases, check_size
from pdserve.pipelines.embedder import Embedder, describe_embedder
from pdserve.pipelines.model_config import ClassifierConfig, classifier_config
from pdserve.runtimes.paddle_serving import config, unsupported
from pdserve.runtimes.paddle_serving.config import Operator, Ports
from pdserve.runtimes.paddle_serving.interpreter import SCRIPTS
from pdserve.settings import ModelSettings, ServerSettings, ServiceSettings
from pdserve.vision import preprocess
from pdserve.vision.detector_chain import DetectorChain
from pdserve.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD
from pdserve.vision.resize import interpolation_name

SERVICE = "service.json"
CONFIG = "config.yml"
README = "README.md"
_LABELS = "labels.txt"
_SHARED = ("pipeline_service.py", "images.py")
_POSTPROCESSES = ("Topk", "ThreshOutput")
_OPTIONS = {"det_threshold", "max_det_results", "score_threshold", "nms_threshold"}

Place = Callable[[Path, Path], object]
"""How a big file gets from its source to its target: `link` or `copy`."""


def link(source: Path, target: Path) -> None:
    """A symbolic link, for a folder that lives as long as the process that made it."""
    target.symlink_to(source.resolve())


def copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


_Parts = tuple[dict[str, Any], list[Operator]]


@dataclass(frozen=True)
class WorkFolder:
    """A written folder. ``script`` is to be run in it; ``notes`` say what differs from the settings."""

    path: Path
    kind: str
    script: str
    notes: tuple[str, ...]


def export(settings: ServiceSettings, home: Home, folder: Path) -> WorkFolder:
    """Write a self-contained folder; it appears when it is complete.

    Raises UsageError where there is something else at ``folder``, and what `write` raises.
    """
    notes = unsupported.check(settings)
    server = settings.server
    if 0 in (server.http_port, server.rpc_port):
        raise UsageError("A port of 0 means any free one, which only a server can find; give a number.")
    folder = user_path(folder).absolute()
    ours = (folder / SERVICE).is_file()
    if folder.exists() and not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is no folder of a service; give --out another name.")
    lock = home.root / "exports.lock"
    with file_lock(lock, folder.name), disk_errors(folder), replace_folder(folder) as new:
        made = write(settings, home, new, (server.http_port, server.rpc_port), copy)
        (new / README).write_text(_readme(made, folder.name, server), "utf-8")
    return replace(made, path=folder, notes=(*notes, *made.notes))


def write(settings: ServiceSettings, home: Home, folder: Path, ports: Ports, place: Place) -> WorkFolder:
    """Fill an empty folder with the service of settings that `unsupported.check` passed.

    Big files come by ``place``. Raises ModelError, AliasError, SettingsError, UnsupportedModelError,
    IndexFolderError for what Paddle Serving could not run.
    """
    content, operators = _PARTS[settings.kind](settings, home, folder, place)
    made = config.build(settings, operators, ports)
    script = f"{settings.kind}_web_service.py"
    for name in (script, *_SHARED):
        shutil.copyfile(SCRIPTS / name, folder / name)
    content = {"name": settings.server.name, **content}
    (folder / SERVICE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / CONFIG).write_text(yaml.safe_dump(made.content, sort_keys=False, allow_unicode=True), "utf-8")
    return WorkFolder(folder, settings.kind, script, tuple(made.notes))


def _readme(made: WorkFolder, name: str, server: ServerSettings) -> str:
    listeners = {f"HTTP on {server.http_port} (`POST /{server.name}/prediction`)": server.http_port}
    listeners[f"gRPC on {server.rpc_port}"] = server.rpc_port
    answers = " and ".join(text for text, port in listeners.items() if port)
    return (
        f"Image {made.kind} for Paddle Serving 0.9.0, as `pdserve export paddle-serving` wrote it.\n"
        f"Start: `docker cp {name} test:/home/{name}`, then in there "
        f"`cd /home/{name} && python3 {made.script}`; it answers {answers}.\n"
        'Settings: config.yml, as Paddle Serving knows it; a GPU is `device_type: 1` and `devices: "0"`.\n'
    )


def _classification(settings: ServiceSettings, home: Home, folder: Path, place: Place) -> _Parts:
    wanted = settings.models["model"]
    model = open_model(wanted.model, home, settings.config_dir).served_as("classification")
    fetch = wanted.fetch_list[0] if wanted.fetch_list else FETCH
    check_aliases(model, fetch)
    description = classifier_config(model, settings.options)
    check_size(model, description)
    kind = description.postprocess.kind
    if kind not in _POSTPROCESSES:
        raise SettingsError(
            f"{model.name} answers by {kind}, which Paddle Serving's service does not know; "
            "use --runtime native."
        )
    names = _names(description)
    if names:
        lines = "".join(f"{' '.join(name.splitlines())}\n" for name in names)
        (folder / _LABELS).write_text(lines, "utf-8")
    operator, _ = _operator(settings.server.name, wanted, model, folder, place)
    content = {
        "operator": operator.name,
        **_input(model, fetch, description.chain.ops),
        "labels": _LABELS if names else None,
        "threshold": description.params.get("threshold") if kind == "ThreshOutput" else None,
        "default_label": description.params.get("default_label_index", 0),
    }
    return content, [operator]


def _names(description: ClassifierConfig) -> tuple[str, ...] | None:
    """The labels by class; those of two outputs may stand in the postprocessing itself."""
    pair = [description.params.get(key) for key in ("label_0", "label_1")]
    if description.postprocess.kind == "ThreshOutput" and pair != [None, None]:
        return tuple(str(name or number) for number, name in enumerate(pair))
    return description.names


def _recognition(settings: ServiceSettings, home: Home, folder: Path, place: Place) -> _Parts:
    operators, detector = [], None
    if wanted := settings.models.get("detector"):
        model = open_model(wanted.model, home, settings.config_dir)
        detection.check_aliases(model.config.feeds, model.path)
        operator, signature = _operator("det", wanted, model, folder, place)
        operators.append(operator)
        detector = _detector(model, signature)
    wanted = settings.models["embedder"]
    model = open_model(wanted.model, home, settings.config_dir)
    chain, fetch = describe_embedder(model, wanted)
    operator, _ = _operator("rec", wanted, model, folder, place)
    operators.append(operator)
    _index(settings, home, Embedder(model, (), chain, fetch), folder / "index")
    options = settings.options.model_dump(include=_OPTIONS)
    return {"detector": detector, "embedder": _input(model, fetch, chain.ops), **options}, operators


# For each service with a script: what the script reads, and its operators; writes the folder's files.
_PARTS: Mapping[str, Callable[[ServiceSettings, Home, Path, Place], _Parts]] = {
    "classification": _classification,
    "recognition": _recognition,
}


def _input(model: ServingModel, fetch: str, ops: preprocess.TransformOps) -> dict[str, Any]:
    """The model's own names of its feed and of the fetch with this alias, and its preprocessing."""
    name = next(v.name for v in model.config.fetches if v.alias == fetch)
    return {"feed": model.config.feeds[0].name, "fetch": name, "steps": steps(ops)}


def _operator(
    name: str, settings: ModelSettings, model: ServingModel, folder: Path, place: Place
) -> tuple[Operator, Signature]:
    # A name may be anything that a stranger's folder says, and two folders may have one name.
    own = f"{Path(model.name).name}_serving"
    own = f"{name}_{own}" if (folder / own).exists() else own
    signature = _write_model(model, folder / own, place)
    return Operator(name, settings, own, tuple(v.name for v in model.config.fetches)), signature


def _write_model(model: ServingModel, folder: Path, place: Place) -> Signature:
    """Put a model's files into a new folder; returns the model's feeds and fetches.

    Paddle Serving's local predictor looks feeds and fetches up by the model's own names and checks them
    against the aliases, so in this copy each alias is the name.

    Raises UnsupportedModelError for a model of Paddle 3, ModelError for files that cannot be read.
    """
    files = model.files
    if files.kind != "ProgramDesc":
        raise UnsupportedModelError(
            f"{files.model} is a model of Paddle 3, which Paddle Serving does not read; "
            "use --runtime native, or export it as inference.pdmodel."
        )
    program = read_program(files)
    folder.mkdir()
    if files.params:
        place(files.model, folder / "inference.pdmodel")
        place(files.params, folder / "inference.pdiparams")
    else:
        place(files.model, folder / "__model__")
        for path in parameter_files(files, program):
            place(path, folder / path.name)
    feeds, fetches = _by_name(model.config.feeds), _by_name(model.config.fetches)
    named = ModelConfig(feeds, fetches)
    (folder / prototxt.SERVER_TEXT).write_text(prototxt.dump_text(named), "utf-8")
    (folder / prototxt.SERVER_STREAM).write_bytes(prototxt.dump_stream(named))
    return program.signature


def _by_name(variables: tuple[Variable, ...]) -> tuple[Variable, ...]:
    return tuple(replace(v, alias=v.name) for v in variables)


def _detector(model: ServingModel, signature: Signature) -> dict[str, Any]:
    """As pipelines/detector.py prepares an image and finds out whether the model takes several at once."""
    described = detection.describe_detector(model)
    shape = next(v.shape for v in model.config.feeds if v.alias == detection.IMAGE)
    size = list(shape[1:] if len(shape) == 3 else described.size)
    ops: list[dict[str, dict[str, Any]]] = [
        {"NormalizeImage": {"scale": 1 / 255, "mean": list(described.mean), "std": list(described.std)}},
        {"ResizeImage": {"size": size[::-1], "interpolation": described.interpolation}},
    ]
    if described.chain:
        ops, size = _classifier_ops(model, described.chain), list(described.chain.size or size)
    free = all(feed.shape[:1] == (-1,) for feed in signature.feeds)
    return {
        "feeds": {v.alias: v.name for v in model.config.feeds},
        "size": size,
        "batches": free and len(signature.fetches) > 1,
        "steps": steps(ops),
    }


def _classifier_ops(model: ServingModel, chain: DetectorChain) -> list[dict[str, dict[str, Any]]]:
    """A detector's chain as a classifier's. Raises UnsupportedModelError for an operator it does not have."""
    ops: list[dict[str, dict[str, Any]]] = []
    for op in chain.ops:
        params = {key: value for key, value in op.items() if key != "type"}
        kind = op["type"]
        if kind == "Resize" and not params.get("keep_ratio", False):
            ops.append({"DetResize": params | {"keep_ratio": False}})
        elif kind == "NormalizeImage" and params.pop("norm_type", "mean_std") == "mean_std":
            ops.append({"DetNormalizeImage": params})
        elif kind != "Permute":
            raise UnsupportedModelError(
                f"{model.name} prepares its images by {kind}, which Paddle Serving's service does not do so; "
                "use --runtime native."
            )
    return ops


def _index(settings: ServiceSettings, home: Home, embedder: Embedder, folder: Path) -> None:
    """The current version, which must be this embedder's, in the form that PaddleClas reads."""
    beside = settings.config_dir / settings.options.index
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
    labels = id_map.with_copies(snapshot.id_map, faiss_index.copies(snapshot.index))
    (folder / index_folders.ID_MAP).write_bytes(id_map.dumps(labels))


def steps(ops: preprocess.TransformOps) -> list[dict[str, dict[str, Any]]]:
    """A chain that ``preprocess.build`` takes, as ``scripts/images.py`` reads it: every parameter plain."""
    return [{name: params} for name, params in map(_plain, ops) if params is not None]


def _plain(op: Any) -> tuple[str, dict[str, Any] | None]:
    """A step's name there and its parameters; None for a step that changes nothing there."""
    name, params = preprocess.parse_operator(op)
    match name:
        case "DecodeImage":
            return "ReverseChannels", None if params.get("to_rgb", True) else {}
        case "ResizeImage":
            known = ("size", "resize_short", "keep_ratio", "interpolation", "backend")
            given = {key: params[key] for key in known if params.get(key) is not None}
            given |= {"backend": str(given["backend"]).lower()} if "backend" in given else {}
            if "interpolation" in given:
                by = given.get("backend", "cv2")
                given["interpolation"] = interpolation_name(given["interpolation"], by)
            return name, given | ({"size": _pair(given["size"])} if "size" in given else {})
        case "CropImage":
            return name, {"size": _pair(params["size"])}
        case "PadImage":
            value = preprocess.number(params.get("value", 0), "PadImage.value")
            return name, {"size": _pair(params["size"]), "value": value}
        case "NormalizeImage":
            scale = 1 / 255 if params.get("scale") is None else params["scale"]
            return name, {
                "scale": preprocess.number(scale, "NormalizeImage.scale"),
                "mean": preprocess.channels(params.get("mean"), IMAGENET_MEAN, "NormalizeImage.mean"),
                "std": preprocess.channels(params.get("std"), IMAGENET_STD, "NormalizeImage.std"),
            }
    return name, None  # ToCHWImage: the scripts do that last


def _pair(size: Any) -> list[int]:
    return list(size) if isinstance(size, (list, tuple)) else [size, size]
