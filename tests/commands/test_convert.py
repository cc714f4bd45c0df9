"""``convert`` without a name: what is converted, what stays, what is said."""

import json
from pathlib import Path

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
        "edited: skipped, was fetched again but its serving model was changed (--model NAME converts it), "
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
