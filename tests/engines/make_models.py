"""Write the models of these tests and the package's probe model; needs Paddle 3 (made with 3.3.1).

``python -m tests.engines.make_models`` from the repository's root. All weights are random.

- ``pdserve/engines/probe_model``: a serving model, see ``PROBE_MODEL`` in ``pdserve/engines``.
- ``tests/data/engines/pir``: the same network in Paddle 3's format.
- ``tests/data/engines/detector``: boxes and scores through ``multiclass_nms3``.
- ``tests/data/engines/both``: an embedder and two detectors, with and without their suppression, each in
  both formats, with Paddle's own answers in expected.json.
- ``tests/data/engines/dropout``: PaddleClas's dropout, which scales at inference, with Paddle's answer.
- ``tests/data/engines/operators``: those that are rewritten before p2o, with Paddle's answers.
- ``pdserve/engines/probe_detector``: the detector of Paddle 3's format with its suppression, see
  ``PROBE_DETECTOR`` in ``pdserve/engines``.
"""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from pdserve.engines import PROBE_DETECTOR, PROBE_MODEL, probe_input
from pdserve.formats import prototxt
from pdserve.formats.model_files import find_model_files, read_program

DATA = Path(__file__).parents[1] / "data/engines"


def network():
    import paddle
    from paddle import nn

    class Probe(nn.Layer):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2D(3, 8, 3, stride=2, padding=1, bias_attr=False),
                nn.BatchNorm2D(8),
                nn.Hardswish(),
                nn.Conv2D(8, 16, 3, padding=1, groups=8),
                nn.BatchNorm2D(16),
                nn.ReLU(),
                nn.MaxPool2D(2),
                nn.AdaptiveAvgPool2D(1),
                nn.Flatten(),
                nn.Linear(16, 10),
            )

        def forward(self, image):
            return nn.functional.softmax(self.body(image) * 4)

    paddle.seed(2)
    model = Probe()
    for _ in range(20):  # gives the normalisations something to hold
        model(paddle.randn([8, 3, 32, 32]))
    model.eval()
    return model


def save(model, folder, spec=None):
    import paddle

    folder.mkdir(parents=True, exist_ok=True)
    spec = spec or [paddle.static.InputSpec([None, 3, 32, 32], "float32", "image")]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec, full_graph=True), str(folder / "inference"))


def pir():
    save(network(), DATA / "pir")


def dropout():
    import paddle
    from paddle import nn

    paddle.seed(4)
    model = nn.Sequential(
        nn.Conv2D(3, 4, 3, stride=4),
        nn.Dropout(0.25, mode="downscale_in_infer"),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2D(1),
        nn.Flatten(),
        nn.Dropout(0.2, mode="downscale_in_infer"),
    )
    model.eval()
    folder = DATA / "dropout"
    save(model, folder, [paddle.static.InputSpec([None, 3, 32, 32], "float32", "x")])
    expected = model(paddle.to_tensor(probe_input())).numpy().tolist()
    (folder / "expected.json").write_text(json.dumps(expected) + "\n", "utf-8")


def operators():
    import paddle
    from paddle import nn
    from paddle.nn import functional

    class Operators(nn.Layer):
        def __init__(self):
            super().__init__()
            self.whole = nn.Conv2DTranspose(4, 2, 3, stride=2)
            self.depthwise = nn.Conv2DTranspose(4, 4, 3, stride=2, groups=4)
            self.slopes = self.create_parameter([4], default_initializer=nn.initializer.Uniform(0.1, 0.9))

        def forward(self, x):
            return {
                "exp": paddle.exp(x),
                "rsqrt": paddle.rsqrt(paddle.abs(x)),
                "reciprocal": paddle.reciprocal(x),
                "full_batch_size_like": 1.0 / x,
                "square": paddle.square(x),
                # Beside the root of the same value: Paddle with oneDNN overwrites it, if it is let.
                "maximum": paddle.maximum(x, paddle.abs(x)),
                "maximum, of one channel": paddle.maximum(x[:, :1], x),
                "minimum": paddle.minimum(x, x[:, :1]),
                "relu6": functional.relu6(x),
                "p_norm": functional.normalize(x, axis=2),
                "p_norm, without the axis": paddle.norm(x.flatten(1), axis=1),
                "pool2d": functional.adaptive_avg_pool2d(x, (2, 1)),
                "prelu": functional.prelu(x[:, :, :2], self.slopes),
                "conv2d_transpose": self.whole(x),
                "depthwise_conv2d_transpose": self.depthwise(x),
            }

    paddle.seed(6)
    model = Operators()
    model.eval()
    folder = DATA / "operators"
    save(model, folder, [paddle.static.InputSpec([None, 4, 4, 4], "float32", "x")])
    edges = [-100, -88, -20, -1, -1e-3, -1e-30, 0, 1e-30, 1e-3, 0.5, 1, 3, 6, 20, 80, 88]
    x = np.concatenate([edges, np.random.default_rng(6).normal(0, 3, 48)]).astype(np.float32)
    x = x.reshape(1, 4, 4, 4)
    answers = sorted(model(paddle.to_tensor(x)).items())  # fetches come in the order of their names
    named = {name: value.numpy().tolist() for name, value in answers}
    (folder / "expected.json").write_text(json.dumps({"x": x.tolist(), "answers": named}) + "\n", "utf-8")


