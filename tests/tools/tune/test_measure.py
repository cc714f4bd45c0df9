"""How the requests of a round are summarized."""

import pytest

from pdserve.tools.tune.measure import summarize


def test_a_request_counts_by_its_share_of_the_time() -> None:
    requests = [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]  # from one client, half a request per second
    found = summarize(requests, 1.0, 5.0)
    assert found.images_per_s == pytest.approx(0.5)
    assert found.p50_ms == pytest.approx(2000)


def test_where_in_a_batch_the_time_ends_does_not_matter() -> None:
    requests = [(float(second), second + 1.0) for second in range(20) for _ in range(8)]
    for end in (10.0, 10.1, 10.9):
        assert summarize(requests, 2.0, end).images_per_s == pytest.approx(8)


def test_a_round_lasts_until_a_request_has_ended() -> None:
    """As of a slow model, and on a machine that stalls between two requests for longer than a round."""
    assert summarize([(0.0, 10.0)], 1.0, 5.0).images_per_s == pytest.approx(0.1)
    assert summarize([(0.0, 1.0), (6.0, 8.0)], 1.0, 5.0).images_per_s == pytest.approx(1 / 7)


def test_what_was_before_and_after_does_not_count() -> None:
    requests = [(0.0, 1.0), (2.0, 2.1), (5.0, 9.0)]
    found = summarize(requests, 1.0, 5.0)
    assert found.images_per_s == pytest.approx(0.25)
    assert found.p99_ms == pytest.approx(100)
