"""Converting: byte for byte as the published converter, complete or not at all; patching aliases."""

import errno
import os
import shutil
import stat
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pdserve.convert import convert, patch_aliases, read_configs
from pdserve.errors import AliasError, DiskError, ModelError, UsageError
from pdserve.formats import prototxt
from pdserve.formats.model_files import find_model_files, read_program
from pdserve.formats.serving_model import NOTE, open_serving_model
from pdserve_zoo.program_builder import ProgramBuilder
from tests.conftest import DATA, GOLDEN

PROGRAMS = DATA / "programs"
PDMODEL = PROGRAMS / "two_heads/pdmodel"
PIR = PROGRAMS / "two_heads/pir"
SEPARATE = PROGRAMS / "two_heads/separate"

ARCHIVES = {
    "ResNet50_vd": "dygraph/inference/ResNet50_vd_infer.tar",
    "general_PPLCNet_x2_5_lite_v1.0": "dygraph/rec/models/inference/general_PPLCNet_x2_5_lite_v1.0_infer.tar",
    "picodet_PPLCNet_x2_5_mainbody_lite_v1.0": (
        "dygraph/rec/models/inference/picodet_PPLCNet_x2_5_mainbody_lite_v1.0_infer.tar"
    ),
}

SERVER_FILES = (prototxt.SERVER_TEXT, prototxt.SERVER_STREAM)
CLIENT_FILES = (prototxt.CLIENT_TEXT, prototxt.CLIENT_STREAM)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_published(server: Path, client: Path, published: Path) -> None:
    for folder, names in ((server, SERVER_FILES), (client, CLIENT_FILES)):
        for name in names:
            assert (folder / name).read_bytes() == (published / name).read_bytes(), name


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder to convert into; afterwards nothing temporary may be left in it."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder
    assert list(folder.rglob("*.tmp")) == []


@pytest.mark.parametrize(
    ("source", "published"),
    [("two_heads/pdmodel", "two_heads"), ("two_heads/separate", "two_heads"), ("odd", "odd")],
)
def test_small_models_as_the_published_converter_writes_them(out: Path, source: str, published: str) -> None:
    convert(PROGRAMS / source, out / "server", out / "client")
    assert_published(out / "server", out / "client", PROGRAMS / "published" / published)


@pytest.mark.mirror
@pytest.mark.parametrize("name", ARCHIVES)
def test_public_models_as_the_published_converter_writes_them(out: Path, mirror: Path, name: str) -> None:
    with tarfile.open(mirror / ARCHIVES[name]) as archive:
        for member in archive.getmembers():
            member.name = Path(member.name).name  # they come in a folder
            if member.isfile() and member.name:
                archive.extract(member, out / "infer")
    convert(out / "infer", out / "server", out / "client", name=name)
    assert_published(out / "server", out / "client", GOLDEN / "convert" / name)


def test_what_a_serving_folder_holds(out: Path) -> None:
    source = out / "infer"
    shutil.copytree(PDMODEL, source)
    (source / "inference.yml").write_text("Global: {}\n")
    (source / "inference.pdiparams.info").write_text("not needed")
    serving = convert(source, out / "server", out / "client", name="TwoHeads")
    expected = {"inference.pdmodel", "inference.pdiparams", "inference.yml", NOTE, *SERVER_FILES}
    assert contents(out / "server").keys() == expected
    assert contents(out / "client").keys() == set(CLIENT_FILES)
    assert serving.name == "TwoHeads"
    assert serving.inference_yml == out / "server/inference.yml"
    assert serving == open_serving_model(out / "server")
    unnamed = convert(source, out / "Two_serving", out / "client")
    assert unnamed.name == "Two"
    assert unnamed == open_serving_model(out / "Two_serving")
    shutil.rmtree(source)
    assert (out / "server/inference.pdiparams").read_bytes() == (PDMODEL / "inference.pdiparams").read_bytes()


def test_the_source_can_change_afterwards(out: Path) -> None:
    shutil.copytree(PDMODEL, out / "infer")
    convert(out / "infer", out / "server", out / "client")
    with (out / "infer/inference.pdiparams").open("r+b") as file:  # as an exporter does: into the same file
        file.write(b"changed")
    assert (out / "server/inference.pdiparams").read_bytes() == (PDMODEL / "inference.pdiparams").read_bytes()