def probe():
    import paddle

    model = network()
    with paddle.pir_utils.OldIrGuard():
        save(model, PROBE_MODEL)
    (PROBE_MODEL / "inference.pdiparams.info").unlink()
    _without_call_stacks(PROBE_MODEL / "inference.pdmodel")
    (spec,) = read_program(find_model_files(PROBE_MODEL)).signature.fetches
    config = prototxt.ModelConfig(
        (prototxt.Variable("image", "image", "float32", (3, 32, 32)),),
        (prototxt.Variable(spec.name, "prediction", "float32", (10,)),),
    )
    (PROBE_MODEL / prototxt.SERVER_TEXT).write_text(prototxt.dump_text(config), "utf-8", newline="\n")
    expected = {"prediction": model(paddle.to_tensor(probe_input())).numpy().tolist()}
    (PROBE_MODEL / "expected.json").write_text(json.dumps(expected) + "\n", "utf-8")


def detector():
    import paddle

    with paddle.pir_utils.OldIrGuard():
        paddle.enable_static()
        from paddle.base.layer_helper import LayerHelper

        boxes = paddle.static.data("boxes", [1, 6, 4], "float32")
        scores = paddle.static.data("scores", [1, 1, 6], "float32")
        helper = LayerHelper("multiclass_nms3")
        kept, index, count = (
            helper.create_variable_for_type_inference(t) for t in ("float32", "int32", "int32")
        )
        helper.append_op(
            type="multiclass_nms3",
            inputs={"BBoxes": boxes, "Scores": paddle.scale(scores, 0.5)},
            outputs={"Out": kept, "Index": index, "NmsRoisNum": count},
            attrs={
                "background_label": -1,
                "score_threshold": 0.1,
                "nms_top_k": 6,
                "keep_top_k": 3,
                "nms_threshold": 0.5,
                "nms_eta": 1.0,
                "normalized": False,
            },
        )
        executor = paddle.static.Executor(paddle.CPUPlace())
        (DATA / "detector").mkdir(parents=True, exist_ok=True)
        paddle.static.save_inference_model(
            str(DATA / "detector/inference"), [boxes, scores], [kept, count], executor
        )
    _without_call_stacks(DATA / "detector/inference.pdmodel")


def feature_network():
    import paddle
    from paddle import nn

    class Embedder(nn.Layer):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2D(3, 8, 3, stride=2, padding=1),
                nn.BatchNorm2D(8),
                nn.Hardswish(),
                nn.AdaptiveAvgPool2D(1),
                nn.Flatten(),
                nn.Linear(8, 16),
            )

        def forward(self, image):
            return self.body(image) * 20

    paddle.seed(3)
    return Embedder()


def detector_network(suppressed):
    """A detector in small: two levels, one enlarged, boxes over ``scale_factor``, three classes."""
    import paddle
    from paddle import nn

    class Detector(nn.Layer):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2D(3, 8, 3, stride=4, padding=1), nn.BatchNorm2D(8), nn.Hardswish()
            )
            self.deep = nn.Sequential(nn.Conv2D(8, 8, 3, stride=2, padding=1), nn.BatchNorm2D(8), nn.ReLU())
            self.box = nn.Conv2D(8, 4, 1)
            self.score = nn.Conv2D(8, 3, 1)
            x, y = paddle.meshgrid(paddle.arange(8.0), paddle.arange(8.0))
            self.register_buffer("centre", (paddle.stack([y, x, y, x], -1).reshape([1, 64, 4]) + 0.5) * 4)
            self.register_buffer("sides", paddle.to_tensor([[[-6.0, -6.0, 6.0, 6.0]]]))

        def forward(self, image, scale_factor):
            stem = self.stem(image)
            feature = stem + nn.functional.interpolate(self.deep(stem), scale_factor=2.0, mode="nearest")
            sides = self.box(feature).flatten(2).transpose([0, 2, 1])
            scores = nn.functional.hardsigmoid(self.score(feature).flatten(2) * 0.3)
            y, x = paddle.split(scale_factor, 2, -1)
            boxes = self.centre + self.sides + sides * 4
            boxes = boxes / paddle.concat([x, y, x, y], -1).unsqueeze(1)
            return _suppressed(boxes, scores) if suppressed else (boxes, scores)

    paddle.seed(4)
    model = Detector()
    for _ in range(20):
        model.deep(model.stem(paddle.randn([8, 3, 32, 32])))
    return model


