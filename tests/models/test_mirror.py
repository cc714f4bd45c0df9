from pathlib import Path

import pytest

from pdserve.errors import UsageError
from pdserve.models.mirror import choose, public, resolve

pytestmark = pytest.mark.full

URL = "https://models.example/dygraph/inference/M_infer.tar"
PATH = "dygraph/inference/M_infer.tar"


def test_flag_before_environment():
    assert choose("flag", {"PDSERVE_MIRROR": "variable"}) == "flag"
    assert choose(None, {"PDSERVE_MIRROR": "variable"}) == "variable"
    assert choose(None, {"PDSERVE_MIRROR": ""}) is None
    assert choose(None, {}) is None


def test_scheme_and_host_are_replaced():
    assert resolve(URL, None) == URL
    assert resolve(URL, "http://here:8080") == f"http://here:8080/{PATH}"
    assert resolve(URL, "http://here/models/") == f"http://here/models/{PATH}"


def test_folders(tmp_path):
    assert resolve(URL, str(tmp_path)) == tmp_path / PATH
    assert resolve(URL, tmp_path.as_uri()) == tmp_path / PATH
    assert resolve(URL, (tmp_path / "a b").as_uri()) == tmp_path / "a b" / PATH
    assert resolve(URL, "../shared/mirror") == Path("../shared/mirror") / PATH
    assert resolve(URL, "~/mirror") == Path.home() / "mirror" / PATH
    # A drive is no scheme.
    assert resolve(URL, r"D:\mirror") == Path(r"D:\mirror") / PATH


@pytest.mark.parametrize("mirror", ["ftp://here", "http://", "http://[::1", "s3://bucket/x"])
def test_other_mirrors(mirror):
    with pytest.raises(UsageError, match="neither http"):
        resolve(URL, mirror)


def test_public():
    assert public("https://user:secret@host:1/p?q=1") == "https://host:1/p?q=1"
    assert public(URL) == URL
