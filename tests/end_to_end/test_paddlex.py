"""Where PaddleX 3.7.2 and pdserve answer alike and where they differ, and why.

``tests/data/paddlex`` has what PaddleX answered; with PDSERVE_PADDLEX_PYTHON it is asked again. Its answers
for the mirror's archives on all golden images are in test_golden_paddlex.py.
"""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pdserve.errors import ImageError
from pdserve.models.home import Home
from pdserve.pipelines import SERVICES
from pdserve.pipelines.base import Direct, Pipeline
from pdserve.vision.decode import decode
from tests.end_to_end.pictures import PICTURES, write
from tests.running import pdserve, start
from tests.services.http.replaying import Caller, wanted_log_id
from tests.services.http.replaying import recorded as serving

DATA = Path(__file__).parents[1] / "data"
SCRIPT = DATA / "paddlex" / "models.py"
IMAGES = DATA / "golden" / "images"
BOTH = [(IMAGES / name).read_bytes() for name in ("photo.jpg", "wide.png")]
CLASSIFIERS = ("PP-HGNetV2-B0", "PP-LCNet_x1_0")


def recorded(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / "paddlex" / f"{name}.json").read_text("utf-8"))
    return content


READ, ANSWERS = recorded("images"), recorded("answers")

# Name -> whether PaddleX reads it, whether pdserve does, and why the two differ.
_PILLOW = "PaddleX reads TIFF with Pillow: "
DIFFERENT = {
    "gray16.tiff": (True, True, _PILLOW + "16 bits are cut off at 255; here brought to 8, as those of a PNG"),
    "rgba.tiff": (True, True, _PILLOW + "alpha is dropped; OpenCV multiplies by it"),
    "pages.tiff": (True, True, _PILLOW + "every page is an image; here the first page is"),
    "rgb.gif": (False, True, "PaddleX goes by the name of a file, and this is none of its names"),
    "rgb.avif": (False, True, "as for GIF"),
    "cut.jpg": (True, False, "PaddleX's OpenCV 4 fills what is missing with grey; here it is refused"),
}


def sample(image: Any) -> Any:
    """4×4 pixels, evenly spread, as in models.py."""
    rows, columns = (np.linspace(0, size - 1, 4).round().astype(int) for size in image.shape[:2])
    return image[rows][:, columns].astype(int)


def ours(name: str) -> Any:
    """The decoded image, None where it is refused."""
    try:
        return decode(PICTURES[name]())
    except ImageError:
        return None


@pytest.mark.parametrize("name", PICTURES)
def test_an_image_is_read_alike_or_the_difference_is_listed(name: str) -> None:
    theirs, own = READ[name], ours(name)
    pages = theirs if isinstance(theirs, list) else []
    alike = len(pages) <= 1 and bool(pages) == (own is not None)
    if alike and own is not None:
        alike = pages[0]["size"] == list(own.shape[1::-1])
        alike &= bool(np.abs(sample(own) - np.array(pages[0]["pixels"])).max() <= 2)
    assert alike == (name not in DIFFERENT)
    if name in DIFFERENT:
        assert (bool(pages), own is not None) == DIFFERENT[name][:2], DIFFERENT[name][2]


def test_what_the_differences_are() -> None:
    png, tiff = ours("gray16.png"), ours("gray16.tiff")
    assert np.array_equal(png, tiff)
    assert np.array(READ["gray16.tiff"][0]["pixels"])[1:].min() == 255 > sample(tiff)[1].max()
    alpha = 90 / 255
    assert np.array(READ["rgba.tiff"][0]["pixels"]) * alpha == pytest.approx(sample(ours("rgba.tiff")), abs=1)
    first, second = (np.array(page["pixels"]) for page in READ["pages.tiff"])
    assert np.array_equal(first, sample(ours("pages.tiff")))
    assert np.array_equal(second, first[::-1, ::-1])
    assert (READ["rgb.gif"], READ["rgb.avif"]) == ([], [])


