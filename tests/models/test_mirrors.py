from pathlib import Path

import pytest

from pdserve.errors import UsageError
from pdserve.models import catalog
from pdserve.models.mirrors import choose_mirrors, mirrored, places

ADDRESS = "https://models.example/dygraph/inference/M_infer.tar"
ADDRESS_PATH = "dygraph/inference/M_infer.tar"


def test_flag_before_environment():
    assert choose_mirrors(["flag"], {"PDSERVE_MIRROR": "variable"}) == ("flag",)
    assert choose_mirrors([], {"PDSERVE_MIRROR": "variable"}) == ("variable",)
    assert choose_mirrors([], {"PDSERVE_MIRROR": ""}) == ()
    assert choose_mirrors([], {}) == ()


def test_several_keep_their_order():
    assert choose_mirrors(["b", "a,c"], {}) == ("b", "a,c")
    assert choose_mirrors([], {"PDSERVE_MIRROR": " http://b/x , /mnt/a,, "}) == ("http://b/x", "/mnt/a")


def test_scheme_and_host_are_replaced():
    assert mirrored(ADDRESS, None) == ADDRESS
    assert mirrored(ADDRESS, "http://here:8080") == f"http://here:8080/{ADDRESS_PATH}"
    assert mirrored(ADDRESS, "http://here/models/") == f"http://here/models/{ADDRESS_PATH}"


def test_folders(tmp_path):
    assert mirrored(ADDRESS, str(tmp_path)) == tmp_path / ADDRESS_PATH
    assert mirrored(ADDRESS, tmp_path.as_uri()) == tmp_path / ADDRESS_PATH
    assert mirrored(ADDRESS, (tmp_path / "a b").as_uri()) == tmp_path / "a b" / ADDRESS_PATH
    assert mirrored(ADDRESS, "../shared/mirror") == Path("../shared/mirror") / ADDRESS_PATH
    assert mirrored(ADDRESS, "~/mirror") == Path.home() / "mirror" / ADDRESS_PATH
    # A drive is no scheme.
    assert mirrored(ADDRESS, r"D:\mirror") == Path(r"D:\mirror") / ADDRESS_PATH


@pytest.mark.parametrize("mirror", ["ftp://here", "http://", "http://[::1", "s3://bucket/x"])
def test_other_mirrors(mirror):
    with pytest.raises(UsageError, match="neither http"):
        mirrored(ADDRESS, mirror)


def test_mirrors_replace_the_public_hosts_in_order(tmp_path):
    for name in ("ResNet50_vd", "PP-HGNetV2-B0", "car_exists"):
        url = catalog.get(name).source.address
        path = url.split("/", 3)[3]
        assert places(url, []) == [url]
        assert places(url, ["http://a", str(tmp_path)]) == [f"http://a/{path}", tmp_path / path]


def test_an_address_of_another_host_is_read_there(tmp_path):
    """Mirrors stand for the model hosts; they could not have it."""
    assert places(ADDRESS, ["http://a", str(tmp_path)]) == [ADDRESS]
    archive = tmp_path / "a b_infer.tar"
    assert places(archive.as_uri(), ["http://a"]) == [archive]


def test_a_wrong_mirror_is_said_before_any_is_asked():
    with pytest.raises(UsageError, match="'ftp://b' is neither"):
        places(catalog.get("ResNet50_vd").source.address, ["http://a", "ftp://b"])