def test_both_formats_of_paddle_3_make_one_contract(out: Path) -> None:
    aliases = {"fetch_name_0": "prediction", "fetch_name_1": "classes"}
    configs = []
    for source in (PDMODEL, PIR):
        target = out / source.name
        serving = convert(
            source, target / "s", target / "c", feed_aliases={"x": "image"}, fetch_aliases=aliases
        )
        for stream in (target / "s" / prototxt.SERVER_STREAM, target / "c" / prototxt.CLIENT_STREAM):
            assert prototxt.read(stream) == serving.config
        configs.append(serving.config)
    old, new = configs
    assert old.feeds == new.feeds
    assert [v.alias for v in old.feeds] == ["image", "scale"]
    assert [v.alias for v in old.fetches] == ["prediction", "classes"]
    callers_view = [[(v.alias, v.dtype, v.shape, v.lod) for v in c.fetches] for c in configs]
    assert callers_view[0] == callers_view[1]
    # Each keeps the names under which its engine finds the outputs.
    assert [v.name for v in old.fetches] == ["softmax_0.tmp_0", "top_k_v2_0.tmp_1"]
    assert [v.name for v in new.fetches] == ["fetch_name_0", "fetch_name_1"]


def test_an_alias_for_what_is_not_there_lists_what_is(out: Path) -> None:
    with pytest.raises(AliasError, match="no feed 'image'; its feeds are: x, scale"):
        convert(PDMODEL, out / "s", out / "c", feed_aliases={"image": "inputs"})
    with pytest.raises(AliasError, match=r"fetche?s are: softmax_0\.tmp_0, top_k_v2_0\.tmp_1"):
        convert(PDMODEL, out / "s", out / "c", fetch_aliases={"fetch_name_2": "prediction"})
    assert list(out.iterdir()) == []


def test_file_names_that_would_not_be_found_again_become_the_usual_ones(out: Path) -> None:
    for source, model in ((PDMODEL, "inference.pdmodel"), (PIR, "inference.json")):
        folder = out / source.name
        folder.mkdir()
        shutil.copyfile(source / model, folder / "model.bin")
        shutil.copyfile(source / "inference.pdiparams", folder / "weights.bin")
        shutil.copyfile(source / "inference.pdiparams", folder / "weights.old")
        serving = convert(
            folder, out / "s", out / "c", model_filename="model.bin", params_filename="weights.bin"
        )
        assert serving.files.model.name == model
        assert serving.files.params == out / "s/inference.pdiparams"


def test_older_names_are_kept(out: Path) -> None:
    shutil.copytree(PDMODEL, out / "infer")
    (out / "infer/inference.pdmodel").rename(out / "infer/__model__")
    (out / "infer/inference.pdiparams").rename(out / "infer/__params__")
    assert convert(out / "infer", out / "s", out / "c").files == find_model_files(out / "s")
    assert contents(out / "s").keys() == {"__model__", "__params__", *SERVER_FILES}
    serving = convert(SEPARATE, out / "s", out / "c")
    assert serving.files.params is None
    assert {k: v for k, v in contents(out / "s").items() if k not in SERVER_FILES} == contents(SEPARATE)


def test_an_existing_one_is_replaced_whole(out: Path) -> None:
    convert(PDMODEL, out / "s", out / "c", name="old")
    (out / "s/inference.onnx").write_bytes(b"what an engine kept of the old model")
    (out / "s/inference.onnx").chmod(stat.S_IREAD)
    convert(PIR, out / "s", out / "c")
    assert contents(out / "s").keys() == {"inference.json", "inference.pdiparams", *SERVER_FILES}
    assert sorted(p.name for p in out.iterdir()) == ["c", "s"]


def test_a_failure_leaves_the_old_one_and_nothing_else(out: Path) -> None:
    convert(PDMODEL, out / "s", out / "c", name="old")
    before = contents(out)
    broken = out.parent / "infer"
    shutil.copytree(PIR, broken)
    with (broken / "inference.pdiparams").open("r+b") as file:
        file.truncate(700)
    with pytest.raises(
        ModelError, match=r"inference\.pdiparams does not hold the parameters of inference\.json"
    ):
        convert(broken, out / "s", out / "c")
    with pytest.raises(AliasError):
        convert(PIR, out / "s", out / "c", feed_aliases={"nobody": "x"})
    (out / "file").write_text("in the way")
    with pytest.raises((UsageError, DiskError)):
        convert(PIR, out / "s", out / "file/c")
    (out / "file").unlink()
    assert contents(out) == before


def test_both_folders_or_none(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(PDMODEL, out / "s", out / "c", name="old")
    before = contents(out)
    rename = Path.rename
    refused: list[Path] = []

    def refuse_client(self: Path, target: Path) -> Path:
        if target.name == "c" and not refused:  # once, so that the old one can be put back
            refused.append(self)
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_client)
    with pytest.raises(DiskError, match="Permission denied"):
        convert(PIR, out / "s", out / "c")
    assert refused
    assert contents(out) == before


