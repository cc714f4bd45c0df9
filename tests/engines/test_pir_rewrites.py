"""Programs of Paddle 3 that p2o alone converts to something else: what is run computes what Paddle does."""

import json
from pathlib import Path

import numpy as np
import pytest

from pdserve.engines import Device, load, probe_input
from pdserve.engines.pir_rewrites import rewritten
from tests.engines.models import DATA, PIR, engine_params, serving_model

DROPOUT = DATA / "engines/dropout"


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
