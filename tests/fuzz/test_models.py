"""The files of a model: prototxt, programs of both formats, parameters, checkpoints, descriptions, notes."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.engines import PROBE_DETECTOR, pir_nms
from pdserve.errors import (
    AliasError,
    ChecksumError,
    ImageError,
    ModelError,
    SettingsError,
    UnsupportedModelError,
)
from pdserve.formats import prototxt
from pdserve.formats.model_files import ModelFiles, find_model_files, read_program
from pdserve.formats.parameters import check_parameters
from pdserve.formats.pir import parse_pir
from pdserve.formats.program import Program
from pdserve.formats.protos import message
from pdserve.formats.serving_model import ServingModel, serving_config
from pdserve.models import labels, record
from pdserve.models.download import Partial
from pdserve.pipelines.detector import describe_detector
from pdserve.pipelines.model_config import classifier_config
from pdserve.settings import ClassificationOptions
from pdserve_zoo.checkpoint import read_checkpoint
from tests.conftest import DATA, GOLDEN
from tests.engines.models import DETECTOR, PIR, PROBE, TWO_HEADS
from tests.fuzz.guard import outcome
from tests.fuzz.mutation import mutated, mutated_json, mutated_message
from tests.fuzz.yaml_text import mutated_yaml
from tests.zoo.test_checkpoint import checkpoint_bytes

FOLDERS = (PROBE, PIR, DETECTOR, DATA / "programs/odd", *(TWO_HEADS / form for form in ("pdmodel", "pir")))
PROGRAMS = [path.read_bytes() for folder in FOLDERS for path in folder.glob("inference.pdmodel")]
PIRS = [json.loads(path.read_text()) for folder in FOLDERS for path in folder.glob("inference.json")]
CONFIGS = [path.read_text() for path in sorted((GOLDEN / "convert").rglob("serving_server_conf.prototxt"))]
STREAMS = [path.read_bytes() for path in sorted((GOLDEN / "convert").rglob("*_server_conf.stream.prototxt"))]
TEXT_TOKENS = (
    b"feed_var {" * 200,
    b"}" * 3,
    b'name: "\\377"',
    b'"\\',
    b"shape: -1",
    b"shape: 99999999999999999999",
    b"feed_type: 77",
    b"[pdserve.x]: 1",
    b"unknown_field { a: 1 }",
    b"#",
    b"\xff",
    b"\0",
)


@given(mutated([text.encode() for text in CONFIGS], TEXT_TOKENS))
def test_prototxt(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    config = outcome(lambda: prototxt.parse_text(text), ModelError)
    if config is not None:
        assert prototxt.parse_text(prototxt.dump_text(config)) == config


@given(st.one_of(mutated(STREAMS), mutated_message(STREAMS)))
def test_prototxt_stream(data: bytes) -> None:
    config = outcome(lambda: prototxt.parse_stream(data), ModelError)
    if config is not None:
        assert prototxt.parse_stream(prototxt.dump_stream(config)) == config


@given(st.one_of(mutated(PROGRAMS), mutated_message(PROGRAMS)))
def test_program_desc(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "inference.pdmodel"
    path.write_bytes(data)
    _check_program(ModelFiles(path, tmp_path / "inference.pdiparams", "ProgramDesc"))


_PIR_ODD = ("0.fetch", "1.data", "p", {"#": "0.t_f32"}, {"D": "x"}, [{"N": "col", "AT": {"D": 10**30}}])


@given(mutated_json(PIRS, _PIR_ODD))
def test_pir(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "inference.json"
    path.write_bytes(data)
    _check_program(ModelFiles(path, tmp_path / "inference.pdiparams", "PIR"))


DETECTORS = [json.loads((PROBE_DETECTOR / "inference.json").read_text("utf-8"))]


@given(mutated_json(DETECTORS, ("1.scale", "1.multiclass_nms3", 10**30, None, {"%": 1}, "1.cast", [])))
def test_a_detector_of_paddle_3_is_cut_or_refused(data: bytes) -> None:
    if outcome(lambda: parse_pir(data, "the program"), ModelError) is None:
        return
    cut = outcome(lambda: pir_nms.cut(data), UnsupportedModelError)
    if cut is not None:
        made = parse_pir(cut.program, "the cut program")
        assert {spec.name for spec in made.signature.fetches} == set(cut.fetches)


def _check_program(files: ModelFiles) -> None:
    program = outcome(lambda: read_program(files), ModelError)
    if program is None:
        return
    config = serving_config(files, program)
    assert prototxt.parse_stream(prototxt.dump_stream(config)) == config
    outcome(lambda: config.with_aliases({"x": "image"}, {}), AliasError)
    # Without a file of all parameters, each name is a path: into the folder, or nowhere.
    separate = ModelFiles(files.model, None, files.kind)
    outcome(lambda: check_parameters(separate, program), ModelError)


def _parameters(folder: Path) -> tuple[bytes, ModelFiles, Program]:
    files = find_model_files(folder)
    assert files.params is not None
    return files.params.read_bytes(), files, read_program(files)


PARAMETERS = {folder.name: _parameters(folder) for folder in (PROBE, PIR, TWO_HEADS / "pdmodel")}


@pytest.mark.parametrize("name", PARAMETERS)
@given(data=st.data())
def test_parameters(tmp_path: Path, name: str, data: Any) -> None:
    whole, files, program = PARAMETERS[name]
    path = tmp_path / "inference.pdiparams"
    path.write_bytes(data.draw(st.one_of(mutated([whole]), _redescribed(whole, program))))
    altered = ModelFiles(files.model, path, files.kind)
    outcome(lambda: check_parameters(altered, program), ModelError)


@st.composite
def _redescribed(draw: Any, whole: bytes, program: Program) -> bytes:
    """The first tensor's description says another shape and type, in a message that is whole."""
    desc = message("pdserve.program.VarType.TensorDesc")()
    (length,) = struct.unpack_from("<i", whole, 16)
    desc.ParseFromString(whole[20 : 20 + length])
    sides = st.sampled_from((-1, 0, 1, 3, 2**31, 2**62, 2**63 - 1))
    desc.dims[:] = draw(st.lists(sides, max_size=40))
    desc.data_type = draw(st.sampled_from((0, 1, 5, 6, 7, 23)))
    said = desc.SerializeToString()
    return whole[:16] + struct.pack("<i", len(said)) + said + whole[20 + length :]


