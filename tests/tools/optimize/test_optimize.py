"""``pdserve optimize`` by the real command: published where it agrees, refused where not, served by name."""

import importlib.util
import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest

from pdserve.engines import Device, load, probe_input
from pdserve.engines.openvino import import_openvino
from pdserve.errors import UsageError
from pdserve.formats.serving_model import open_serving_model
from pdserve.tools.optimize import images, tasks
from pdserve.tools.optimize.images import ImageFile
from pdserve.vision.boxes import Box
from tests.engines.models import BOTH
from tests.running import pdserve, start
from tests.tiny import build_embedder, build_serving_model, picture

needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason='needs nncf: pip install "pdserve[optimize]"'
)

NO_PORTS = ("--http-port", "0", "--rpc-port", "0")  # what runs on the usual ones is none of theirs


@pytest.fixture
def home(tmp_path: Path) -> Path:
    build_serving_model(tmp_path / "home" / "models")
    return tmp_path / "home"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty-four shades of the three colours."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(24):
        color = [20, 20, 20]
        color[i % 3] = 120 + 5 * i
        (folder / f"{i}.png").write_bytes(picture((color[0], color[1], color[2])))
    return folder


@pytest.mark.full
@needs_nncf
def test_int8_is_published_with_its_report_and_served(home: Path, photos: Path) -> None:
    done = pdserve(
        home, "optimize", "--model", "tiny", "--precision", "int8", "--calibration", str(photos), "--json"
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    published = json.loads(line)
    place = Path(published["published"])
    assert place.is_relative_to(home / "models" / "tiny_serving")
    report = json.loads((place / "report.json").read_text("utf-8"))
    for each in (published, report):
        assert each["agreement"]["value"] >= 0.98
        assert (each["calibration"]["images"], each["comparison"]["images"]) == (12, 12)
    assert "FakeQuantize" in (place / "model.xml").read_text("utf-8")
    with start(home, "--model", "tiny", "--precision", "int8") as server:
        assert "int8" in server.log
        red = httpx.post(f"{server.url}/v1/classification", content=picture((255, 0, 0)), trust_env=False)
        assert red.json()["results"][0]["labels"][0]["label"] == "red"


# What PaddleX writes beside its models, for images of 32×32.
EMBEDDER_YML = """
Global: {model_name: small}
PreProcess:
  transform_ops:
  - ResizeImage: {size: [32, 32], return_numpy: false, interpolation: bilinear, backend: cv2}
  - NormalizeImage: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], scale: 1.0/255.0, order: ""}
  - ToCHWImage: null
PostProcess: {NormalizeFeatures: null}
"""
DETECTOR_YML = """
mode: paddle
arch: GFL
Preprocess:
- {type: Resize, interp: 2, keep_ratio: false, target_size: [32, 32]}
- {type: NormalizeImage, is_scale: true, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], norm_type: mean_std}
- {type: Permute}
label_list: [a, b, c]
"""


@pytest.mark.full
@needs_nncf
@pytest.mark.parametrize(("model", "yml"), [("embedder", EMBEDDER_YML), ("detector", DETECTOR_YML)])
def test_models_of_paddle_3(tmp_path: Path, photos: Path, model: str, yml: str) -> None:
    """INT8 is made of the ONNX form; a detector's of what is before its suppression, as with Paddle 2's."""
    folder = Path(shutil.copytree(BOTH / model / "pir", tmp_path / "small"))
    (folder / "inference.yml").write_text(yml)
    asked = ("--precision", "int8", "--calibration", str(photos), "--min-agreement", "0.1", "--json")
    done = pdserve(tmp_path / "home", "optimize", "--model", str(folder), *asked)
    assert done.returncode == 0, done.stderr
    published = json.loads(done.stdout)
    assert published["published"] == str(folder / ".pdserve/int8")
    assert published["agreement"]["measure"] == {"embedder": "recall@1", "detector": "boxes"}[model]
    assert "FakeQuantize" in (folder / ".pdserve/int8/model.xml").read_text("utf-8")

    opened = open_serving_model(folder)
    fp32, int8 = (load(opened, device=Device(), precision=each) for each in ("fp32", "int8"))
    assert "int8" in int8.description
    feeds = {"image": probe_input(), "scale_factor": np.array([[1, 1], [0.5, 2]], np.float32)}
    feeds = {feed.alias: feeds[feed.alias] for feed in int8.feeds}
    floats, others = list(fp32.run(feeds).values()), list(int8.run(feeds).values())
    if model == "embedder":
        cosines = (floats[0] * others[0]).sum(1) / np.linalg.norm(floats[0], axis=1)
        assert (cosines / np.linalg.norm(others[0], axis=1) > 0.95).all()
    else:
        assert others[1].tolist() == floats[1].tolist() == [6, 6]
        np.testing.assert_allclose(others[0][:, 1].mean(), floats[0][:, 1].mean(), atol=0.05)
    for engine in (fp32, int8):
        engine.close()


@pytest.mark.full
@needs_nncf
def test_an_embedder_is_compared_by_its_neighbours_and_told_where_it_goes(
    tmp_path: Path, photos: Path
) -> None:
    home = tmp_path / "home"
    build_embedder(home / "models")
    asked = ("--model", "tiny_embedder", "--precision", "int8", "--calibration", str(photos))
    done = pdserve(home, "optimize", *asked, "--min-agreement", "0.5")
    assert done.returncode == 0, done.stderr
    assert "recall@1 agreement" in done.stdout
    assert "cosine median" in done.stdout
    assert "op.rec.local_service_conf" in done.stderr


@pytest.mark.full
@needs_nncf
def test_a_model_that_has_changed_since_is_not_run_in_its_old_form(home: Path, photos: Path) -> None:
    options = ("optimize", "--model", "tiny", "--precision", "int8", "--calibration", str(photos))
    assert pdserve(home, *options).returncode == 0
    parameters = home / "models" / "tiny_serving" / "inference.pdiparams"
    content = bytearray(parameters.read_bytes())
    content[-1] ^= 1
    parameters.write_bytes(bytes(content))
    done = pdserve(home, "serve", "classification", *NO_PORTS, "--model", "tiny", "--precision", "int8")
    assert done.returncode == 1
    assert "has changed since" in done.stderr
    assert "pdserve optimize" in done.stderr


@pytest.mark.full
@needs_nncf
def test_what_does_not_agree_is_not_published(home: Path, tmp_path: Path) -> None:
    """Calibrated in the dark, compared in daylight: all that is bright looks the same to it."""
    dark, bright = tmp_path / "dark", tmp_path / "bright"
    for folder, low in ((dark, 0), (bright, 200)):
        folder.mkdir()
        for i in range(16):
            (folder / f"{i}.png").write_bytes(picture((low + i, low + 20 + i, low + 2 * i)))
    done = pdserve(
        home, "optimize", "--model", "tiny", "--precision", "int8", "--calibration", str(dark),
        "--images", str(bright),
    )  # fmt: skip
    assert done.returncode == 1
    assert "is not published" in done.stderr
    stored = home / "models" / "tiny_serving" / ".pdserve"
    assert not list(stored.rglob("model.*"))
    done = pdserve(home, "serve", "classification", *NO_PORTS, "--model", "tiny", "--precision", "int8")
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "int8"), "--calibration"),
        pytest.param(
            ("--precision", "int8", "--calibration", "nowhere"), "no file or folder", marks=needs_nncf
        ),
        (("--precision", "fp16", "--images", "{photos}"), "fp16"),
        (("--precision", "int8", "--calibration", "{photos}", "--gpu", "0"), "int8"),
    ],
)
def test_what_cannot_be_done_is_said(
    home: Path, photos: Path, options: tuple[str, ...], message: str
) -> None:
    given = [option.format(photos=photos) for option in options]
    if message == "fp16" and "FP16" in import_openvino().Core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        pytest.skip("this processor computes in fp16; it needs one that does not")
    done = pdserve(home, "optimize", "--model", "tiny", *given)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_int8_that_was_never_made_is_an_error_with_the_command(home: Path) -> None:
    done = pdserve(home, "serve", "classification", *NO_PORTS, "--model", "tiny", "--precision", "int8")
    assert done.returncode == 1
    assert "pdserve optimize" in done.stderr


