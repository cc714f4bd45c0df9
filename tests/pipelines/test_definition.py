"""Kinds of service defined by files: what they may say, what is refused, and who is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pdserve.errors import SettingsError
from pdserve.models import catalog
from pdserve.pipelines import SERVICES, Services, definition
from pdserve.pipelines.entry import REGIONS, RESULTS, ServiceEntry
from tests.kinds import OWN
from tests.running import pdserve

KINDS = Path(definition.__file__).parent / "kinds"
GOOD: dict[str, Any] = {
    "help": "Something.",
    "regions": "boxes",
    "result": "search",
    "models": {"detector": "a", "embedder": "b"},
}

Read = Callable[[dict[str, Any]], ServiceEntry]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def write_and_read(content: dict[str, Any]) -> ServiceEntry:
        path = tmp_path / "mine.yml"
        path.write_text(yaml.safe_dump(content), "utf-8")
        return definition.read(path)

    return write_and_read


@pytest.mark.parametrize("path", sorted(KINDS.iterdir()), ids=lambda path: path.stem)
def test_pdserves_own_kinds_are_files_of_30_lines_that_are_right(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 30
    entry = definition.read(path)
    assert entry == SERVICES[path.stem]
    known = catalog.load()
    named = [role.default for role in entry.roles.values()]
    named += [model for each in entry.sets.values() for model in each.values()]
    assert [name for name in named if name not in known] == []


@pytest.mark.parametrize("kind", [kind for kind in SERVICES if SERVICES[kind].built_in])
def test_the_commented_configuration_of_a_kind_says_its_defaults(kind: str) -> None:
    config = Path(__file__).parents[2] / "configs" / f"{kind}.yml"
    found, usual = SERVICES[kind].settings({}, {}, config), SERVICES[kind].settings({"http_port": 1}, {})
    models = {role: each.model.removesuffix("_serving") for role, each in found.models.items()}
    assert models == {role: each.model for role, each in usual.models.items()}
    assert found.options == usual.options
    assert (found.server.name, found.server.http_port, found.server.rpc_port) == (
        SERVICES[kind].name, *SERVICES[kind].ports,
    )  # fmt: skip


def test_every_kind_has_ports_of_its_own() -> None:
    ports = [port for kind in SERVICES for port in SERVICES[kind].ports]
    assert len(set(ports)) == len(ports)


def test_a_file_says_all_there_is_to_say(tmp_path: Path) -> None:
    assert len(OWN.splitlines()) <= 30
    path = tmp_path / "colours.yml"
    path.write_text(OWN, "utf-8")
    entry = definition.read(path)
    assert (entry.kind, entry.name, entry.ports, entry.route) == (
        "colours", "colour_service", (18091, 10001), "/v1/colours",
    )  # fmt: skip
    assert entry.operators == {"detector": "finder", "classifier": "classifier"}
    assert entry.roles["detector"].metavar == "NAME|DIR|none"
    found = entry.settings({}, {})
    assert {role: each.model for role, each in found.models.items()} == {
        "detector": "tiny_detector", "classifier": "tiny",
    }  # fmt: skip
    assert (found.options.det_threshold, found.options.top_k, found.options.max_det_results) == (0.5, 2, 5)
    assert entry.settings({"top_k": "3", "detector": "none"}, {}).options.top_k == 3
    assert "detector" not in entry.settings({"detector": "none"}, {}).models


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"regions": "squares"}, "regions is 'squares': .*'boxes', 'image' or 'boxes and image'"),
        ({"result": "nothing"}, "result is 'nothing': .*'boxes', 'search', 'labels' or 'features'"),
        ({"regions": None}, "regions is 'None'"),
        ({"colour": 1}, "colour is no key of a pipeline; there are help, name, http_port"),
        ({"help": "two\nlines"}, "help is .*pattern"),
        ({"http_port": 0}, "http_port is '0': .*greater than or equal to 1"),
        ({"http_port": "18080"}, "http_port is '18080': .*integer"),
        ({"models": {"detector": "a"}}, "for which models has embedder or model, and not none"),
        ({"models": {"detector": "a", "classifier": "b"}}, "has embedder or model, and not classifier"),
        ({"models": {"embedder": "b"}}, "regions is boxes, which needs a detector among models"),
        ({"models": {"eye": "b"}}, "models.eye"),
        ({"models": {}}, "models is '{}': .*at least 1"),
        ({"models": "a"}, "models is 'a'"),
        ({"models": {"detector": {"default": "a", "optional": True}, "embedder": "b"}}, "optional is"),
        ({"models": {"detector": {"default": "a", "speed": 3}, "embedder": "b"}}, "detector.speed is no"),
        ({"regions": "image"}, "regions is image, which has no detector among models"),
        ({"result": "features", "regions": "boxes"}, "result is features, for which regions must be image"),
        (
            {"result": "boxes", "regions": "image", "models": {"model": "a"}},
            "result is boxes, for which regions must be boxes",
        ),
        ({"result": "boxes"}, "no other model than the detector, and not embedder"),
        ({"sets": {"both": {"detector": "a"}}}, "sets.both must name a model for each of detector, embedder"),
        ({"options": {"topk": 3}}, "options.topk is no option here; there are det_threshold"),
        ({"options": {"det_threshold": 2}}, "options.det_threshold is 2: .*less than or equal to 1"),
        ({"options": {"index": [1]}}, "options.index"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_key_and_what_is_allowed(
    read: Read, change: dict[str, Any], words: str
) -> None:
    read(GOOD)
    with pytest.raises(SettingsError, match=words) as caught:
        read(GOOD | change)
    assert "mine.yml: " in caught.value.message


@pytest.mark.parametrize("key", ["help", "regions", "result", "models"])
def test_what_must_be_there_is_named(read: Read, key: str) -> None:
    with pytest.raises(SettingsError, match=f"{key} is missing: "):
        read({name: value for name, value in GOOD.items() if name != key})


@pytest.mark.parametrize("name", ["Mine", "a b", "gallery", "embeddings", "v1", "x" * 41, "ä"])
def test_names_that_no_kind_may_have(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.yml"
    path.write_text(yaml.safe_dump(GOOD), "utf-8")
    with pytest.raises(SettingsError, match="a pipeline cannot be called"):
        definition.read(path)


@pytest.mark.parametrize("text", ["", "- a\n", "text", "a: [", "help: " + "x" * 70_000])
def test_what_is_no_definition(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(text, "utf-8")
    with pytest.raises(SettingsError, match="mine"):
        definition.read(path)
    with pytest.raises(SettingsError, match="Cannot read the pipeline"):
        definition.read(tmp_path / "none.yml")


def test_each_combination_has_an_answer_or_is_refused(read: Read) -> None:
    made = 0
    for regions in REGIONS:
        for name, result in RESULTS.items():
            models = {"detector": "a"} if "boxes" in regions else {}
            models |= {result.models[0]: "b"} if result.models else {}
            content = {"help": "x", "regions": regions, "result": name, "models": models or {"model": "b"}}
            if (result.boxed or regions == "image") and (result.whole or regions == "boxes"):
                entry = read(content)
                assert entry.items in {each.name for each in _fields(entry)}
                made += 1
            else:
                with pytest.raises(SettingsError):
                    read(content)
    assert made == 8


def _fields(entry: ServiceEntry) -> Any:
    import dataclasses

    return dataclasses.fields(entry.answer_type())


def test_a_set_of_models_has_a_name(tmp_path: Path) -> None:
    recognition = SERVICES["recognition"]

    def models(flags: dict[str, str], environ: dict[str, str] | None = None, config: Any = None) -> list[str]:
        return [each.model for each in recognition.settings(flags, environ or {}, config).models.values()]

    usual = models({})
    assert models({"model": "PP-ShiTuV2"}) == ["PP-ShiTuV2_det", "PP-ShiTuV2_rec"]
    assert models({}, {"PDSERVE_MODEL": "PP-ShiTuV2"}) == ["PP-ShiTuV2_det", "PP-ShiTuV2_rec"]
    assert models({"model": "PP-ShiTuV2", "detector": "none"}) == ["PP-ShiTuV2_rec"]
    assert models({"model": "PP-ShiTu"}) == usual
    path = tmp_path / "config.yml"
    path.write_text("http_port: 1\npdserve: {model: PP-ShiTuV2}\n", "utf-8")
    assert models({}, config=path) == ["PP-ShiTuV2_det", "PP-ShiTuV2_rec"]
    assert models({"embedder": "mine"}, config=path) == ["PP-ShiTuV2_det", "mine"]
    path.write_text(
        "http_port: 1\npdserve: {model: PP-ShiTuV2}\nop: {rec: {local_service_conf: {model_config: mine}}}\n"
    )
    assert models({}, config=path) == ["PP-ShiTuV2_det", "mine"]
    with pytest.raises(
        SettingsError, match="--model: recognition has no set of models 'ResNet50'; known are PP-ShiTu, PP-"
    ):
        models({"model": "ResNet50"})
    vehicle = SERVICES["attributes"].settings({"model": "vehicle"}, {})
    assert [each.model for each in vehicle.models.values()] == [
        "PP-YOLOE-S_vehicle", "PP-LCNet_x1_0_vehicle_attribute",
    ]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PDSERVE_HOME", str(tmp_path))
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "colours.yml").write_text(OWN, "utf-8")
    (tmp_path / "pipelines" / "broken.yml").write_text("help: x\nregions: boxes\nresult: squares\n", "utf-8")
    (tmp_path / "pipelines" / "face.yml").write_text(OWN, "utf-8")
    return tmp_path


def test_the_table_has_the_users_kinds_and_says_which_files_are_wrong(home: Path) -> None:
    table = Services()
    assert list(table) == [*(kind for kind in SERVICES if SERVICES[kind].built_in), "colours"]
    assert table["colours"].name == "colour_service"
    assert "nothing" not in table
    with pytest.raises(KeyError):
        table["nothing"]
    assert "broken" in table
    with pytest.raises(SettingsError, match=r"broken.yml: result is 'squares'"):
        table["broken"]
    assert table["face"].http_port == 18085  # pdserve's own stays
    assert {path.name for path in table.broken()} == {"broken.yml", "face.yml"}
    path = home / "elsewhere.yml"
    path.write_text(OWN, "utf-8")
    assert table[str(path)].kind == "elsewhere"
    assert table["elsewhere"].path == path
    other = home / "colours.yml"
    other.write_text(OWN, "utf-8")
    with pytest.raises(SettingsError, match="there is a service colours already"):
        table[str(other)]


def test_a_broken_file_is_told_where_it_matters_and_breaks_nothing_else(home: Path) -> None:
    shown = pdserve(home, "serve", "--help", COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    assert "colours" in shown.stdout
    assert "broken.yml: result is 'squares'" in shown.stdout
    refused = pdserve(home, "serve", "broken")
    assert refused.returncode == 2
    assert "broken.yml: result is 'squares'" in refused.stderr
    own = pdserve(home, "serve", str(home / "pipelines" / "colours.yml"), "--help", COLUMNS="200")
    assert "Colours: what a detector finds" in own.stdout
    assert "--classifier" in own.stdout
    unknown = pdserve(home, "predict", "--service", "nothing", "a.jpg", COLUMNS="200")
    assert "colours" in unknown.stderr
    doctor = pdserve(home, "doctor", "--json")
    assert '"pipeline"' in doctor.stdout
    assert "squares" in doctor.stdout
