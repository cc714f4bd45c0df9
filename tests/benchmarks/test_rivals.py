import ast
from pathlib import Path

import pytest

from benchmarks.contenders import CONTENDERS
from benchmarks.measurement import BATCH
from benchmarks.rivals.environment import HERE, prepare, requirements, stamp_of

RIVALS = [one.name for one in CONTENDERS.values() if one.kind == "rival"]
# Beside them: what they share.
SHARED = {"__init__", "environment", "task"}


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_is_a_file_with_pinned_requirements(name: str) -> None:
    tree = ast.parse((HERE / f"{name}.py").read_text("utf-8"))
    assert ast.get_docstring(tree)
    wanted = requirements(name).read_text("utf-8").split()
    assert wanted
    assert all("==" in line for line in wanted)
    # The version in the table is the one that is installed.
    assert wanted[0].partition("==")[2] in CONTENDERS[name].settings


def test_no_rival_is_left_out_of_the_table() -> None:
    assert {path.stem for path in HERE.glob("*.py")} - SHARED == set(RIVALS)
    assert {path.name for path in HERE.glob("requirements-*.txt")} == {requirements(n).name for n in RIVALS}


def test_the_batching_that_the_table_tells_is_that_of_the_files() -> None:
    numbers = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse((HERE / "task.py").read_text("utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert numbers["BATCH"] == BATCH  # which says how long a load has to be
    assert f"`max_batch_size={numbers['BATCH']}`, `batch_timeout={numbers['WAIT_S']}`" in (
        CONTENDERS["litserve"].settings
    )
    for name in ("litserve", "ray_serve", "mosec", "bentoml"):
        assert f"max_batch_size={numbers['BATCH']}" in CONTENDERS[name].settings
        assert "max_batch_size=BATCH" in (HERE / f"{name}.py").read_text("utf-8")


def test_an_environment_that_is_there_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mosec").mkdir()
    (tmp_path / "mosec" / "installed").write_text(stamp_of("mosec"), "utf-8")
    assert prepare("mosec", tmp_path) == tmp_path / "mosec" / "bin" / "python"
