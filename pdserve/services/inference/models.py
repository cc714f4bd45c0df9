"""What the Open Inference Protocol calls models: a service, which takes images, and the models behind it.

A service is found by its kind and by its name, and answers in JSON: ``labels`` or ``objects`` of each image.
Each of its models is found by the model's own name, takes images too, or the tensors that its files say, and
gives its fetches. Where a service is a classifier and nothing else, the two are one, under all names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from pdserve.pipelines import SERVICES
from pdserve.pipelines.base import PipelineModel
from pdserve.services.inference.requests import VERSION, UnknownModelError
from pdserve.services.inference.tensors import BYTES, datatype_of, shown
from pdserve.services.replica import Replica
from pdserve.services.repository import Repository, listed
from pdserve.services.service import Answering, Service
from pdserve.vision.preprocess import MAX_RESIZED

IMAGE = "image"
"""The input that takes images."""

PLATFORM = "pdserve"


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: ``shape`` has -1 where an extent is free; the first is the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class InferenceModel:
    """A model of the protocol, under one of its names.

    ``inputs``, ``outputs``: as its metadata say. ``role``: the pipeline's model that runs tensors; None for
    a service that takes images alone. ``items``: the output that is the service's answer; empty where only
    fetches are given. ``usual``: the outputs of a request that asks for none by name.
    """

    name: str
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    role: str | None
    items: str
    usual: tuple[str, ...]

    @property
    def takes_images(self) -> bool:
        """Whether its metadata speak of images, and not of tensors."""
        return self.inputs[0].datatype == BYTES


def find(services: Repository, name: str, version: str = "") -> tuple[Answering, InferenceModel]:
    """The model of a name, and the service that it belongs to.

    Raises UnknownModelError for another name, or another version than the only one.
    """
    found = next((each for each in models(services) if each[1].name == name), None)
    if found is None:
        known = listed([model.name for _, model in models(services)])
        raise UnknownModelError(f"There is no model {shown(name)} here; there is {known}.")
    if version not in ("", VERSION):
        raise UnknownModelError(
            f"The model {shown(name)} has no version {shown(version)}; its only one is {VERSION!r}."
        )
    return found


def models(services: Repository) -> Iterator[tuple[Answering, InferenceModel]]:
    """All models, services first; of several with one name the first is meant."""
    seen = set()
    for by_model in (False, True):
        for service_name, service in services:
            for model in _of_service(service):
                if by_model != (model.platform != PLATFORM) or model.name in seen:
                    continue
                # A service's own names are those that the repository finds it by.
                if by_model or services.find(model.name) is service:
                    seen.add(model.name)
                    yield service, model
            if not by_model and service_name not in seen:
                seen.add(service_name)
                yield service, replace(_service_model(service), name=service_name)


def parts(service: Answering) -> Mapping[str, PipelineModel]:
    """The pipeline's models, by role; none where it is not loaded, or a stand-in."""
    if isinstance(service, Service) and service.loaded:
        return service.replica.pipeline.models
    return {}


def _of_service(service: Answering) -> Sequence[InferenceModel]:
    """The models of a service, itself first under all its names. Kept as long as its replica is."""
    if not isinstance(service, Service) or not service.loaded:
        return list(_made(service))
    replica = service.replica
    if replica not in _KEPT:
        _KEPT[replica] = list(_made(service))
    return _KEPT[replica]


_KEPT: "WeakKeyDictionary[Replica, Sequence[InferenceModel]]" = WeakKeyDictionary()


def _service_model(service: Answering) -> InferenceModel:
    return _of_service(service)[0]


def _made(service: Answering) -> Iterator[InferenceModel]:
    items = SERVICES[service.kind].items
    answer = TensorInfo(items, "FP32" if items == "embedding" else BYTES, _ANSWERS.get(items, (-1,)))
    behind = parts(service)
    # A service of one model that gives labels is that model: one run makes labels and scores.
    only = next(iter(behind)) if len(behind) == 1 and items == "labels" else ""
    role = only if only and behind[only].read else None
    outputs = (*(_fetches(behind[role]) if role else ()), answer)
    image = (TensorInfo(IMAGE, BYTES, (-1,)),)
    usual = tuple(info.name for info in outputs)
    for name in sorted(service.names, key=lambda name: name == service.kind):
        yield InferenceModel(name, PLATFORM, image, outputs, role, items, usual)
    for each_role, each in behind.items():
        fetches = _fetches(each)
        yield InferenceModel(
            each.name,
            each.engines[0].name,
            _feeds(each),
            outputs if each_role == role else fetches,
            each_role,
            items if each_role == role else "",
            tuple(info.name for info in fetches),
        )


_ANSWERS = {"embedding": (-1, -1)}


def _feeds(model: PipelineModel) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(feed.alias, datatype_of(feed.dtype), feed_shape(model, feed.alias))
        for feed in model.engines[0].feeds
    )


def _fetches(model: PipelineModel) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(each.alias, datatype_of(each.dtype), (-1, *each.shape))
        for each in model.engines[0].fetches
    )


def feed_shape(model: PipelineModel, alias: str) -> tuple[int, ...]:
    """A feed's shape, with the batch. Where the model leaves an image's size free, that of its preprocessing.

    It may still be -1: of a model whose input is as large as the image.
    """
    shape = tuple(model.engines[0].shapes[alias])
    if len(shape) == 4 and model.size:
        given = (-1, 3, *model.size)
        shape = tuple(own if own > 0 else ours for own, ours in zip(shape, given, strict=True))
    return (-1, *shape[1:])


MOST_ELEMENTS = 3 * MAX_RESIZED
"""Of a row of a feed whose extents nothing fixes: what the preprocessing would make at most."""


def config(model: InferenceModel, max_images: int) -> dict[str, Any]:
    """The model's configuration, in the form of Triton's ModelConfig, as far as that means something here.

    Shapes are without the batch.
    """
    return {
        "name": model.name,
        "platform": model.platform,
        "backend": PLATFORM,
        "max_batch_size": max_images,
        "input": [_described(info) | _IMAGE_FORMAT.get(len(info.shape), {}) for info in model.inputs],
        "output": [_described(info) for info in model.outputs],
    }


_IMAGE_FORMAT: dict[int, dict[str, str]] = {4: {"format": "FORMAT_NCHW"}}


def _described(info: TensorInfo) -> dict[str, Any]:
    dims: Sequence[int] = info.shape[1:]
    described: dict[str, Any] = {
        "name": info.name,
        "data_type": "TYPE_STRING" if info.datatype == BYTES else f"TYPE_{info.datatype}",
        "dims": list(dims) or [1],
    }
    if not dims:  # the protocol has no tensor without a dimension beside the batch
        described["reshape"] = {"shape": []}
    return described
