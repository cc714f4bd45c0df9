"""Both runtimes on the same models and images: the same answers, field by field, over HTTP and gRPC.

Where they differ, it is a fault of Paddle Serving, listed in FAULTS. Other faults that users know (crops
outside the image, the first image's boxes only, labels cut at a blank) were of the service scripts of the
time, and are not in ours.
"""

import ast
import io
import json
import os
import pickle
import signal
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.running import Server, pdserve, start
from tests.runtimes.paddle_serving.exchange import Answer, by_published_client, encoded, over_http, over_rpc
from tests.tiny import picture

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
CONFIGS = Path(__file__).parents[3] / "configs"
IMAGES = {path.name: path.read_bytes() for path in sorted((GOLDEN / "images").iterdir())}
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "recognition.json").read_text("utf-8"))
RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))

pytestmark = [pytest.mark.full, pytest.mark.paddle_serving, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Pair:
    """The same service on both runtimes."""

    native: Server
    old: Server
    python: Path

    def __iter__(self) -> Iterator[Server]:
        return iter((self.native, self.old))


def pair(
    stack: ExitStack, home: Path, python: Path, *options: str, service: str = "classification", **old: str
) -> Pair:
    """Start both. ``old``: environment of Paddle Serving's alone."""
    native = stack.enter_context(start(home, *options, service=service))
    runtime = ("--runtime", "paddle-serving", "--python", str(python))
    return Pair(native, stack.enter_context(start(home, *options, *runtime, service=service, **old)), python)


@pytest.fixture(scope="module")
def tiny(tiny_home: Path, paddle_serving_python: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield pair(stack, tiny_home, paddle_serving_python, "--model", "tiny")


@pytest.fixture(scope="module")
def home(paddle_serving_python: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the default services need."""
    home = tmp_path_factory.mktemp("home")
    assert pdserve(home, "fetch", PDSERVE_MIRROR=str(mirror)).returncode == 0
    assert pdserve(home, "convert").returncode == 0
    return home


@pytest.fixture(scope="module")
def classification(home: Path, paddle_serving_python: Path) -> Iterator[Pair]:
    """ResNet50_vd by one config.yml, as Paddle Serving ships it."""
    with ExitStack() as stack:
        config = str(CONFIGS / "classification.yml")
        yield pair(stack, home, paddle_serving_python, "--config", config)


@pytest.fixture(scope="module")
def recognition(home: Path, paddle_serving_python: Path) -> Iterator[Pair]:
    """The guide's PP-ShiTu by one config.yml."""
    with ExitStack() as stack:
        config = str(CONFIGS / "recognition.yml")
        yield pair(stack, home, paddle_serving_python, "--config", config, service="recognition")


@pytest.fixture(scope="module")
def pictures(mirror: Path) -> dict[str, bytes]:
    """The golden images and the data set's test images, by their names in the reference."""
    found = dict(IMAGES)
    with tarfile.open(mirror / "dygraph/rec/data/drink_dataset_v1.0.tar") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            file = archive.extractfile(member)
            if name in EXPECTED and file:
                found[name] = file.read()
    assert found.keys() == EXPECTED.keys()
    return found


def check_labels(native: Answer | None, old: Answer | None, count: int) -> None:
    assert native
    assert old
    assert native.err_no == old.err_no == 0
    assert list(native.fields) == list(old.fields) == ["label", "prob"]
    assert ast.literal_eval(native.fields["label"]) == ast.literal_eval(old.fields["label"])
    scores = ast.literal_eval(native.fields["prob"])
    assert len(scores) == count
    assert scores == pytest.approx(ast.literal_eval(old.fields["prob"]), abs=5e-5)


def check_objects(native: Answer | None, old: Answer | None, count: int = 1) -> None:
    assert native
    assert old
    assert native.err_no == old.err_no == 0
    assert list(native.fields) == list(old.fields) == ["result"]
    ours, theirs = (ast.literal_eval(each.fields["result"]) for each in (native, old))
    if count == 1:
        ours, theirs = [ours], [theirs]
    assert len(ours) == len(theirs) == count
    for mine, other in zip(ours, theirs, strict=True):
        assert [list(each) for each in mine] == [list(each) for each in other]  # the keys, in order
        without = [[each["bbox"], each["rec_docs"]] for each in mine]
        assert without == [[each["bbox"], each["rec_docs"]] for each in other]
        scores = [each["rec_scores"] for each in mine]
        assert scores == pytest.approx([each["rec_scores"] for each in other], abs=1e-4)


@pytest.mark.mirror
def test_each_golden_image_gets_the_same_label(classification: Pair) -> None:
    for image in IMAGES.values():
        feed = encoded(image)
        keys = {"key": list(feed), "value": list(feed.values())}
        check_labels(*(over_http(server, "imagenet", keys)[1] for server in classification), 1)
        check_labels(*(over_rpc(server, name="imagenet", **keys) for server in classification), 1)


@pytest.mark.mirror
def test_a_batch_of_all_gets_the_same_labels(classification: Pair) -> None:
    feed = encoded(*IMAGES.values())
    keys = {"key": list(feed), "value": list(feed.values())}
    check_labels(*(over_http(server, "imagenet", keys)[1] for server in classification), len(IMAGES))
    check_labels(*(over_rpc(server, **keys) for server in classification), len(IMAGES))


@pytest.mark.mirror
def test_a_stop_lets_a_request_finish(home: Path, paddle_serving_python: Path) -> None:
    feed = encoded(*IMAGES.values())  # which takes seconds
    keys = {"key": list(feed), "value": list(feed.values())}
    options = ("--runtime", "paddle-serving", "--python", str(paddle_serving_python))
    with start(home, *options) as server, ThreadPoolExecutor() as pool:
        asked = pool.submit(over_rpc, server, **keys)
        time.sleep(0.5)
        server.interrupt(signal.SIGTERM)
        assert asked.result().err_no == 0
        assert server.wait(60) == 0


@pytest.mark.mirror
def test_every_picture_has_the_same_objects(recognition: Pair, pictures: dict[str, bytes]) -> None:
    for number, (name, image) in enumerate(pictures.items()):
        feed = encoded(image)
        keys = {"key": list(feed), "value": list(feed.values())}
        if number % 2:
            answers = [over_rpc(server, **keys) for server in recognition]
        else:
            answers = [over_http(server, "recognition", keys)[1] for server in recognition]
        check_objects(*answers)
        assert answers[0]
        wanted = [[each["bbox"], each["rec_docs"]] for each in EXPECTED[name]["result"]]
        found = ast.literal_eval(answers[0].fields["result"])
        assert [[each["bbox"], each["rec_docs"]] for each in found] == wanted


@pytest.mark.mirror
def test_several_pictures_have_the_same_objects(recognition: Pair) -> None:
    feed = encoded(*(IMAGES[name] for name in ("photo.jpg", "gray.png", "wide.png")))
    keys = {"key": list(feed), "value": list(feed.values())}
    check_objects(*(over_http(server, "recognition", keys)[1] for server in recognition), 3)


@pytest.mark.mirror
def test_the_published_client_gets_the_same(classification: Pair, recognition: Pair, tmp_path: Path) -> None:
    feed = encoded(IMAGES["photo.jpg"])
    asked = {"fetch": ["label", "prob"], "folder": tmp_path}
    check_labels(*(by_published_client(classification.python, s, feed, **asked) for s in classification), 1)
    asked["fetch"] = ["result"]
    check_objects(*(by_published_client(recognition.python, s, feed, **asked) for s in recognition))


def test_the_tiny_classifier_gets_the_same(tiny: Pair) -> None:
    feed = encoded(RED, BLUE, RED)
    keys = {"key": list(feed), "value": list(feed.values())}
    check_labels(*(over_http(server, "imagenet", keys)[1] for server in tiny), 3)
    check_labels(*(over_rpc(server, **keys) for server in tiny), 3)


def test_timings_are_told_by_both(tiny: Pair) -> None:
    keys = {"key": ["a", "pipeline.profile"], "value": [encoded(RED)["image_0"], "1"]}
    for server in tiny:
        answer = over_rpc(server, **keys)
        assert answer.err_no == 0
        assert list(answer.fields) == ["label", "prob", "pipeline.profile"]
        assert ast.literal_eval(answer.fields["label"]) == ["red"]


ONE = encoded(RED)["image_0"]
NUMBERS = {"name": "image", "elem_type": 1, "shape": [2], "float_data": [1.0, 2.0]}
REQUESTS: dict[str, Any] = {
    "an image": {"key": ["a"], "value": [ONE]},
    "unknown fields": {"key": ["a"], "value": [ONE], "more": 1},
    "one key twice": {"key": ["a", "a"], "value": ["", ONE]},
    "a string tensor": {"tensors": [{"name": "a", "elem_type": 12, "str_data": [ONE]}]},
    "no base64": {"key": ["a"], "value": ["hello"]},
    "base64 of no image": {"key": ["a"], "value": ["aGVsbG8gd29ybGQ="]},
    "an empty value": {"key": ["a"], "value": [""]},
    "two images, one bad": {"key": ["a", "b"], "value": [ONE, "aGVsbG8gd29ybGQ="]},
    "two keys, one value": {"key": ["a", "b"], "value": [ONE]},
    "empty": {},
    "no keys": {"value": [ONE]},
    "a tensor of numbers": {"tensors": [NUMBERS]},
    "a tensor whose shape does not fit": {"tensors": [{**NUMBERS, "shape": [3]}]},
    "a tensor of an unknown type": {"tensors": [{**NUMBERS, "elem_type": 99}]},
    "bytes that are no array": {"tensors": [{"name": "a", "elem_type": 13, "byte_data": "aGVsbG8="}]},
    "no JSON": "hello",
    "half of it": '{"key": ["a"',
    "keys of numbers": {"key": [1], "value": [ONE]},
    "a value that is null": {"key": ["a"], "value": [None]},
    "a value that is a string": {"key": ["a"], "value": ONE},
    "tensors that are none": {"tensors": {}},
    "another name in the body": {"key": ["a"], "value": [ONE], "name": "other"},
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_fails_or_not_on_both_alike(tiny: Pair, case: str) -> None:
    (ours, mine), (theirs, other) = (over_http(server, "imagenet", REQUESTS[case]) for server in tiny)
    assert ours == theirs
    assert (mine and mine.err_no) == (other and other.err_no)
    assert (mine and list(mine.fields)) == (other and list(other.fields))


@pytest.mark.parametrize("name", ["imagenet", "", "other", "Imagenet"])
def test_a_name_is_known_to_both_or_none(tiny: Pair, name: str) -> None:
    native, old = (over_rpc(server, name=name, key=["a"], value=[ONE]).err_no for server in tiny)
    assert native == old == (0 if name in ("imagenet", "") else 3002)


def _truncated() -> dict[str, Any]:
    half = IMAGES["photo.jpg"]
    return {"key": ["a"], "value": list(encoded(half[: len(half) // 2]).values())}


class _Call:
    """What unpickles by a call, as harmless as calls can be."""

    def __reduce__(self) -> Any:
        return np.array, ([0],)


def _pickled() -> dict[str, Any]:
    """An array file with a pickle in it."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
    np.lib.format.write_array_header_1_0(file, header)
    pickle.dump(_Call(), file, protocol=4)
    data = encoded(file.getvalue())["image_0"]
    return {"tensors": [{"name": "a", "elem_type": 13, "byte_data": data}]}


# Case: the request, err_no of pdserve, err_no of Paddle Serving.
FAULTS = {
    "half a picture is classified as if it were whole": (_truncated, 10000, 0),
    "a stranger's pickle is run, and what comes of it taken for an array": (_pickled, 8000, 10000),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_old_one_is_not_pdserves(tiny: Pair, case: str) -> None:
    request, ours, theirs = FAULTS[case]
    answers = [over_http(server, "imagenet", request())[1] for server in tiny]
    assert [answer and answer.err_no for answer in answers] == [ours, theirs]


@pytest.mark.parametrize(
    "options",
    [
        ("--instances", "2"),
        ("--max-batch-size", "4", "--max-queue-delay-ms", "5"),
        ("--timeout-ms", "60000"),
    ],
)
def test_other_settings_change_no_answer(
    tiny_home: Path, paddle_serving_python: Path, options: tuple[str, ...]
) -> None:
    with ExitStack() as stack:
        both = pair(stack, tiny_home, paddle_serving_python, "--model", "tiny", *options)
        feed = encoded(RED, BLUE)
        keys = {"key": list(feed), "value": list(feed.values())}
        for _ in range(3):
            check_labels(*(over_http(server, "imagenet", keys)[1] for server in both), 2)
        for server in both:
            server.interrupt()
            assert server.wait() == 0


def test_one_door_alone(tiny_home: Path, paddle_serving_python: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("rpc_port: 9993\nop: {imagenet: {local_service_conf: {model_config: tiny}}}\n", "utf-8")
    options = ("--config", str(config), "--runtime", "paddle-serving", "--python", str(paddle_serving_python))
    with start(tiny_home, *options, ports=("--rpc-port", "0")) as server:
        assert over_rpc(server, key=["a"], value=[ONE]).err_no == 0


def test_an_operator_that_ends_ends_the_service(tiny_home: Path, paddle_serving_python: Path) -> None:
    """Paddle Serving itself would leave its callers waiting."""
    options = ("--model", "tiny", "--instances", "2", "--runtime", "paddle-serving")
    with start(tiny_home, *options, "--python", str(paddle_serving_python)) as server:
        (service,) = _children(server.process.pid, "classification_web_service")
        operator = next(pid for pid in _children(service) if _is_alive(pid))
        os.kill(operator, 9)
        assert server.wait() == 1
        assert "Paddle Serving ended with exit code 1" in server.log


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _children(pid: int, of: str = "") -> list[int]:
    """The processes that ``pid`` started, whose command line has ``of`` in it."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    found = [int(child) for task in tasks for child in (task / "children").read_text("utf-8").split()]
    return [child for child in found if of in Path(f"/proc/{child}/cmdline").read_text("utf-8")]