def test_too_few_images_are_refused(home: Path, photos: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for i in range(3):
        shutil.copy(photos / f"{i}.png", few)
    done = pdserve(home, "optimize", "--model", "tiny", "--precision", "int8", "--calibration", str(few))
    assert done.returncode != 0
    assert "at least 8" in done.stderr or "nncf" in done.stderr


def named(*numbers: int) -> list[ImageFile]:
    return [ImageFile(Path(f"{n}.png"), bytes([n])) for n in numbers]


def test_calibration_and_comparison_are_kept_apart() -> None:
    sets = images.choose(named(*range(20)), None, 300)
    assert not set(sets.calibration) & set(sets.comparison)
    assert (len(sets.calibration), len(sets.comparison), sets.shared) == (10, 10, False)
    sets = images.choose(named(*range(20)), named(*range(10)), 300)
    assert sets.calibration == tuple(named(*range(10, 20)))
    assert images.choose(named(*range(10)), None, 300).shared
    with pytest.raises(UsageError, match="at least 8"):
        images.choose(named(*range(7)), None, 300)


def test_labels_agree_by_the_first() -> None:
    floats = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.1, 0.9]], np.float32)
    others = np.array([[0.8, 0.2], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]], np.float32)
    found = tasks.compare_labels(list(floats), list(others), lambda row: int(row.argmax()))
    assert found.value == 0.75
    assert found.figures["max_score_difference"] == pytest.approx(0.2)