def test_parents_are_made_and_go_again_when_the_disk_is_full(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(PDMODEL, out / "a/b/s", out / "a/d/c")
    assert open_serving_model(out / "a/b/s").config.feeds
    shutil.rmtree(out / "a")
    (out / "c").touch()
    with pytest.raises(UsageError, match="is no folder"):
        convert(PDMODEL, out / "a/b/s", out / "c")

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DiskError, match="No space left"):
        convert(PDMODEL, out / "a/b/s", out / "a/d/c")
    assert [p.name for p in out.iterdir()] == ["c"]


def test_a_read_only_folder(out: Path) -> None:
    convert(PDMODEL, out / "s", out / "c")
    before = contents(out)
    out.chmod(0o500)
    (out / "s").chmod(0o500)
    try:
        if os.access(out, os.W_OK):
            pytest.skip("needs a user and a system that a folder can refuse")
        with pytest.raises(DiskError, match="Permission denied"):
            convert(PIR, out / "s", out / "c")
        with pytest.raises(DiskError, match="Permission denied"):
            patch_aliases([out / "s"], {"x": "image"}, {})
    finally:
        out.chmod(0o700)
        (out / "s").chmod(0o700)
    assert contents(out) == before


def test_folders_that_are_not_replaced(out: Path) -> None:
    home = out / "thesis"
    home.mkdir()
    (home / "chapter.tex").write_text("five years")
    for server, client in ((home, out / "c"), (out / "s", home)):
        with pytest.raises(UsageError, match=r"thesis exists and has no serving_\w+_conf\.prototxt"):
            convert(PDMODEL, server, client)
    assert contents(home) == {"chapter.tex": b"five years"}
    shutil.copytree(PDMODEL, out / "models/infer")
    (out / "models" / prototxt.SERVER_TEXT).touch()
    for target in (out / "models/infer", out / "models"):
        with pytest.raises(UsageError, match="holds the model to convert"):
            convert(out / "models/infer", target, out / "c")
    for client in (out / "s", out / "s/client"):
        with pytest.raises(UsageError, match="overlap"):
            convert(PDMODEL, out / "s", client)
    assert not (out / "s").exists()
    (out / "empty").mkdir()
    assert convert(PDMODEL, out / "empty", out / "c").files.model.is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows renames no folder while another looks into it")
def test_two_at_a_time_leave_a_whole_one(out: Path) -> None:
    convert(PDMODEL, out / "s", out / "c")
    failures: list[BaseException] = []

    def work(source: Path) -> None:
        try:
            for _ in range(5):
                convert(source, out / "s", out / "c")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(source,)) for source in (PDMODEL, PIR, SEPARATE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    kind = open_serving_model(out / "s").files.kind
    assert kind in ("ProgramDesc", "PIR")
    assert sorted(p.name for p in out.iterdir()) == ["c", "s"]


def test_aliases_are_patched_in_server_and_client_text_and_stream(out: Path) -> None:
    convert(PDMODEL, out / "s", out / "c")
    folders = [out / "s", out / "c"]
    patched = patch_aliases(folders, {"x": "image"}, {"softmax_0.tmp_0": "prediction"})
    assert [(f.text, f.disagreement) for f in patched] == [
        (out / "s" / prototxt.SERVER_TEXT, None),
        (out / "c" / prototxt.CLIENT_TEXT, None),
    ]
    for path in (*(out / "s" / n for n in SERVER_FILES), *(out / "c" / n for n in CLIENT_FILES)):
        config = prototxt.read(path)
        assert [v.alias for v in config.feeds] == ["image", "scale"]
        assert [v.alias for v in config.fetches] == ["prediction", "top_k_v2_0.tmp_1"]
    assert read_configs(folders) == patched
    assert patch_aliases([out / "s"], {"image": "x"}, {"prediction": "softmax_0.tmp_0"})
    published = PROGRAMS / "published/two_heads"
    assert (out / "s" / prototxt.SERVER_TEXT).read_bytes() == (published / prototxt.SERVER_TEXT).read_bytes()


def test_every_folder_is_checked_before_any_is_written(out: Path) -> None:
    convert(PDMODEL, out / "s", out / "c")
    convert(PIR, out / "s2", out / "c2")
    before = contents(out)
    with pytest.raises(AliasError, match=r"s2: The model has no fetch 'softmax_0\.tmp_0'.*fetch_name_0"):
        patch_aliases([out / "s", out / "s2"], {}, {"softmax_0.tmp_0": "prediction"})
    with pytest.raises(ModelError, match="nowhere has neither"):
        patch_aliases([out / "s", out / "nowhere"], {"x": "image"}, {})
    assert contents(out) == before


def test_a_failed_write_puts_all_files_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(PDMODEL, out / "s", out / "c")
    before = contents(out)
    replace = Path.replace

    def refuse_last(self: Path, target: Path) -> Path:
        if target.name == prototxt.CLIENT_STREAM:
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse_last)
    with pytest.raises(DiskError, match=r"client_conf\.stream\.prototxt: Permission denied"):
        patch_aliases([out / "s", out / "c"], {"x": "image"}, {})
    assert contents(out) == before