@pytest.fixture(scope="module")
def home(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    assert pdserve(home, "fetch", *ANSWERS, PDSERVE_MIRROR=str(mirror)).returncode == 0
    assert pdserve(home, "convert").returncode == 0
    return home


def opened(home: Path, kind: str, **flags: Any) -> Pipeline[Any]:
    return SERVICES[kind].open(SERVICES[kind].settings(flags, {}), Home(home))


@pytest.fixture(params=CLASSIFIERS)
def classifier(request: pytest.FixtureRequest, home: Path) -> Iterator[tuple[str, Pipeline[Any]]]:
    pipeline = opened(home, "classification", model=request.param)
    yield request.param, pipeline
    pipeline.close()


@pytest.mark.mirror
def test_classes(classifier: tuple[str, Pipeline[Any]]) -> None:
    """The same labels and scores: five by default, which PaddleX rounds to five decimals.

    PaddleX gives each image of a batch the class ids of all of them, a list of lists even for one image.
    """
    name, pipeline = classifier
    found = pipeline.predict(BOTH)
    ids = [[label.class_id for label in answer.labels] for answer in found]
    for i, answer in enumerate(found):
        alone, both = ANSWERS[name]["alone"][i], ANSWERS[name]["both"][i]
        assert [label.label for label in answer.labels] == alone["label_names"] == both["label_names"]
        assert [label.score for label in answer.labels] == pytest.approx(alone["scores"], abs=1e-4)
        assert alone["scores"] == pytest.approx(np.round(alone["scores"], 5), abs=1e-7)
        assert alone["class_ids"] == [ids[i]]
        assert both["class_ids"] == ids


@pytest.mark.mirror
def test_features_of_a_batch(home: Path) -> None:
    """Each image's own features, where PaddleX gives every image of a batch those of all of them."""
    pipeline = opened(home, "embedding", model="PP-ShiTuV2_rec")
    try:
        vectors = asyncio.run(pipeline.embed(BOTH, Direct(pipeline.models)))
    finally:
        pipeline.close()
    theirs = ANSWERS["PP-ShiTuV2_rec"]
    alone = [np.array(each["feature"]) for each in theirs["alone"]]
    assert [each.shape for each in alone] == [(1, 64), (1, 64)]  # every eighth of 512
    for vector, wanted in zip(vectors, alone, strict=True):
        assert vector[::8] == pytest.approx(wanted[0], abs=2e-4)
    for each in theirs["both"]:
        assert np.array(each["feature"]) == pytest.approx(np.concatenate(alone), abs=1e-5)


@pytest.mark.mirror
def test_boxes(home: Path) -> None:
    """The same boxes. By default both leave out those up to 0.5, as the model's own file says."""
    theirs = ANSWERS["PP-ShiTuV2_det"]
    assert [each["boxes"] for each in (*theirs["alone"], *theirs["both"])] == [[]] * 4
    pipeline = opened(home, "detection", detector="PP-ShiTuV2_det")
    try:
        assert [answer.objects for answer in pipeline.predict(BOTH)] == [(), ()]
    finally:
        pipeline.close()
    pipeline = opened(home, "detection", detector="PP-ShiTuV2_det", det_threshold=0.2)
    try:
        (second,) = pipeline.predict(BOTH[1:])
    finally:
        pipeline.close()
    (wanted,) = theirs["over 0.2"]
    assert [each.label for each in second.objects] == [box["label"] for box in wanted["boxes"]]
    for each, box in zip(second.objects, wanted["boxes"], strict=True):
        assert each.bbox == pytest.approx(box["coordinate"], abs=0.05)
        assert each.score == pytest.approx(box["score"], abs=1e-4)


def test_paddlex_cannot_build_or_search_an_index_with_its_own_embedder() -> None:
    """Its features come as one row per batch, and its index wants them without: so in 3.7.2.

    pdserve builds and searches in test_golden_paddlex.py; with rows of their own, PaddleX searches what
    pdserve writes in tests/index/test_export.py.
    """
    failed = "ValueError: too many values to unpack (expected 2)"
    assert set(recorded("recognise").values()) == {failed}


SERVED = {
    "classification": ("--model", "PP-LCNet_x1_0"),
    "detection": ("--detector", "PP-ShiTuV2_det"),
}


@pytest.mark.mirror
@pytest.mark.parametrize("name", SERVED)
def test_served_values(name: str, home: Path) -> None:
    """A replay of what PaddleX's server has answered with the same models: values, and what is wrong."""
    replayed = 0
    with (
        start(home, *SERVED[name], service=name) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
    ):
        caller = Caller(client)
        for exchange in serving(name):
            theirs = exchange["answer"]
            fetched = exchange["name"].startswith("an address")
            if not ("result" in theirs or theirs["errorCode"] == 422) or fetched:
                continue  # see tests/services/http/test_paddlex.py
            response = caller.ask(exchange)
            assert response.status_code == exchange["response"]["status"]
            found = caller.shown(response.json())
            assert found.pop("logId") == wanted_log_id(exchange)
            near(found, {key: value for key, value in theirs.items() if key != "logId"})
            replayed += 1
    assert replayed > 20


def near(found: Any, wanted: Any) -> None:
    """Raise AssertionError unless two answers are alike: scores within 1e-4, corners within 0.05 px."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            near(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            near(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-4 if wanted <= 1 else 0.05)
    else:
        assert found == wanted


def paddlex(python: str, *arguments: object) -> Any:
    """What PaddleX answers now."""
    done = subprocess.run(
        [python, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.paddlex
def test_paddlex_still_reads_images_so(paddlex_python: str, tmp_path: Path) -> None:
    write(tmp_path)
    again = paddlex(paddlex_python, "read", tmp_path)
    assert again.keys() == READ.keys()
    for name, pages in again.items():
        if isinstance(pages, str):
            assert pages == READ[name]
            continue
        for page, known in zip(pages, READ[name], strict=True):
            assert page["size"] == known["size"]
            assert np.array(page["pixels"]) == pytest.approx(np.array(known["pixels"]), abs=2)


@pytest.mark.paddlex
@pytest.mark.mirror
@pytest.mark.timeout(900)
def test_paddlex_still_answers_so(home: Path, paddlex_python: str) -> None:
    archives = home / "models"
    assert paddlex(paddlex_python, "recognise", archives, IMAGES) == recorded("recognise")
    same(paddlex(paddlex_python, "answers", archives, IMAGES), ANSWERS)


def same(found: Any, wanted: Any) -> None:
    """Raise AssertionError unless two values in JSON are alike, numbers within 1e-3."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            same(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
    else:
        assert found == (pytest.approx(wanted, abs=1e-3) if isinstance(wanted, float) else wanted)
