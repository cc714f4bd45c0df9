"""Converts an inference model to a serving model, and shows and changes the aliases of serving models.

The prototxt files are those of Paddle Serving's converter 0.9.0 byte for byte: feeds in the program's
order, fetches by name, free extents left out, -1 for a tensor with LoD. For PIR, which that converter
never read, fetches keep the program's order (by name, ``fetch_name_10`` would come before ``fetch_name_2``).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from pdserve.errors import AliasError, ModelError, UsageError
from pdserve.files import FileRecord, disk_errors, replace_files, replace_folders
from pdserve.formats import prototxt, text_file
from pdserve.formats.inference_yml import FILES, read_description, task_aliases
from pdserve.formats.model_files import ModelFiles, find_model_files, parameter_files, read_program
from pdserve.formats.parameters import check_parameters
from pdserve.formats.program import Program
from pdserve.formats.prototxt import (
    CLIENT_STREAM,
    CLIENT_TEXT,
    SERVER_STREAM,
    SERVER_TEXT,
    ModelConfig,
)
from pdserve.formats.serving_model import (
    DERIVED,
    MAX_NOTE_BYTES,
    NOTE,
    ServingModel,
    folder_name,
    open_serving_model,
    serving_config,
)

# What people edit in a serving model.
EDITED = (SERVER_TEXT, *FILES)
BEFORE = ".before"
"""What a changed file's name gets that was replaced by a conversion."""
# Beside a model, what a person puts there.
_OWN = (".txt", ".yml", ".yaml", ".md", BEFORE)

_NONE: Mapping[str, str] = MappingProxyType({})


def convert(
    dirname: Path,
    serving_server: Path,
    serving_client: Path,
    *,
    model_filename: str | None = None,
    params_filename: str | None = None,
    feed_aliases: Mapping[str, str] = _NONE,
    fetch_aliases: Mapping[str, str] = _NONE,
    name: str | None = None,
) -> ServingModel:
    """Write a serving model and its client configuration; the source is copied and left alone.

    Aliases are given by the model's names; ``fetch_name_N`` means the N-th fetch in any model, so that
    one call fits both of Paddle 3's formats. Where none is given, the task that the exporter's description
    says decides. ``name`` (the catalog's) is noted beside the model, with the state of the source's files
    and of those that are edited by hand, so that one can see what changed since.
    Both folders appear complete or not at all. Serving folders that exist are replaced, but what was
    published beside the model stays (its int8 form says itself of which model it is), a file that was
    changed by hand stays as FILE.before, and texts that no conversion writes stay as they are.
    Raises ModelError, AliasError, UsageError for folders that must not be replaced, DiskError.
    """
    files = find_model_files(dirname, model_filename, params_filename)
    program = read_program(files)
    description = read_description(dirname)
    names = [[spec.name for spec in side] for side in (program.signature.feeds, program.signature.fetches)]
    feeds, fetches = task_aliases(description.task, *names)
    config = serving_config(files, program).with_aliases(
        _over(feeds, feed_aliases), _over(fetches, _by_name(program, fetch_aliases))
    )
    check_parameters(files, program)
    server, client = serving_server.resolve(), serving_client.resolve()
    for target, text in ((server, SERVER_TEXT), (client, CLIENT_TEXT)):
        with disk_errors(target):
            _check_target(target, text, dirname.resolve())
    if server == client or server in client.parents or client in server.parents:
        raise UsageError(f"{serving_server} and {serving_client} overlap; give two separate folders.")
    with replace_folders(server, client) as (new_server, new_client):
        with disk_errors(serving_server):
            _copy_model(files, program, new_server)
            notes = _notes(dirname, description.label_file)
            for note in notes:
                shutil.copyfile(dirname / note, new_server / note)
            _write_config(new_server / SERVER_TEXT, new_server / SERVER_STREAM, config)
            if name is not None:
                sources = [files.model, *parameter_files(files, program)]
                sources += [dirname / each for each in notes]
                written = [new_server / each for each in EDITED if (new_server / each).is_file()]
                content = {
                    "name": name,
                    "source": {p.relative_to(dirname).as_posix(): asdict(FileRecord.of(p)) for p in sources},
                    "written": {path.name: asdict(FileRecord.of(path)) for path in written},
                }
                (new_server / NOTE).write_text(json.dumps(content) + "\n", "utf-8")
            _keep(server, new_server)
        built = open_serving_model(new_server)
        with disk_errors(serving_client):
            _write_config(new_client / CLIENT_TEXT, new_client / CLIENT_STREAM, config)
            _keep(client, new_client)
    # Not opened again there: another process may be replacing it already.
    params = built.files.params and serving_server / built.files.params.name
    files = ModelFiles(serving_server / built.files.model.name, params, built.files.kind)
    return ServingModel(serving_server, name or folder_name(server), files, config)


def _by_name(program: Program, aliases: Mapping[str, str]) -> dict[str, str]:
    names = [s.name for s in program.signature.fetches]
    places = {f"fetch_name_{i}": name for i, name in enumerate(names)}
    return {key if key in names else places.get(key, key): alias for key, alias in aliases.items()}


