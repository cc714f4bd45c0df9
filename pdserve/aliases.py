"""``pdserve alias``: the aliases in prototxt files that lie in folders, shown and patched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdserve.convert import config_bytes
from pdserve.errors import AliasError, ModelError
from pdserve.files import disk_errors, replace_files
from pdserve.formats import prototxt
from pdserve.formats.prototxt import CLIENT_STREAM, CLIENT_TEXT, SERVER_STREAM, SERVER_TEXT, ModelConfig


@dataclass(frozen=True)
class ConfigFiles:
    """A configuration as a folder keeps it. ``disagreement`` says how the stream differs from the text."""

    text: Path
    stream: Path
    config: ModelConfig
    disagreement: str | None


def read_configs(dirs: Sequence[Path]) -> list[ConfigFiles]:
    """The server's or client's configuration in each folder, or both.

    People edit aliases in the text file alone, as guides tell them to; so the text is believed, and a
    stream with other aliases, or none, is a disagreement that patching mends.
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
    """Give feeds and fetches, known by name or present alias, new aliases in text and stream alike.

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
    contents: dict[Path, bytes] = {}
    for new in patched:
        contents |= {new.text: config_bytes(new.config), new.stream: prototxt.dump_stream(new.config)}
    with replace_files(*contents) as new_files:
        for path, new_file in zip(contents, new_files, strict=True):
            with disk_errors(path):
                new_file.write_bytes(contents[path])
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
