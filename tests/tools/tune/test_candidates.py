"""What is tried."""

import pytest

from pdserve.pipelines import SERVICES
from pdserve.tools.tune.candidates import DEFAULTS, applied, changes, current, plain, stages

classification = SERVICES["classification"].settings
recognition = SERVICES["recognition"].settings

CLASSIFIER = classification({}, {})
RECOGNISER = recognition({}, {})


def test_the_defaults_and_what_is_said() -> None:
    said = classification({"instances": 3, "precision": "int8"}, {})
    assert plain(said, {}) == {"model": DEFAULTS}
    assert current(said, {})["model"]["instances"] == 3
    assert (changes(plain(said, {})), changes(current(said, {}))) == (0, 2)
    assert plain(said, {"engine": "onnx"})["model"]["engine"] == "onnx"


def test_a_candidate_in_the_settings() -> None:
    candidate = plain(RECOGNISER, {})
    settings = applied(RECOGNISER, {**candidate, "detector": {**DEFAULTS, "threads": 5}})
    assert [model.threads for model in settings.models.values()] == [5, "auto"]
    assert settings.models["detector"].model == RECOGNISER.models["detector"].model


@pytest.mark.parametrize("settings", [CLASSIFIER, RECOGNISER])
def test_a_stage_varies_one_model_and_one_thing(settings: object) -> None:
    assert settings in (CLASSIFIER, RECOGNISER)
    best = plain(CLASSIFIER if settings is CLASSIFIER else RECOGNISER, {})
    varied = set()
    for stage in stages(CLASSIFIER if settings is CLASSIFIER else RECOGNISER, ["onnx"], {}, 8):
        found = {
            (role, name)
            for candidate in stage(best)
            for role in candidate
            for name in candidate[role]
            if candidate[role][name] != best[role][name]
        }
        assert {name for _, name in found} in (
            {"engine"}, {"precision"}, {"instances", "threads"}, {"max_batch_size"}, {"max_queue_delay_ms"}
        )  # fmt: skip
        varied |= found
    assert varied == {(role, name) for role in best for name in DEFAULTS}


def test_what_is_fixed_stays() -> None:
    fixed = {"engine": "openvino", "precision": "int8"}
    best = plain(CLASSIFIER, fixed)
    for stage in stages(CLASSIFIER, [], fixed, 8):
        for candidate in stage(best):
            assert {name: candidate["model"][name] for name in fixed} == fixed


def test_no_batch_is_tried_that_could_never_fill() -> None:
    best = plain(CLASSIFIER, {})
    sizes = {
        candidate["model"]["max_batch_size"]
        for stage in stages(CLASSIFIER, [], {}, 3)
        for candidate in stage(best)
    }
    assert sizes - {"auto"} == {1, 2}


def test_a_batch_of_one_does_not_wait() -> None:
    best = {"model": {**DEFAULTS, "max_batch_size": 1}}
    last = list(stages(CLASSIFIER, [], {}, 8))[-1]
    assert list(last(best)) == []


def test_engines_are_tried_with_all_precisions_that_the_default_has() -> None:
    """An engine that is the fastest in float32 may have no int8."""
    best = {"model": {**DEFAULTS, "engine": "onnx"}}
    found = [c["model"] for stage in stages(CLASSIFIER, [], {}, 8) for c in stage(best)]
    assert {each["engine"] for each in found if each["precision"] == "int8"} == {"auto", "onnx"}


def test_a_gpu_has_no_threads_to_share_out() -> None:
    settings = classification({"devices": ("gpu:0",)}, {})
    best = plain(settings, {})
    for stage in stages(settings, [], {}, 8):
        assert {candidate["model"]["threads"] for candidate in stage(best)} <= {"auto"}
