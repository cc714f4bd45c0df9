"""Write the models of these tests and the package's probe model; needs Paddle 3 (made with 3.3.1).

``python -m tests.engines.make_models`` from the repository's root. All weights are random.

- ``pdserve/engines/probe_model``: a serving model, see ``PROBE_MODEL`` in ``pdserve/engines``.
- ``tests/data/engines/pir``: the same network in Paddle 3's format.
- ``tests/data/engines/detector``: boxes and scores through ``multiclass_nms3``.
"""

import json
import subprocess
import sys
from pathlib import Path

from pdserve.engines import PROBE_MODEL, probe_input
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


def save(model, folder):
    import paddle

    folder.mkdir(parents=True, exist_ok=True)
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float32", "image")]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=spec, full_graph=True), str(folder / "inference"))


def pir():
    save(network(), DATA / "pir")


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
    steps = {step.__name__: step for step in (pir, probe, detector)}
    if len(sys.argv) > 1:
        steps[sys.argv[1]]()
    else:  # each in a separate process: Paddle's name counters and choice of format are global
        for name in steps:
            subprocess.run([sys.executable, "-m", "tests.engines.make_models", name], check=True)
