"""``convert`` without a name: what is converted, what stays, what is said."""

import json
from pathlib import Path

import pytest

from pdserve.convert import patch_aliases, read_configs
from pdserve.errors import UsageError
from pdserve.models.find import convert_fetched
from pdserve.models.home import Home
from tests.running import pdserve
from tests.tiny import build_inference_model

NAMES = ("changed", "edited", "missing", "present")


def test_only_what_is_not_converted_yet_or_was_fetched_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for name in NAMES:
        home.inference_model(name).mkdir(parents=True)
        build_inference_model(home.inference_model(name))
        if name != "missing":
            convert_fetched(name, home)
    for name in ("changed", "edited"):
        with (home.inference_model(name) / "inference.yml").open("a") as file:
            file.write("# fetched again\n")
    for name in ("edited", "present"):
        with (home.serving_model(name) / "inference.yml").open("a") as file:
            file.write("# mine\n")
    before = {name: home.serving_model(name).stat().st_ino for name in NAMES if name != "missing"}

    done = pdserve(tmp_path, "convert")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"changed: converted, {home.serving_model('changed')}",
        "edited: skipped, was fetched again but its serving model was changed (--force converts it, "
        "and keeps changed files as FILE.before), "
        f"{home.serving_model('edited')}",
        f"missing: converted, {home.serving_model('missing')}",
        f"present: skipped, is converted already, {home.serving_model('present')}",
    ]
    assert "# fetched again" in (home.serving_model("changed") / "inference.yml").read_text()
    for name in ("edited", "present"):
        assert home.serving_model(name).stat().st_ino == before[name]

    done = pdserve(tmp_path, "convert", "--force", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["name"], each["action"]) for each in found] == [(name, "converted") for name in NAMES]
    assert "# mine" not in (home.serving_model("edited") / "inference.yml").read_text()
    for each in found:
        mine = each["name"] in ("edited", "present")
        assert each.get("kept") == (["inference.yml.before"] if mine else None)
        kept = home.serving_model(each["name"]) / "inference.yml.before"
        assert kept.is_file() is mine
        assert not mine or kept.read_text().endswith("# mine\n")


def test_a_name_does_not_lose_what_was_published_and_changed(tmp_path: Path) -> None:
    """Its int8 form, aliases, description and texts stay, and with --force what was changed is kept."""
    home = Home(tmp_path)
    home.inference_model("own").mkdir(parents=True)
    build_inference_model(home.inference_model("own"))
    serving = convert_fetched("own", home).path
    published = serving / ".pdserve/int8/report.json"
    published.parent.mkdir(parents=True)
    published.write_text("{}", "utf-8")
    (serving / "mine.txt").write_text("cat\n", "utf-8")
    patch_aliases([serving, home.serving_client("own")], {"x": "picture"}, {})
    before = {path: path.read_bytes() for path in serving.rglob("*") if path.is_file()}

    done = pdserve(tmp_path, "convert", "--model", "own")
    assert done.stdout == f"own: skipped, is converted already, {serving}\n"
    assert {path: path.read_bytes() for path in serving.rglob("*") if path.is_file()} == before

    done = pdserve(tmp_path, "convert", "--model", "own", "--force")
    kept = "serving_server_conf.prototxt.before"
    assert done.stdout == f"own: converted, {serving} (changed by hand and kept: {kept})\n"
    assert 'alias_name: "picture"' in (serving / kept).read_text("utf-8")
    client = home.serving_client("own") / "serving_client_conf.prototxt"
    assert 'alias_name: "picture"' in client.with_name(f"{client.name}.before").read_text("utf-8")
    assert 'alias_name: "image"' in client.read_text("utf-8")
    assert read_configs([serving])[0].config.feeds[0].alias == "image"
    assert (published.read_text("utf-8"), (serving / "mine.txt").read_text("utf-8")) == ("{}", "cat\n")
    again = pdserve(tmp_path, "convert", "--model", "own", "--force")  # what is kept stays kept
    assert again.stdout == done.stdout
    assert 'alias_name: "picture"' in (serving / kept).read_text("utf-8")


@pytest.mark.parametrize("name", ["", "./own", "../own", "own/", ".", ".hidden", "a:b"])
def test_what_is_no_name_converts_nothing(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path)
    home.inference_model("own").mkdir(parents=True)
    build_inference_model(home.inference_model("own"))
    with pytest.raises(UsageError, match="is no name"):
        convert_fetched(name, home)
    assert not home.serving_model("own").exists()
