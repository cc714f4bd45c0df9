"""What the Open Inference Protocol calls models, where a server has one service and where it has several."""

import pytest

from pdserve.errors import WrongServiceError
from pdserve.services.inference.models import config, find, models
from pdserve.services.repository import Repository
from tests.services.listeners import RecordingService


def names(services: Repository) -> list[str]:
    return [model.name for _, model in models(services)]


def test_one_service_goes_by_its_name_and_its_kind() -> None:
    service = RecordingService()
    services = Repository.of(service, "shop")
    assert set(names(services)) == {"shop", *service.names}
    found, model = find(services, "shop", "1")
    assert found is service
    assert model.takes_images
    assert [each.name for each in model.outputs] == ["labels"]
    assert config(model, 7)["max_batch_size"] == 7


def test_of_several_a_name_means_one() -> None:
    cups, cars = RecordingService(), RecordingService()
    services = Repository({"cups": cups, "cars": cars})
    # Neither the kind nor what both are called could be meant.
    assert names(services) == ["cups", "cars"]
    assert find(services, "cars")[0] is cars
    for name in ("classification", "", "Cups"):
        with pytest.raises(WrongServiceError, match="there is cups and cars"):
            find(services, name)
    with pytest.raises(WrongServiceError, match="no version '01'"):
        find(services, "cups", "01")
