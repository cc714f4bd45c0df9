"""Write the small models beside this file; needs Paddle 3 (made with 3.3.1).

``python tests/data/programs/make.py`` from the repository's root. Every model has random weights.

- ``two_heads/pdmodel``, ``two_heads/pir``: one network in both formats of Paddle 3, by ``jit.save``.
  Feeds ``x`` float32 (-1, 3, 8, 8) and ``scale`` float32 (-1, 1); fetches the softmax, float32 (-1, 5), and
  the two best classes, int64 (-1, 2).
- ``two_heads/separate``: the same as ``__model__`` and one file per parameter.
- ``odd``: a ProgramDesc whose order of feeds and fetches is that of neither names nor operators; LoD, bool.
- ``branches``: PIR with an ``if``, hence blocks inside a block, and no parameters.
- ``expected.json``: for a batch of two, what Paddle's own predictor says: names, and output values.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
HEADS = HERE / "two_heads"


def network():
    import paddle

    class TwoHeads(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = paddle.nn.Conv2D(3, 4, 3)
            self.norm = paddle.nn.BatchNorm2D(4)
            self.linear = paddle.nn.Linear(4, 5)

        def forward(self, x, scale):
            features = self.norm(self.conv(x)).mean([2, 3]) * scale
            probabilities = paddle.nn.functional.softmax(self.linear(features) * 3)
            return probabilities, paddle.topk(probabilities, 2)[1]

    paddle.seed(5)
    model = TwoHeads()
    model.eval()
    return model


def save(model, prefix):
    import paddle

    specs = [
        paddle.static.InputSpec([None, 3, 8, 8], "float32", "x"),
        paddle.static.InputSpec([None, 1], "float32", "scale"),
    ]
    paddle.jit.save(paddle.jit.to_static(model, input_spec=specs, full_graph=True), str(prefix))


def pir():
    save(network(), HEADS / "pir/inference")


def branches():
    import paddle

    paddle.enable_static()
    x = paddle.static.data("x", [-1, 3], "float64")
    flag = paddle.static.data("flag", [1], "bool")
    y = paddle.static.nn.cond(flag, lambda: paddle.tanh(x), lambda: paddle.nn.functional.relu(x))
    executor = paddle.static.Executor(paddle.CPUPlace())
    paddle.static.save_inference_model(str(HERE / "branches/inference"), [x, flag], [y], executor)


def pdmodel():
    import paddle

    model = network()  # Paddle wants its layers made before
    with paddle.pir_utils.OldIrGuard():
        save(model, HEADS / "pdmodel/inference")
    (HEADS / "pdmodel/inference.pdiparams.info").unlink()
    _without_call_stacks(HEADS / "pdmodel/inference.pdmodel")


def odd():
    import paddle

    with paddle.pir_utils.OldIrGuard():
        paddle.enable_static()
        words = paddle.static.data("words", [-1, 1], "int64", lod_level=1)
        mask = paddle.static.data("mask", [2, -1, 3], "bool")
        numbers = paddle.cast(words, "float64")
        sharp = paddle.nn.functional.softmax(numbers)
        flags = paddle.cast(mask, "uint8")
        executor = paddle.static.Executor(paddle.CPUPlace())
        feeds, fetches = [mask, words], [sharp, flags, numbers]
        paddle.static.save_inference_model(str(HERE / "odd/inference"), feeds, fetches, executor)
    _without_call_stacks(HERE / "odd/inference.pdmodel")


def separate():
    import paddle

    with paddle.pir_utils.OldIrGuard():
        paddle.enable_static()
        executor = paddle.static.Executor(paddle.CPUPlace())
        prefix = str(HEADS / "pdmodel/inference")
        program, _, _ = paddle.static.load_inference_model(prefix, executor)
        paddle.static.io.save_vars(
            executor, str(HEADS / "separate"), program, predicate=paddle.static.io.is_persistable
        )
    (HEADS / "separate/__model__").write_bytes((HEADS / "pdmodel/inference.pdmodel").read_bytes())


def expected():
    import numpy as np
    from paddle import inference

    x = np.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
    feeds = {"x": x, "scale": np.array([[1.0], [2.0]], np.float32)}
    found = {}
    for model in ("two_heads/pdmodel/inference.pdmodel", "two_heads/pir/inference.json"):
        path = HERE / model
        config = inference.Config(str(path), str(path.with_suffix(".pdiparams")))
        config.disable_glog_info()
        predictor = inference.create_predictor(config)
        for name, array in feeds.items():
            predictor.get_input_handle(name).copy_from_cpu(array)
        predictor.run()
        outputs = predictor.get_output_names()
        found[model] = {
            "feeds": predictor.get_input_names(),
            "fetches": outputs,
            "values": [predictor.get_output_handle(name).copy_to_cpu().tolist() for name in outputs],
        }
    (HERE / "expected.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def _without_call_stacks(path):
    """Paddle notes in every operator the source lines, with paths, that made it."""
    from pdserve.formats.protos import message

    program = message("pdserve.program.ProgramDesc").FromString(path.read_bytes())
    for block in program.blocks:
        for op in block.ops:
            kept = [attr for attr in op.attrs if attr.name != "op_callstack"]
            del op.attrs[:]
            op.attrs.extend(kept)
    path.write_bytes(program.SerializeToString())


if __name__ == "__main__":
    steps = {step.__name__: step for step in (pir, branches, pdmodel, odd, separate, expected)}
    if len(sys.argv) > 1:
        steps[sys.argv[1]]()
    else:  # each in a process of its own: Paddle's choice of format and its name counters are global
        environ = os.environ | {"PYTHONPATH": str(HERE.parents[2])}
        for step in steps:
            subprocess.run([sys.executable, __file__, step], check=True, env=environ)
