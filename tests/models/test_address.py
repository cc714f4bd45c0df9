import pytest

from pdserve.errors import UsageError
from pdserve.models import catalog
from pdserve.models.address import entry_for, is_source
from pdserve.models.catalog import Archive, Folder, Hub


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
    with pytest.raises(UsageError, match=r"is no address of an archive .*addresses are https://"):
        entry_for(address)


def test_an_address_of_another_scheme():
    with pytest.raises(UsageError, match=r"cannot be fetched from 's3://bucket/net.tar'"):
        entry_for("s3://bucket/net.tar")


@pytest.mark.parametrize("last", ["-x", ".tar", "a b", "%00", "NUL", "com1.x", "a" * 129, "a%5Cb", "é"])
def test_a_name_that_is_no_file_name_is_refused(last):
    with pytest.raises(UsageError, match="no safe file name"):
        entry_for(f"https://host.example/{last}_infer.tar")


@pytest.mark.parametrize(
    ("address", "name", "source"),
    [
        ("hf://PaddlePaddle/PP-LCNet_x1_0", "PP-LCNet_x1_0", Hub("PaddlePaddle", "PP-LCNet_x1_0", "main")),
        ("hf://me/my.model_infer@v1.0", "my.model", Hub("me", "my.model_infer", "v1.0")),
        ("hf://me/net@refs/pr/1", "net", Hub("me", "net", "refs/pr/1")),
    ],
)
def test_a_repository_of_a_hub(address, name, source):
    entry = entry_for(address)
    assert (entry.name, entry.task, entry.source) == (name, None, source)


@pytest.mark.parametrize(
    "address", ["hf://net", "hf://me/net/sub", "hf://me/..", "hf://me/net@../x", "hf://me/net@", "hf:///net"]
)
def test_what_is_no_repository(address):
    with pytest.raises(UsageError, match=r"form is hf://OWNER/NAME\[@REVISION\]"):
        entry_for(address)


def test_a_folder_and_an_archive_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "net_infer").mkdir()
    (tmp_path / "other_infer.tar").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    folder = entry_for("./net_infer")
    assert (folder.name, folder.source) == ("net", Folder(tmp_path / "net_infer"))
    assert entry_for(str(tmp_path / "net_infer")) == folder
    archive = entry_for("./other_infer.tar")
    assert (archive.name, archive.source) == ("other", Archive((tmp_path / "other_infer.tar").as_uri()))
    monkeypatch.chdir(tmp_path / "net_infer")
    assert entry_for(".") == folder


def test_a_path_where_there_is_nothing(tmp_path):
    with pytest.raises(UsageError, match="There is no file or folder"):
        entry_for(str(tmp_path / "net"))
    (tmp_path / "net.zip").write_bytes(b"")
    with pytest.raises(UsageError, match="is no folder and no archive"):
        entry_for(str(tmp_path / "net.zip"))


def test_a_name_that_is_here_but_not_in_the_catalog(tmp_path, monkeypatch):
    """A bare name is the catalog's, always; what lies here is told how to be meant."""
    (tmp_path / "net").mkdir()
    (tmp_path / "ResNet50_vd").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"type `pdserve fetch \./net`"):
        entry_for("net")
    assert entry_for("ResNet50_vd") is catalog.get("ResNet50_vd")


def test_what_is_fetched_to_be_opened(tmp_path):
    """A folder is opened in place."""
    (tmp_path / "net_infer.tar").write_bytes(b"")
    assert all(map(is_source, ["https://h/x.tar", "hf://o/n", str(tmp_path / "net_infer.tar")]))
    assert not any(map(is_source, ["ResNet50_vd", str(tmp_path), ".", "./nothing.tar"]))
