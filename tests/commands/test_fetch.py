"""``pdserve fetch``: what it says is next."""

from pathlib import Path

import pytest

from pdserve.commands.fetch import _next
from tests.model_host import put_in_folder
from tests.running import pdserve
from tests.tiny import build_inference_model


@pytest.mark.parametrize(
    ("names", "following"),
    [
        (["ResNet50_vd"], "pdserve serve classification --model ResNet50_vd"),
        (["ResNet50_vd", "AlexNet"], "pdserve convert"),
    ],
)
def test_names_of_the_catalog(tmp_path: Path, names: list[str], following: str) -> None:
    for name in names:
        put_in_folder(tmp_path / "mirror", name)
    variables = {"PDSERVE_MIRROR": str(tmp_path / "mirror"), "PDSERVE_OFFLINE": "1"}
    done = pdserve(tmp_path / "home", "fetch", *names, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"Next: {following}"
    assert "Next" not in done.stdout
    again = pdserve(tmp_path / "home", "fetch", *names, "--json", **variables)
    assert (again.returncode, again.stderr) == (0, "")


def test_what_describes_itself_in_no_file_is_as_the_catalog_says(tmp_path: Path) -> None:
    assert _next("PP-ShiTuV2_det", tmp_path) == "pdserve serve detection --detector PP-ShiTuV2_det"
    assert _next("general_PPLCNet_x2_5_lite_v1.0", tmp_path).startswith("pdserve serve embedding --model ")
    assert _next("mine", tmp_path) == "pdserve convert --model mine"


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "my_model"
    folder.mkdir()
    build_inference_model(folder)
    done = pdserve(tmp_path / "home", "fetch", str(folder))
    assert done.stderr == "Next: pdserve serve classification --model my_model\n"
    (folder / "inference.yml").unlink()  # then nothing says what it does
    done = pdserve(tmp_path / "home", "fetch", str(folder), "--force")
    assert done.stderr == "Next: pdserve convert --model my_model\n"