def _over(usual: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The task's aliases with those given over them; one that is given to another variable is free."""
    return {key: alias for key, alias in usual.items() if alias not in given.values()} | dict(given)


def _notes(dirname: Path, label_file: str | None) -> list[str]:
    """What the exporter wrote beside its model: descriptions, and the labels that one names."""
    names = [*FILES, *([PurePosixPath(label_file).name] if label_file else [])]
    return [name for name in names if (dirname / name).is_file()]


def _keep(old: Path, new: Path) -> None:
    """Take along what is in the folder that is replaced and no conversion makes again. Raises OSError."""
    if not old.is_dir():
        return
    for path in old.iterdir():
        made = new / path.name
        if path.name == DERIVED:
            for form in filter(Path.is_dir, path.iterdir()):  # the ONNX files are made again
                shutil.copytree(form, made / form.name)
        elif path.suffix in _OWN and path.is_file() and not made.exists():
            shutil.copy2(path, made)
    written = written_files(old)
    for name in (*EDITED, CLIENT_TEXT):
        path, made = old / name, new / name
        by_hand = path.is_file() and not (name in written and written[name].matches(path))
        if by_hand and not (made.is_file() and path.read_bytes() == made.read_bytes()):
            shutil.copy2(path, new / (name + BEFORE))


def written_files(folder: Path) -> dict[str, FileRecord]:
    """The files that people edit as a conversion wrote them, by name; empty where that was not noted."""
    try:
        note = json.loads(text_file.read_text(folder / NOTE, MAX_NOTE_BYTES))
        return {name: FileRecord(**each) for name, each in note["written"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _write_config(text: Path, stream: Path, config: ModelConfig) -> None:
    text.write_bytes(prototxt.dump_text(config).encode())  # bytes: no \r\n on Windows
    stream.write_bytes(prototxt.dump_stream(config))


def _copy_model(files: ModelFiles, program: Program, folder: Path) -> None:
    """Copy a model under the same names, or the standard ones where find_model_files would not know these.

    Copies, not links: exporting again writes into the same file, under a server that reads it.
    """
    model = folder / files.model.name
    shutil.copyfile(files.model, model)
    if files.params is not None:
        shutil.copyfile(files.params, folder / files.params.name)
    else:
        for path in parameter_files(files, program):
            target = folder / path.relative_to(files.model.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    try:
        found = find_model_files(folder)
        known = found.model == model and (found.params is None) == (files.params is None)
    except ModelError:
        known = False
    if not known:
        model.rename(folder / ("inference.json" if files.kind == "PIR" else "inference.pdmodel"))
        if files.params is not None:
            (folder / files.params.name).rename(folder / "inference.pdiparams")


def _check_target(target: Path, text: str, source: Path) -> None:
    """Raise UsageError for a folder that must not be replaced."""
    if target == source or target in source.parents:
        raise UsageError(f"{target} holds the model to convert and would be replaced; choose another folder.")
    try:
        held = {path.name for path in target.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UsageError(f"{target} is no folder; choose another one.") from error
    if held and text not in held:
        raise UsageError(
            f"{target} exists and has no {text}, so it is no serving folder and is not replaced; "
            "choose another folder, or remove it yourself."
        )


@dataclass(frozen=True)
class ConfigFiles:
    """A folder's prototxt pair; ``disagreement`` says how the stream differs from the text."""

    text: Path
    stream: Path
    config: ModelConfig
    disagreement: str | None


def read_configs(dirs: Sequence[Path]) -> list[ConfigFiles]:
    """Read the server's or client's configuration in each folder, or both.

    People edit aliases in the text file alone, as guides say; so the text counts, and a stream with other
    aliases, or none, is a disagreement that patching fixes.
    Raises ModelError for a folder without configuration, and for files that differ in more.
    """
    found: dict[Path, ConfigFiles] = {}
    for folder in dirs:
        pairs = ((SERVER_TEXT, SERVER_STREAM), (CLIENT_TEXT, CLIENT_STREAM))
        present = [(folder / t, folder / s) for t, s in pairs if (folder / t).is_file()]
        if not present:
            raise ModelError(f"{folder} has neither {SERVER_TEXT} nor {CLIENT_TEXT}; name a serving folder.")
        for text, stream in present:
            config = prototxt.read(text)
            found.setdefault(text.resolve(), ConfigFiles(text, stream, config, _disagreement(config, stream)))
    return list(found.values())


def patch_aliases(
    dirs: Sequence[Path], feeds: Mapping[str, str], fetches: Mapping[str, str]
) -> list[ConfigFiles]:
    """Change the aliases of feeds and fetches, known by name or present alias, in text and stream alike.

    Every folder is checked before any file is written, and all files are written or none.
    Returns what read_configs would give now, ``disagreement`` as it was before.
    Raises ModelError, AliasError, DiskError.
    """
    patched = []
    for old in read_configs(dirs):
        try:
            config = old.config.with_aliases(feeds, fetches)
        except AliasError as error:
            raise AliasError(f"{old.text.parent}: {error.message}") from error
        patched.append(ConfigFiles(old.text, old.stream, config, old.disagreement))
    with replace_files(*(path for each in patched for path in (each.text, each.stream))) as new:
        for each, text, stream in zip(patched, new[::2], new[1::2], strict=True):
            with disk_errors(each.text):
                _write_config(text, stream, each.config)
    return patched


def _disagreement(config: ModelConfig, stream: Path) -> str | None:
    if not stream.is_file():
        return f"{stream} is missing"
    other = prototxt.read(stream)
    mine, theirs = (*config.feeds, *config.fetches), (*other.feeds, *other.fetches)
    without = [[(v.name, v.dtype, v.shape, v.lod) for v in side] for side in (mine, theirs)]
    if without[0] != without[1] or len(config.feeds) != len(other.feeds):
        raise ModelError(f"{stream} and the text beside it are of different models; convert the model again.")
    pairs = [f"{a.name} is {b.alias}, not {a.alias}" for a, b in zip(mine, theirs, strict=True) if a != b]
    return f"in {stream} {'; '.join(pairs)}" if pairs else None
