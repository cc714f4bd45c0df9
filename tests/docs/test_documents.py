"""README and docs: the commands they show exist, and migrating.md explains all keys of a config.yml."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from pdserve import config_yml
from pdserve.commands.table import LazyCommand, app
from pdserve.models import catalog
from tests.docs.blocks import PAGES, ROOT

DOCUMENTS = [page for page in PAGES if page.stat().st_size]
MIGRATING = (ROOT / "docs" / "migrating.md").read_text("utf-8")


def commands() -> Iterator[tuple[str, str]]:
    """(document, command line) of everything that is shown as typed, in a block or between backticks."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for line in (*lines, *re.findall(r"`(pdserve [^`\n]+)`", prose)):
            if match := re.search(r"(?:^|[|=\w/] )(pdserve \w.*)", line):
                yield document.name, match[1]


def words_of(line: str) -> list[str]:
    """Its words, without a comment, a redirection, a pipe or an &."""
    words = shlex.split(line.replace("…", ""), comments=True)
    ends = (i for i, word in enumerate(words) if word in ("|", "&") or re.match(r"\d?>", word))
    return words[1 : next(ends, len(words))]


@pytest.mark.parametrize(("document", "line"), list(commands()), ids=str)
def test_a_command_that_is_shown_exists(document: str, line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = words_of(line)
    while hasattr(command, "commands") and words:
        if words[0] == "--help":  # of a group
            return
        if "NAME..." in command.commands and (words[0] == "A" or words[0].startswith("--")):
            command = command.commands["NAME..."]  # several services: `serve A B`, `serve --config FILE`
            break
        name = words.pop(0)
        # Several in one line, as in build|append|remove; one's own kind of service, by its name or file.
        if "|" in name or name in ("KIND", "NAME") or name.endswith(".yml"):
            return
        assert name in command.commands, f"{document}: {line}"
        command = command.commands[name]
        command = command.load() if isinstance(command, LazyCommand) else command
    known = {"--help", *(option for each in command.params for option in (*each.opts, *each.secondary_opts))}
    for word in words:
        option = word.partition("=")[0].replace("_", "-")
        if option.startswith("--"):
            assert option in known, f"{document}: {line}"


def keys_of(schema: Any) -> set[str]:
    return {field.alias or name for name, field in schema.model_fields.items()}


@pytest.mark.parametrize(
    "schema",
    [config_yml.ConfigFile, config_yml.DagConf, config_yml.OpConf, config_yml.LocalServiceConf],
    ids=lambda schema: schema.__name__,
)
def test_every_key_of_the_configuration_is_explained(schema: Any) -> None:
    table = MIGRATING.partition("## Each key of config.yml")[2].partition("\n## ")[0]
    explained = {key.split(".")[-1] for key in re.findall(r"`([\w.<>]+):?", table)}
    assert keys_of(schema) - {"dag", "op", "local_service_conf"} <= explained


def test_the_address_to_clone_is_the_projects() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert f"git clone {urls['Repository']}\n" in (ROOT / "README.md").read_text("utf-8")


def test_the_number_of_names_is_the_catalogs() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    numbers = re.findall(r"(?:download|shows|catalog of) (\d{3,})", text)
    assert len(numbers) == 3
    assert {int(number) for number in numbers} == {len(catalog.load())}