def _suppressed(boxes, scores):
    import paddle

    settings = {
        "score_threshold": 0.5,
        "nms_top_k": 40,
        "keep_top_k": 6,
        "nms_threshold": 0.5,
        "normalized": False,
        "nms_eta": 1.0,
        "background_label": -1,
    }
    if paddle.in_dynamic_mode() or paddle.framework.in_pir_mode():
        kept, _, count = paddle._C_ops.multiclass_nms3(boxes, scores, None, *settings.values())
        return kept, count
    from paddle.base.layer_helper import LayerHelper

    helper = LayerHelper("multiclass_nms3")
    kept, index, count = (helper.create_variable_for_type_inference(t) for t in ("float32", "int32", "int32"))
    helper.append_op(
        type="multiclass_nms3",
        inputs={"BBoxes": boxes, "Scores": scores},
        outputs={"Out": kept, "Index": index, "NmsRoisNum": count},
        attrs=settings,
    )
    return kept, count


BOTH = {
    "embedder": feature_network,
    "detector": lambda: detector_network(True),
    "boxes": lambda: detector_network(False),
}


def both():
    for form in ("pdmodel", "pir"):
        for name in BOTH:
            subprocess.run([sys.executable, "-m", "tests.engines.make_models", "one", name, form], check=True)
    shutil.copytree(DATA / "both/detector/pir", PROBE_DETECTOR, dirs_exist_ok=True)
    values = json.loads((DATA / "both/expected.json").read_text("utf-8"))["detector"]
    expected = dict(zip(("rows", "counts"), values, strict=True))
    (PROBE_DETECTOR / "expected.json").write_text(json.dumps(expected) + "\n", "utf-8")


def one(name, form):
    import paddle

    model, folder = BOTH[name](), DATA / "both" / name / form
    model.eval()
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float32", "image")]
    if name != "embedder":
        spec.append(paddle.static.InputSpec([None, 2], "float32", "scale_factor"))
    with paddle.pir_utils.OldIrGuard() if form == "pdmodel" else nullcontext():
        save(model, folder, spec)
    if form == "pdmodel":
        (folder / "inference.pdiparams.info").unlink(missing_ok=True)
        _without_call_stacks(folder / "inference.pdmodel")
        return
    feeds = {"image": probe_input(), "scale_factor": np.array([[1, 1], [0.5, 2]], np.float32)}
    from paddle import inference

    config = inference.Config(str(folder / "inference.json"), str(folder / "inference.pdiparams"))
    config.disable_gpu()
    config.disable_mkldnn()
    predictor = inference.create_predictor(config)
    for each in predictor.get_input_names():
        predictor.get_input_handle(each).copy_from_cpu(feeds[each])
    predictor.run()
    outputs = [predictor.get_output_handle(each).copy_to_cpu() for each in predictor.get_output_names()]
    values = [array.tolist() for array in outputs]
    path = DATA / "both" / "expected.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | {name: values}) + "\n", "utf-8")


def _without_call_stacks(path):
    """Paddle notes in every operator the source lines, with paths, that made it."""
    from pdserve.formats.protos import message

    program = message("pdserve.program.ProgramDesc").FromString(path.read_bytes())
    for block in program.blocks:
        for op in block.ops:
            kept = [attr for attr in op.attrs if attr.name != "op_callstack"]
            del op.attrs[:]
            op.attrs.extend(kept)
    path.write_bytes(program.SerializeToString(deterministic=True))


if __name__ == "__main__":
    steps = {step.__name__: step for step in (pir, dropout, operators, probe, detector, both)}
    if sys.argv[1:2] == ["one"]:
        one(*sys.argv[2:])
    elif len(sys.argv) > 1:
        steps[sys.argv[1]]()
    else:  # each in a separate process: Paddle's name counters and choice of format are global
        for name in steps:
            subprocess.run([sys.executable, "-m", "tests.engines.make_models", name], check=True)
