"""Builds pdserve-client from pdserve's source tree: which modules it has follows from their imports.

The modules lie in the folder ``pdserve_client`` of the wheel, which a ``.pth`` file puts at the end of
Python's path: so pdserve and pdserve-client own no file together, pdserve's modules come first where both
are installed, and either can be uninstalled.
"""

import ast
import json
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

HERE = Path(__file__).parent
# In a checkout the tree is beside this folder; an sdist has it in itself.
SOURCE = HERE if (HERE / "pdserve").is_dir() else HERE.parent
PROJECT = SOURCE / ("pdserve.toml" if SOURCE == HERE else "pyproject.toml")

ROOTS = (
    "pdserve.__main__",
    "pdserve.cli",
    "pdserve.clients.grpc",
    "pdserve.clients.http",
    "pdserve.commands.client",
)
"""What people use: all that these import comes too."""
LEFT_OUT = {
    "pdserve.commands.table": "all other commands",
    "pdserve.commands.completion": "completion by the shell",
    "pdserve.pipelines.definition": "a user's own kinds of service",
    "pdserve.pipelines.options": "the settings of services",
    "pdserve.settings": "the settings of services",
    "pdserve.vision.decode": "pictures of answers",
    "pdserve.vision.draw": "pictures of answers",
}
"""Where following the imports ends, and what is not there for that; each is imported when it is used."""
BY_CHOICE = {"filelock", "google", "rich", "yaml"}
"""Other packages that these modules import when they are used, and do without."""
DATA = ("pdserve/py.typed",)


def modules() -> dict[str, Path]:
    """The modules of pdserve-client by name, and their files."""
    found: dict[str, Path] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name in found or name in LEFT_OUT:
            continue
        found[name] = path = _file(name)
        waiting += [each.rpartition(".")[0] for each in (name,) if "." in each]
        waiting += [each for each, _ in imports(path) if each.startswith("pdserve")]
    return dict(sorted(found.items()))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The modules that a module imports, those for types alone not, and whether it does so at once."""
    tree = ast.parse(path.read_text("utf-8"))
    typing = {
        id(each)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for each in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from ((each.name, node in tree.body) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: a relative import"
            yield node.module, node in tree.body
            for each in node.names:
                if _file(name := f"{node.module}.{each.name}").is_file():
                    yield name, node in tree.body


def _file(name: str) -> Path:
    path = SOURCE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def dependencies(project: Mapping[str, Any]) -> list[str]:
    """Of pdserve's own requirements those whose modules these modules import at once."""
    wanted = {
        name.partition(".")[0]
        for path in modules().values()
        for name, at_once in imports(path)
        if at_once and not name.startswith("pdserve")
    }
    wanted -= sys.stdlib_module_names
    named = {"grpcio" if each == "grpc" else each for each in wanted}
    found = [each for each in project["dependencies"] if each.partition(">")[0] in named]
    assert len(found) == len(named), f"{named} are not all among {found}"
    return found


class Metadata(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
        shared = ("version", "requires-python", "license", "classifiers", "urls")
        metadata |= {name: project[name] for name in shared} | {"dependencies": dependencies(project)}


class Build(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._made = tempfile.TemporaryDirectory()
        is_wheel = self.target_name == "wheel"
        files = [*modules().values(), *(SOURCE / each for each in DATA)]
        kinds = sorted((SOURCE / "pdserve" / "pipelines" / "kinds").glob("*.yml"))
        top = "pdserve_client/" if is_wheel else ""
        placed = {str(path): top + path.relative_to(SOURCE).as_posix() for path in files}
        placed[str(SOURCE / "LICENSE")] = f"{top}LICENSE"
        if is_wheel:
            listed = Path(self._made.name) / "kinds.json"
            listed.write_text(
                json.dumps({path.stem: yaml.safe_load(path.read_text("utf-8")) for path in kinds})
            )
            placed[str(listed)] = f"{top}pdserve/pipelines/kinds/kinds.json"
            placed[str(HERE / "pdserve_client.pth")] = "pdserve_client.pth"
        else:
            placed |= {str(path): path.relative_to(SOURCE).as_posix() for path in kinds}
            placed[str(PROJECT)] = "pdserve.toml"
        build_data["force_include"] |= placed

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._made.cleanup()