CHECKPOINTS = [
    checkpoint_bytes({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(4, np.int64)}),
    checkpoint_bytes({"a.weight": np.ones((2, 2, 1, 1), np.float32), "a.bias": np.zeros(2, np.float32)}),
]
PICKLE_TOKENS = (
    b"\x8a\xff" + b"\x7f" * 255,
    b"X\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f",
    b"q\x01h\x01",
    b"(" * 3000,
    b")" * 2000 + b"t",
    b"\x85" * 2000,
    b"cos\nsystem\n",
    b"cbuiltins\neval\n(X\x01\0\0\x001tR",
    b"}(u",
    b"](e",
    b"Q",
    b"R",
    b"b",
    b".",
    b"2",
    b"0",
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
)


@given(mutated(CHECKPOINTS, PICKLE_TOKENS))
def test_checkpoint(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    arrays = outcome(lambda: read_checkpoint(path), ModelError)
    # What was read is in the file, so it is no larger; and it can be read to its last element.
    assert sum(array.nbytes for array in (arrays or {}).values()) <= len(data) * 1.01 or arrays is None
    for array in (arrays or {}).values():
        array.tobytes()


LABELS = [
    "0 tench, Tinca\n1 goldfish\n2 饮料\n".encode(),
    b"red\ngreen\nblue\n",
    b"\xef\xbb\xbf0 a\r\n1 b\r\n",
]


@given(
    mutated(LABELS, (b"9" * 5000 + b" x", "\u0663 x".encode(), b"-1 x", b"\xff", b"\0", b"\x85", b"1 1 1"))
)
def test_labels(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    names = outcome(lambda: labels.read_labels(path), SettingsError)
    assert names is None or all(names)


DESCRIPTIONS = [
    {
        "PreProcess": {
            "transform_ops": [
                {"DecodeImage": {"to_rgb": True, "channel_first": False}},
                {"ResizeImage": {"resize_short": 32, "interpolation": "bicubic", "backend": "pil"}},
                {"CropImage": {"size": 24}},
                {
                    "NormalizeImage": {
                        "scale": "1.0/255.0",
                        "mean": [0.5] * 3,
                        "std": [0.2] * 3,
                        "order": "hwc",
                    }
                },
                {"ToCHWImage": None},
            ]
        },
        "PostProcess": {"main_indicator": "Topk", "Topk": {"topk": 5, "class_id_map_file": "x.txt"}},
    },
    {
        "PreProcess": {
            "transform_ops": [
                {"ResizeImage": {"size": [48, 32], "keep_ratio": True}},
                {"PadImage": {"size": [48, 32]}},
            ]
        },
        "PostProcess": {"ThreshOutput": {"threshold": 0.5, "label_0": "no", "label_1": "yes"}},
    },
    {
        "PreProcess": {
            "transform_ops": [
                {"DetResize": {"target_size": [32, 32], "keep_ratio": False, "interp": 2}},
                {"DetNormalizeImage": {"mean": [0.485] * 3, "std": [0.229] * 3, "is_scale": True}},
                {"DetPermute": {}},
            ]
        },
        "PostProcess": {"PersonAttribute": {"threshold": 0.5, "glasses_threshold": 0.3}},
    },
]


@given(mutated_yaml(DESCRIPTIONS, ("1/0", "1e400", "ResizeImage", [1, 10**9], "Topk", 10**9)))
def test_inference_yml(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "inference.yml").write_bytes(data)
    model = ServingModel(
        tmp_path, "x", ModelFiles(tmp_path / "x.pdmodel", None, "ProgramDesc"), prototxt.ModelConfig((), ())
    )
    config = outcome(lambda: classifier_config(model, ClassificationOptions()), ModelError, SettingsError)
    if config is None:
        return
    # What compiles also runs: on an image that is small, to one that is not larger than the limit.
    chain = config.chain
    image = np.full((30, 40, 3), 128, np.uint8)
    made = outcome(lambda: chain(image), ImageError, memory=2 << 30)
    assert made is None or (made.dtype == np.float32 and made.shape[0] == 3)


DETECTORS = [
    {
        "draw_threshold": 0.5,
        "arch": "GFL",
        "Preprocess": [
            {"type": "Resize", "target_size": [64, 48], "keep_ratio": ratio, "interp": 2},
            {"type": "NormalizeImage", "mean": [0.485] * 3, "std": [0.229] * 3, "is_scale": True},
            {"type": "Permute"},
            *({"type": "PadStride", "stride": 32} for _ in range(ratio)),
        ],
        "label_list": ["a", "yes"],
        "NMS": {"keep_top_k": 100, "name": "MultiClassNMS", "nms_threshold": 0.5, "nms_top_k": 1000},
    }
    for ratio in (False, True)
]
DETECTORS.append({"Preprocess": [{"type": "WarpAffine", "keep_res": False, "input_h": 8, "input_w": 9}]})
DETECTORS.append({"Preprocess": [{"type": "Pad", "size": [64, 48], "fill_value": [114.0] * 3}]})


@given(mutated_yaml(DETECTORS, ("Resize", "PadStride", [1, 10**9], 10**9, 1e400, "none", "stride")))
def test_infer_cfg_yml(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "infer_cfg.yml").write_bytes(data)
    model = ServingModel(
        tmp_path, "x", ModelFiles(tmp_path / "x.pdmodel", None, "ProgramDesc"), prototxt.ModelConfig((), ())
    )
    settings = outcome(lambda: describe_detector(model), ModelError)
    chain = settings and settings.chain
    if chain is None:
        return
    image = np.full((30, 40, 3), 128, np.uint8)
    made = outcome(lambda: chain(image), ImageError, memory=2 << 30)
    assert made is None or (made.image.dtype == np.float32 and made.image.shape[0] == 3)


RECORDS = [
    {
        "name": "m",
        "source": "http://host/m.tar",
        "origin": "http://host/m.tar",
        "sha256": "0" * 64,
        "bytes": 10,
        "date": "2025-01-31T12:00:00+00:00",
        "files": {"inference.pdmodel": {"bytes": 3, "sha256": "1" * 64, "mtime_ns": 5}},
    }
]


@given(mutated_json(RECORDS))
def test_fetch_record(tmp_path: Path, data: bytes) -> None:
    (tmp_path / record.FILE).write_bytes(data)
    (tmp_path / "inference.pdmodel").write_bytes(b"abc")
    outcome(lambda: record.verify(tmp_path), ChecksumError)


NOTES = [{"url": "http://host/a", "validator": '"x"', "total": 3, "md5": None, "pieces": 1, "complete": True}]


@given(mutated_json(NOTES))
def test_note_of_a_part(tmp_path: Path, data: bytes) -> None:
    """A note that cannot be read is none: the download begins anew."""
    partial = Partial(tmp_path / "a")
    partial.path.write_bytes(b"abc")
    partial.note.write_bytes(data)
    outcome(lambda: partial.remote("http://host/a"))
