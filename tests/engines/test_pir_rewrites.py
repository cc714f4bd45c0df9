"""Programs of Paddle 3 that p2o alone converts to something else: what is run computes what Paddle does."""

import json
from pathlib import Path

import numpy as np
import pytest

from pdserve.engines import Device, load, pir_rewrites, probe_input
from pdserve.engines.pir_rewrites import rewritten
from pdserve.formats.pir import parse_pir
from tests.engines.models import DATA, PIR, engine_params, serving_model
from tests.engines.pir_programs import PirProgram

DROPOUT = DATA / "engines/dropout"
OPERATORS = DATA / "engines/operators"


@pytest.mark.parametrize(("engine", "device"), engine_params())
def test_a_dropout_that_scales_at_inference_scales(engine: str, device: Device, tmp_path: Path) -> None:
    expected = np.array(json.loads((DROPOUT / "expected.json").read_text("utf-8")), np.float32)
    for path in DROPOUT.glob("inference.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = load(serving_model(tmp_path), engine=engine, device=device)

    (found,) = model.run({"x": probe_input(len(expected))}).values()

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    model.close()


def test_only_the_dropouts_that_scale_are_rewritten() -> None:
    program = json.loads(rewritten((DROPOUT / "inference.json").read_bytes()) or b"")

    ops = program["program"]["regions"][0]["blocks"][0]["ops"]
    assert [op["#"] for op in ops if "dropout" in op["#"] or "scale" in op["#"]] == [
        "1.scale",
        "1.dropout",
        "1.scale",
    ]
    results = [result["%"] for op in ops for result in (op["O"] if isinstance(op["O"], list) else [op["O"]])]
    assert len(results) == len(set(results))


def test_a_program_without_dropout_stays_as_it_is() -> None:
    assert rewritten((PIR / "inference.json").read_bytes()) is None


def test_a_dropout_with_a_computed_probability_is_refused() -> None:
    document = json.loads((DROPOUT / "inference.json").read_bytes())
    for op in document["program"]["regions"][0]["blocks"][0]["ops"]:
        if op["#"] == "1.full":
            op["#"] = "1.other"

    with pytest.raises(ValueError, match="computed"):
        rewritten(json.dumps(document).encode())


@pytest.mark.parametrize(("engine", "device"), engine_params())
def test_every_operator_of_the_table_computes_what_paddle_does(
    engine: str, device: Device, tmp_path: Path
) -> None:
    """To 1e-6 of each number; of the largest one where numbers are summed. At the ends of exp's range too."""
    for path in OPERATORS.glob("inference.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    given = json.loads((OPERATORS / "expected.json").read_text("utf-8"))
    expected = {name: np.array(value, np.float32) for name, value in given["answers"].items()}
    x = np.array(given["x"], np.float32)
    model = load(serving_model(tmp_path), engine=engine, device=device)

    found = dict(zip(expected, model.run({"x": x}).values(), strict=True))

    model.close()
    for name in ("conv2d_transpose", "depthwise_conv2d_transpose", "pool2d"):
        want = expected.pop(name)
        np.testing.assert_allclose(found[name], want, rtol=0, atol=1e-6 * abs(want).max(), err_msg=name)
    for name, want in expected.items():
        # The smallest numbers that float32 has in full; below, engines round to zero.
        np.testing.assert_allclose(found[name], want, rtol=1e-6, atol=1.2e-38, err_msg=name)
    np.testing.assert_allclose(found["exp"], np.exp(x.astype(np.float64)), rtol=1e-6, atol=1.2e-38)


def test_every_operator_of_the_table_is_tried() -> None:
    used = parse_pir((OPERATORS / "inference.json").read_bytes(), "operators").operators
    assert {"dropout"} | used >= pir_rewrites.OPERATORS
    left = parse_pir(rewritten((OPERATORS / "inference.json").read_bytes()) or b"", "rewritten").operators
    assert left & pir_rewrites.OPERATORS == {"conv2d_transpose", "pool2d", "prelu"}


def test_pools_with_windows_of_two_sizes_are_left(tmp_path: Path) -> None:
    program = (OPERATORS / "inference.json").read_bytes()
    assert rewritten(program) is not None
    document = json.loads(program)
    ops = document["program"]["regions"][0]["blocks"][0]["ops"]
    (pool,) = (op for op in ops if op["#"] == "1.pool2d")
    pool["O"][0]["TT"]["D"][1][2] = 3  # of 4 rows
    document["program"]["regions"][0]["blocks"][0]["ops"] = [
        op for op in ops if op["#"] not in {f"1.{name}" for name in pir_rewrites.OPERATORS - {"pool2d"}}
    ]
    assert rewritten(json.dumps(document).encode()) is None


def _relu6(folder: Path) -> Path:
    program = PirProgram()
    x = program.plus_parameter(program.feed("x", (-1, 5)))
    program.fetch(program.same("relu6", x), program.scale(program.same("relu6", x), 2.0))
    return program.write(folder)


def test_relu6_is_computed(tmp_path: Path) -> None:
    """Twice in one program: no result has another one's number."""
    engine = load(serving_model(_relu6(tmp_path / "m")), engine="openvino", device=Device())
    x = np.array([[-7, -0.5, 0, 5.5, 9], [1, 2, 6, 6.5, -1]], np.float32)
    once, doubled = engine.run({"x": x}).values()
    np.testing.assert_array_equal(once, x.clip(0, 6))
    np.testing.assert_array_equal(doubled, 2 * x.clip(0, 6))
    engine.close()


def test_relu6_of_another_type_is_left(tmp_path: Path) -> None:
    program = (_relu6(tmp_path / "m") / "inference.json").read_bytes()
    assert rewritten(program) is not None
    assert rewritten(program.replace(b"0.t_f32", b"0.t_f64")) is None