def test_a_text_edited_by_hand_is_believed_and_reported(out: Path) -> None:
    convert(PDMODEL, out / "s", out / "c")
    text, stream = (out / "s" / name for name in SERVER_FILES)
    text.write_bytes(text.read_bytes().replace(b'alias_name: "x"', b'alias_name: "image"'))
    (before,) = read_configs([out / "s"])
    assert before.disagreement == f"in {stream} x is x, not image"
    (after,) = patch_aliases([out / "s"], {}, {"softmax_0.tmp_0": "prediction"})
    assert after.disagreement == before.disagreement
    assert prototxt.read(stream) == prototxt.read(text) == after.config
    assert [v.alias for v in after.config.feeds] == ["image", "scale"]
    stream.unlink()
    assert read_configs([out / "s"])[0].disagreement == f"{stream} is missing"
    shutil.copyfile(PROGRAMS / "published/odd" / stream.name, stream)
    with pytest.raises(ModelError, match="different models"):
        read_configs([out / "s"])


def two_fetches(folder: Path, postprocess: str) -> list[str]:
    """An inference model with one feed, ``x``; the names of its fetches, in the program's order."""
    program = ProgramBuilder()
    pooled = program.global_average_pool(program.feed("x", (-1, 3, 8, 8)))
    first, second = program.softmax(program.linear(pooled, np.eye(3), np.zeros(3))), pooled
    program.fetch(first)
    program.fetch(second)
    folder.mkdir()
    program.write(folder)
    (folder / "inference.yml").write_text(f"PostProcess: {postprocess}\n", "utf-8")
    return [spec.name for spec in read_program(find_model_files(folder)).signature.fetches]


@pytest.mark.parametrize(
    ("postprocess", "feed", "fetch"),
    [
        ("{Topk: {topk: 5}}", "image", "prediction"),
        ("{MultiLabelThreshOutput: {threshold: 0.5}}", "image", "prediction"),
        ("{PersonAttribute: {threshold: 0.5}}", "image", "prediction"),
        ("{NormalizeFeatures: null}", "x", "features"),
        ("null", "x", None),
    ],
)
def test_aliases_follow_from_the_task(out: Path, postprocess: str, feed: str, fetch: str | None) -> None:
    """With no name in any catalog; the first fetch is that of the program's order."""
    first, second = two_fetches(out / "infer", postprocess)
    config = convert(out / "infer", out / "s", out / "c").config
    assert [(v.name, v.alias) for v in config.feeds] == [("x", feed)]
    assert {v.name: v.alias for v in config.fetches} == {first: fetch or first, second: second}
    assert prototxt.read(out / "c" / prototxt.CLIENT_STREAM) == config
    # Opened in place, it has the same.
    assert open_serving_model(out / "infer").config == config


def test_given_aliases_come_before_the_tasks(out: Path) -> None:
    first, second = two_fetches(out / "infer", "{Topk: {topk: 5}}")
    own = convert(out / "infer", out / "s", out / "c", feed_aliases={"x": "pixels"}).config
    assert own.feeds[0].alias == "pixels"
    assert {v.name: v.alias for v in own.fetches} == {first: "prediction", second: second}
    # One that is given to the other fetch is not the first one's too.
    other = convert(out / "infer", out / "s", out / "c", fetch_aliases={"fetch_name_1": "prediction"}).config
    assert {v.name: v.alias for v in other.fetches} == {first: first, second: "prediction"}


def test_several_feeds_keep_their_names(out: Path) -> None:
    shutil.copytree(PDMODEL, out / "infer")
    (out / "infer/inference.yml").write_text("PostProcess: {Topk: {topk: 5}}\n", "utf-8")
    convert(out / "infer", out / "s", out / "c")
    assert_published(out / "s", out / "c", PROGRAMS / "published/two_heads")


def test_the_labels_file_goes_with_the_model(out: Path) -> None:
    shutil.copytree(PDMODEL, out / "infer")
    text = "PostProcess: {Topk: {topk: 5, class_id_map_file: ../../etc/names.txt}}\n"
    (out / "infer/inference.yml").write_text(text, "utf-8")
    convert(out / "infer", out / "s", out / "c")
    assert not (out / "s/names.txt").exists()
    (out / "infer/names.txt").write_text("0 cup\n", "utf-8")
    convert(out / "infer", out / "s", out / "c")
    assert (out / "s/names.txt").read_text("utf-8") == "0 cup\n"
