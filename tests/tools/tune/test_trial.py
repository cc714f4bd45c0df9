"""Which of several trials is the best."""

from pdserve.tools.tune import Goal, Round, Trial
from pdserve.tools.tune.candidates import DEFAULTS


def trial(images_per_s: float, p99_ms: float, *others: float, **settings: object) -> Trial:
    rounds = tuple(Round(each, p99_ms / 2, p99_ms) for each in (images_per_s, *others))
    return Trial({"model": {**DEFAULTS, **settings}}, rounds)


DEFAULT = trial(10, 50)
FAST = trial(20, 200, instances=2)
FASTEST = trial(30, 400, instances=4, threads=1)


def test_throughput_takes_the_fastest() -> None:
    assert Goal().choose([DEFAULT, FAST, FASTEST]) is FASTEST


def test_a_bound_takes_the_fastest_that_keeps_it() -> None:
    assert Goal(200).choose([DEFAULT, FAST, FASTEST]) is FAST
    assert Goal(60).choose([DEFAULT, FAST, FASTEST]) is DEFAULT
    assert Goal(1).choose([DEFAULT, FAST, FASTEST]) is None


def test_of_those_that_are_as_good_the_simplest_is_taken() -> None:
    almost = trial(29.5, 400, instances=2)
    assert Goal().choose([DEFAULT, FASTEST, almost]) is almost
    fastest = trial(30, 400, 30, 30, instances=4, threads=1)
    shaky = trial(25, 60, 31, 24)  # by the median slower, but in one round no slower
    assert Goal().choose([shaky, fastest]) is shaky
    steady = trial(25, 60, 26, 24)
    assert Goal().choose([steady, fastest]) is fastest


def test_what_slows_all_rounds_alike_decides_nothing() -> None:
    """Measured while the machine was ever busier: in each round the same one was faster."""
    slower, faster = trial(39, 500, 6, 15), trial(53, 700, 27, 34, precision="int8")
    assert Goal().choose([slower, faster]) is faster


def test_figures_are_medians_of_the_rounds() -> None:
    found = trial(10, 50, 40, 20)
    assert (found.images_per_s, found.spread) == (20, 1.5)


def test_better_is_more_than_chance() -> None:
    assert Goal().better(FAST, DEFAULT)
    assert not Goal().better(trial(10.2, 50), DEFAULT)
    assert not Goal(60).better(FAST, DEFAULT)  # faster, but over the bound
    assert Goal(60).better(DEFAULT, FAST)
    assert Goal(5).better(DEFAULT, FAST)  # both are over it; this one less
    assert not Goal(5).better(FASTEST, FAST)
