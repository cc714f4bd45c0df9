"""A small network, written by the builder, gives NumPy's numbers in every reader that is installed."""

import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pdserve.engines.openvino import import_openvino
from pdserve.formats.protos import message
from pdserve.vision.types import Array
from pdserve_zoo.program_builder import ProgramBuilder, parameter_bytes, same_padding
from tests.extras import import_or_skip

Run = Callable[[Path, Array], list[Array]]


def convolve(x: Array, weight: Array, bias: Array, stride: int = 1, groups: int = 1) -> Array:
    """Reference: TensorFlow's 'SAME' convolution as loops over the kernel, in float64."""
    count, _, *extents = x.shape
    outputs, per_group, *kernel = weight.shape
    sizes = [-(-extent // stride) for extent in extents]
    totals = [max((n - 1) * stride + k - e, 0) for n, k, e in zip(sizes, kernel, extents, strict=True)]
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *((t // 2, t - t // 2) for t in totals)])
    result = np.zeros((count, outputs, *sizes))
    for group in range(groups):
        rows = slice(group * outputs // groups, (group + 1) * outputs // groups)
        source = padded[:, group * per_group : (group + 1) * per_group]
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                taken = source[:, :, i::stride, j::stride][:, :, : sizes[0], : sizes[1]]
                result[:, rows] += np.einsum("nchw,oc->nohw", taken, weight[rows, :, i, j])
    return result + bias[None, :, None, None]


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def run_openvino(folder: Path, x: Array) -> list[Array]:
    openvino = import_openvino()

    model = openvino.Core().read_model(folder / "inference.pdmodel")
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [value.copy() for value in compiled({"x": x}).values()]


def run_paddle(folder: Path, x: Array) -> list[Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns of a missing ccache
        inference = import_or_skip("paddle.inference", "paddle")
    config = inference.Config(str(folder / "inference.pdmodel"), str(folder / "inference.pdiparams"))
    config.disable_gpu()
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    predictor.get_input_handle("x").copy_from_cpu(x)
    predictor.run()
    names = predictor.get_output_names()
    return [predictor.get_output_handle(name).copy_to_cpu() for name in names]


def run_onnx(folder: Path, x: Array) -> list[Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paddle2onnx = import_or_skip("paddle2onnx", "onnx")
        onnxruntime = import_or_skip("onnxruntime", "onnx")
        # Its default optimiser, Polygraphy, would have pip install what it misses.
        paddle2onnx.export(
            str(folder / "inference.pdmodel"),
            str(folder / "inference.pdiparams"),
            str(folder / "model.onnx"),
            optimize_tool="None",
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    return list(session.run(None, {session.get_inputs()[0].name: x}))


READERS = [
    pytest.param(run, id=run.__name__.removeprefix("run_")) for run in (run_openvino, run_paddle, run_onnx)
]


@pytest.mark.parametrize("run", READERS)
def test_a_network_of_all_layers_gives_numpys_numbers(tmp_path: Path, run: Run) -> None:
    chance = np.random.default_rng(0)

    def weights(*shape: int) -> tuple[Array, Array]:
        # Wide enough for ReLU6 to cut on both sides; a bias that a reader drops would show.
        return chance.normal(0, 1, shape).astype("f4"), chance.normal(0, 2, shape[0]).astype("f4")

    stem, wide, deep, mix = weights(8, 3, 3, 3), weights(8, 1, 5, 5), weights(8, 1, 3, 3), weights(8, 8, 1, 1)
    fc_weight, fc_bias = chance.normal(0, 1, (8, 5)).astype("f4"), chance.normal(0, 1, 5).astype("f4")
    x = chance.normal(0, 1, (3, 3, 15, 20)).astype("f4")

    program = ProgramBuilder()
    y = program.feed("x", (-1, 3, 15, 20))
    y = program.relu6(program.conv2d(y, *stem, stride=2))  # 15×20 to 8×10: pads (1, 1) and (0, 1)
    y = program.relu6(program.conv2d(y, *wide, stride=2, groups=8))  # to 4×5: pads (1, 2) twice
    y = program.conv2d(y, *deep, groups=8)
    for _ in range(8):  # beyond ten layers conv2d_10 sorts before conv2d_2 in the parameters
        y = program.add(program.relu6(program.conv2d(y, *mix)), y)
    assert program.shape(y) == (-1, 8, 4, 5)
    pooled = program.global_average_pool(y)
    logits = program.linear(pooled, fc_weight, fc_bias)
    program.fetch(program.softmax(logits))
    program.write(tmp_path)

    z = np.clip(convolve(x, *stem, stride=2), 0, 6)
    assert (z == 0).any()
    assert (z == 6).any()
    z = np.clip(convolve(z, *wide, stride=2, groups=8), 0, 6)
    z = convolve(z, *deep, groups=8)
    for _ in range(8):
        z = z + np.clip(convolve(z, *mix), 0, 6)
    expected = softmax(z.mean((2, 3)) @ fc_weight.astype(np.float64) + fc_bias)

    (result,) = run(tmp_path, x)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)
    (single,) = run(tmp_path, x[:1])
    np.testing.assert_allclose(single, expected[:1], atol=1e-5)


@pytest.mark.parametrize("run", READERS)
def test_outputs_come_in_the_order_of_the_fetches(tmp_path: Path, run: Run) -> None:
    program = ProgramBuilder()
    x = program.feed("x", (-1, 4))
    doubled = program.linear(x, 2 * np.eye(4), np.zeros(4))
    program.fetch(program.relu6(doubled))
    program.fetch(doubled)
    program.write(tmp_path)
    value = np.array([[-1, 1, 2, 5]], np.float32)
    clamped, plain = run(tmp_path, value)
    np.testing.assert_array_equal(clamped, [[0, 2, 4, 6]])
    np.testing.assert_array_equal(plain, [[-2, 2, 4, 10]])


def test_program_states_feeds_fetches_parameters_and_shapes(tmp_path: Path) -> None:
    program = ProgramBuilder()
    x = program.feed("x", (-1, 3, 8, 8))
    y = program.conv2d(x, np.ones((4, 3, 3, 3)), np.zeros(4), stride=2)
    program.fetch(y)
    program.write(tmp_path)
    data = (tmp_path / "inference.pdmodel").read_bytes()
    (block,) = message("pdserve.program.ProgramDesc").FromString(data).blocks
    feed, conv, add, fetch = block.ops
    assert [op.type for op in block.ops] == ["feed", "conv2d", "elementwise_add", "fetch"]
    assert (feed.inputs[0].arguments[0], feed.outputs[0].arguments[0]) == ("feed", "x")
    assert (fetch.inputs[0].arguments[0], fetch.outputs[0].arguments[0]) == (y, "fetch")
    attributes = {attribute.name: attribute for attribute in conv.attrs}
    assert list(attributes["paddings"].ints) == [0, 1, 0, 1]
    assert attributes["data_format"].s == "NCHW"
    assert {attribute.name: attribute.i for attribute in add.attrs}["axis"] == 1
    variables = {variable.name: variable for variable in block.vars}
    assert list(variables[y].type.dense_tensor.tensor.dims) == [-1, 4, 4, 4]
    parameters = {name for name, variable in variables.items() if variable.is_parameter}
    assert parameters == {"conv2d_0.w_0", "conv2d_0.b_0"}
    holders = {name for name, variable in variables.items() if variable.persistable} - parameters
    assert holders == {"feed", "fetch"}


def test_parameters_are_written_in_paddles_format() -> None:
    value = np.array([[1, 2, 3]], "<f4")
    desc = b"\x08\x05\x10\x01\x10\x03"  # FP32, dims 1 and 3
    header = struct.pack("<I", 0) + struct.pack("<Q", 0) + struct.pack("<I", 0) + struct.pack("<i", len(desc))
    assert parameter_bytes(value) == header + desc + struct.pack("<3f", 1, 2, 3)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    def files(folder: Path) -> list[bytes]:
        folder.mkdir()
        program = ProgramBuilder()
        program.fetch(program.linear(program.feed("x", (-1, 2)), np.eye(2), np.zeros(2)))
        program.write(folder)
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize(
    ("extent", "kernel", "stride", "expected"),
    [
        (224, 3, 2, (0, 1)),
        (225, 3, 2, (1, 1)),
        (112, 5, 2, (1, 2)),
        (7, 3, 1, (1, 1)),
        (7, 1, 1, (0, 0)),
        (7, 1, 2, (0, 0)),
        (8, 4, 1, (1, 2)),
    ],
)
def test_same_padding(extent: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(extent, kernel, stride) == expected
