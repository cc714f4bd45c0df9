"""Several services of one file: what is read, what is refused, and whose settings are whose."""

from pathlib import Path
from typing import Any

import pytest

from pdserve.config_yml import read_config
from pdserve.errors import SettingsError
from pdserve.pipelines.named import NamedService, checked, read_services, settings_of

GOOD = """\
http_port: 18999
pdserve:
  max_images: 7
  services:
    - kind: classification
      name: flowers
      models: my_flowers
      options: {top_k: 3, threads: 2, labels: names.txt}
    - kind: recognition
      models: {detector: none, embedder: mine}
    - kind: recognition
      name: products
      models: PP-ShiTuV2
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "shop.yml"
    path.write_text(text, "utf-8")
    return path


def settings(path: Path, name: str, environ: Any = None, **flags: Any) -> Any:
    services, server = read_services(path)
    found = next(each for each in services if each.name == name)
    return settings_of(found, server, flags, environ or {}, path, (1, 2))


def test_each_service_has_its_own_settings_and_the_servers(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    services, _ = read_services(path)
    assert [(each.name, each.kind) for each in services] == [
        ("flowers", "classification"),
        ("recognition", "recognition"),
        ("products", "recognition"),
    ]
    flowers = settings(path, "flowers")
    assert (flowers.server.name, flowers.server.http_port, flowers.server.rpc_port) == (
        "flowers",
        18999,
        None,
    )
    assert (flowers.server.max_images, flowers.options.top_k) == (7, 3)
    assert flowers.options.labels == tmp_path / "names.txt"
    assert (flowers.models["model"].model, flowers.models["model"].threads) == ("my_flowers", 2)
    assert flowers.config_dir == tmp_path
    other = settings(path, "recognition")
    assert list(other.models) == ["embedder"]
    assert other.models["embedder"].threads == "auto"
    assert other.server.model_copy(update={"name": "flowers"}) == flowers.server
    assert settings(path, "products").models["embedder"].model == "PP-ShiTuV2_rec"


def test_options_and_variables_hold_for_all_and_a_models_name_for_none(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    environ = {"PDSERVE_MAX_IMAGES": "9", "PDSERVE_MODEL": "other", "PDSERVE_TOP_K": "1"}
    for name in ("flowers", "recognition"):
        found = settings(path, name, environ, threads="4", http_port=5)
        assert (found.server.max_images, found.server.http_port) == (9, 5)
        assert {each.threads for each in found.models.values()} == {4}
    flowers = settings(path, "flowers", environ)
    assert (flowers.models["model"].model, flowers.options.top_k) == ("my_flowers", 3)


def test_without_a_file_the_ports_are_those_of_the_first(tmp_path: Path) -> None:
    found = settings_of(NamedService("a", "classification"), None, {}, {}, None, (1, 2))
    assert (found.server.name, found.server.http_port, found.server.rpc_port) == ("a", 1, 2)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("- name: a", r"services\[0\] has no kind; give one of classification, recognition"),
        ("- kind: nothing", r"services\[0\] has the kind 'nothing', which there is not; give one of "),
        ("- 3", r"services\[0\] is 3; it takes the keys kind, name, models, options"),
        ("- {kind: face, port: 1}", r"services\[0\]\.port is no key of a service; it takes kind, name"),
        ("- {kind: face, name: 5}", r"services\[0\]\.name is 5, which is no text"),
        ("- {kind: face, name: a/b}", "the name 'a/b' cannot stand in an address"),
        ("- {kind: face, name: v1}", "the name 'v1' cannot stand in an address"),
        ("- {kind: face}\n    - {kind: face}", "has two services with the name face; give each a name"),
        (
            "- {kind: face, models: {model: a}}",
            r"models\.model is no model of face; it has detector, embedder",
        ),
        ("- {kind: face, models: {embedder: 3}}", r"models\.embedder is 3, which is no model's name"),
        ("- {kind: face, options: {host: x}}", r"options\.host is the whole server's; write it under"),
        ("- {kind: face, options: {tpo_k: 1}}", r"options\.tpo_k is no setting of face that pdserve knows"),
        ("- {kind: face, options: 1}", r"services\[0\]\.options is 1; it takes names with their values"),
        ("[]", "has 0 services; a server has 1 to 100"),
        ("{}", "services is no list; it has an entry with kind, name, models, options for each"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, entries: str, said: str) -> None:
    path = write(tmp_path, f"pdserve:\n  services:\n    {entries}\n")
    with pytest.raises(SettingsError, match=said):
        read_services(path)


def test_a_wrong_value_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "pdserve: {services: [{kind: classification, options: {top_k: 0}}]}")
    with pytest.raises(SettingsError, match="top_k is 0"):
        settings(path, "classification")


def test_operators_are_one_services(tmp_path: Path) -> None:
    path = write(tmp_path, "op: {imagenet: {}}\npdserve: {services: [{kind: classification}]}")
    with pytest.raises(SettingsError, match=r"op\.imagenet is a model of one service"):
        read_services(path)
    path = write(tmp_path, "pdserve: {services: [{kind: classification}]}")
    with pytest.raises(SettingsError, match="type `pdserve serve --config"):
        read_config(path, {"top_k"})
    assert read_services(write(tmp_path, "http_port: 1"))[0] == []


def test_too_many_are_refused() -> None:
    with pytest.raises(SettingsError, match="has 101 services"):
        checked([NamedService(f"s{i}", "face") for i in range(101)], "The command line")
