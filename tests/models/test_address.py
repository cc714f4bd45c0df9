import pytest

from pdserve.errors import UsageError
from pdserve.models import catalog
from pdserve.models.address import entry_for
from pdserve.models.catalog import Archive


def test_a_name_is_the_catalogs():
    assert entry_for("ResNet50_vd") is catalog.get("ResNet50_vd")
    with pytest.raises(UsageError, match=r"no 'resnet50vd'; did you mean ResNet50_vd"):
        entry_for("resnet50vd")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://host.example/a/b/my_model_infer.tar", "my_model"),
        ("http://127.0.0.1:8000/PP-LCNet_x1_0_infer.tar", "PP-LCNet_x1_0"),
        ("https://host.example/net.tar.gz", "net"),
        ("https://host.example/net.TGZ?version=2", "net"),
        ("https://host.example/My%2BNet_infer.tar", "My+Net"),
    ],
)
def test_an_archives_address_gives_its_name(address, name):
    entry = entry_for(address)
    assert (entry.name, entry.task, entry.source) == (name, None, Archive(address))


def test_an_address_of_the_catalog_is_its_entry():
    for name in ("ResNet50_vd", "ResNet50_vd_paddle3", "PP-HGNetV2-B0"):
        assert entry_for(catalog.get(name).source.address) is catalog.get(name)


@pytest.mark.parametrize(
    "address",
    ["https://host.example/model.zip", "https://host.example/", "https:///x_infer.tar", "https://[x/a.tar"],
)
def test_an_address_of_something_else(address):
    with pytest.raises(UsageError, match=r"is no address of an archive .*an address is https://"):
        entry_for(address)


def test_an_address_of_another_scheme():
    with pytest.raises(UsageError, match=r"cannot be fetched from 's3://bucket/net.tar'"):
        entry_for("s3://bucket/net.tar")


@pytest.mark.parametrize("last", ["-x", ".tar", "a b", "%00", "NUL", "com1.x", "a" * 129, "a%5Cb", "é"])
def test_a_name_that_is_no_file_name_is_refused(last):
    with pytest.raises(UsageError, match="no safe file name"):
        entry_for(f"https://host.example/{last}_infer.tar")