def test_vectors_agree_by_their_nearest_neighbour_and_their_direction() -> None:
    angles = np.array([0.0, 0.1, 1.5, 1.6])
    floats = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert tasks.compare_vectors(floats, floats).value == pytest.approx(1)
    # Turned by a right angle, each finds somebody else, and nothing of its direction is left.
    turned = np.stack([-floats[:, 1], floats[:, 0]], axis=1)
    assert tasks.compare_vectors(floats, turned).value < 0.1
    with pytest.raises(UsageError):
        tasks.compare_vectors(floats[:1], floats[:1])


def test_boxes_agree_where_they_overlap() -> None:
    a, b = Box(0, 0, 100, 100, 0.9), Box(200, 0, 300, 100, 0.8)
    near, far = Box(0, 0, 100, 98, 0.7), Box(200, 0, 300, 50, 0.8)
    found = tasks.compare_boxes([[a, b]], [[near, far]])
    assert found.value == 0.5
    assert found.figures["max_score_difference"] == pytest.approx(0.2)
    assert tasks.compare_boxes([[a], []], [[], [a]]).value == 0
    with pytest.raises(UsageError):
        tasks.compare_boxes([[]], [[]])


@pytest.mark.parametrize(
    ("postprocess", "task"),
    [
        ("PostProcess: {NormalizeFeatures: null}", "embedding"),
        ("PostProcess: {MultiLabelThreshOutput: {threshold: 0.5}}", "classification"),
        ("Preprocess: [{type: Permute}]", "detection"),
        ("PreProcess: {}", "classification"),  # by its alias
    ],
)
def test_the_task_is_what_the_model_says(home: Path, postprocess: str, task: str) -> None:
    folder = home / "models" / "tiny_serving"
    (folder / "inference.yml").write_text(postprocess, "utf-8")
    assert tasks.task_of(open_serving_model(folder)) == task
