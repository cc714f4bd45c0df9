"""The configuration files: byte for byte the published ones, aliases, and files that are none."""

import random
import time
from pathlib import Path

import pytest

from pdserve.errors import AliasError, ModelError
from pdserve.formats import prototxt
from pdserve.formats.prototxt import ModelConfig, Variable
from tests.conftest import DATA, GOLDEN

PUBLISHED = [*(GOLDEN / "convert").iterdir(), *(DATA / "programs/published").iterdir()]
DETECTOR = GOLDEN / "convert/picodet_PPLCNet_x2_5_mainbody_lite_v1.0"


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_files_come_back_byte_for_byte(folder: Path) -> None:
    for text, stream in (
        (prototxt.SERVER_TEXT, prototxt.SERVER_STREAM),
        (prototxt.CLIENT_TEXT, prototxt.CLIENT_STREAM),
    ):
        config = prototxt.read(folder / text)
        assert config == prototxt.read(folder / stream)
        assert prototxt.dump_text(config).encode() == (folder / text).read_bytes()
        assert prototxt.dump_stream(config) == (folder / stream).read_bytes()


def test_what_a_file_says() -> None:
    config = prototxt.read(DETECTOR / prototxt.SERVER_TEXT)
    assert config.feeds == (
        Variable("image", "image", "float32", (3, 640, 640)),
        Variable("scale_factor", "scale_factor", "float32", (1, 2)),
    )
    assert [(v.name, v.dtype, v.shape) for v in config.fetches] == [
        ("save_infer_model/scale_0.tmp_0", "float32", (6,)),
        ("save_infer_model/scale_1.tmp_0", "int32", ()),
    ]
    odd = prototxt.read(DATA / "programs/published/odd" / prototxt.CLIENT_STREAM)
    assert odd.feeds[1] == Variable("words", "words", "int64", (-1,), lod=True)


def test_aliases_by_name_and_by_present_alias() -> None:
    config = prototxt.read(DETECTOR / prototxt.SERVER_TEXT)
    once = config.with_aliases({"image": "inputs"}, {"save_infer_model/scale_0.tmp_0": "boxes"})
    assert [v.alias for v in once.feeds] == ["inputs", "scale_factor"]
    assert [v.alias for v in once.fetches] == ["boxes", "save_infer_model/scale_1.tmp_0"]
    twice = once.with_aliases({"inputs": "x"}, {})
    assert [(v.name, v.alias) for v in twice.feeds] == [("image", "x"), ("scale_factor", "scale_factor")]
    swapped = config.with_aliases({"image": "scale_factor", "scale_factor": "image"}, {})
    assert [v.alias for v in swapped.feeds] == ["scale_factor", "image"]
    assert config.with_aliases({}, {}) == config


def test_a_wrong_alias_lists_those_that_exist() -> None:
    config = prototxt.read(DETECTOR / prototxt.SERVER_TEXT).with_aliases({"image": "inputs"}, {})
    with pytest.raises(AliasError, match=r"no feed 'x'; its feeds are: image \(alias inputs\), scale_factor"):
        config.with_aliases({"x": "y"}, {})
    with pytest.raises(
        AliasError, match=r"no fetch 'image'; its fetche?s are: save_infer_model/scale_0\.tmp_0"
    ):
        config.with_aliases({}, {"image": "y"})
    with pytest.raises(AliasError, match="empty"):
        config.with_aliases({"image": ""}, {})
    with pytest.raises(AliasError, match="Two feeds would be called 'scale_factor'"):
        config.with_aliases({"image": "scale_factor"}, {})


def test_names_that_need_escaping_survive() -> None:
    config = ModelConfig(
        (Variable('a"b\\c', "größe", "bfloat16", (1, 2)),), (Variable("输出", "輸出", "bool", (), lod=True),)
    )
    assert prototxt.parse_text(prototxt.dump_text(config)) == config
    assert prototxt.parse_stream(prototxt.dump_stream(config)) == config


def test_a_hand_written_file_without_aliases() -> None:
    config = prototxt.parse_text('feed_var { name: "x" feed_type: 1 shape: 3 }')
    assert config == ModelConfig((Variable("x", "x", "float32", (3,)),), ())


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Cannot read"):
        prototxt.read(tmp_path / "absent.prototxt")
    for name, data, match in (
        ("a.prototxt", b"feed_var {\n  nome: 1\n}", r"a\.prototxt is no serving configuration: 2:\d+.*nome"),
        ("a.prototxt", b"\xff\xfe", "is not text"),
        ("a.prototxt", b"feed_var { name: 'x' feed_type: 77 }", "'x' the unknown type 77"),
        ("a.stream.prototxt", b"feed_var {}", "is no serving configuration"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError, match=match):
            prototxt.read(tmp_path / name)


@pytest.mark.full
@pytest.mark.parametrize("name", [prototxt.SERVER_TEXT, prototxt.SERVER_STREAM])
def test_no_damage_gives_anything_but_a_model_error(tmp_path: Path, name: str) -> None:
    data = (DETECTOR / name).read_bytes()
    path = tmp_path / name
    refused = 0
    for seed in range(1000):
        chance = random.Random(seed)
        changed = bytearray(data)
        for _ in range(chance.choice((1, 2, 8))):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed[: chance.randrange(len(changed)) if seed % 4 == 0 else None])
        try:
            prototxt.read(path)
        except ModelError:
            refused += 1
    assert 300 < refused < 1000


def test_a_name_that_is_no_text_is_refused() -> None:
    data = (DETECTOR / prototxt.SERVER_STREAM).read_bytes().replace(b"image", b"im\xffge")
    with pytest.raises(ModelError):
        prototxt.parse_stream(data)


def test_an_escape_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no serving configuration: 2:22"):
        prototxt.parse_text('# a \\comment\nfeed_var { name: "\\\\ \\ x" }')


def test_escapes_and_what_only_looks_like_one() -> None:
    text = "feed_var { name: \"\\\\d\\x41\\101\\\"\" alias_name: '\\t' } # it's a \\d"
    (feed,) = prototxt.parse_text(text).feeds
    assert (feed.name, feed.alias) == ('\\dAA"', "\t")


def test_two_variables_swap_their_aliases() -> None:
    config = prototxt.ModelConfig(
        (prototxt.Variable("a", "b", "float32", (1,)), prototxt.Variable("b", "a", "float32", (1,))), ()
    )
    assert [v.alias for v in config.with_aliases({"a": "a", "b": "b"}, {}).feeds] == ["a", "b"]


def test_a_file_edited_by_hand(tmp_path: Path) -> None:
    """With a byte order mark, as Windows' editors write it, and with free dimensions as -1."""
    path = tmp_path / prototxt.SERVER_TEXT
    text = (DETECTOR / prototxt.SERVER_TEXT).read_text("utf-8")
    path.write_text("\ufeff" + text.replace("shape: 3\n", "shape: -1\n  shape: 3\n"), "utf-8")
    assert "shape: -1" in path.read_text("utf-8")
    assert prototxt.read(path) == prototxt.read(DETECTOR / prototxt.SERVER_TEXT)


def test_quotes_without_an_end_take_no_square_of_time() -> None:
    started = time.process_time()
    for text in ('\\"' * 100_000, "\\'" * 100_000, '"' + "x" * 200_000):
        with pytest.raises(ModelError):
            prototxt.parse_text(text)
    assert time.process_time() - started < 5  # minutes, when the end was looked for at each


def test_size_and_number_of_variables_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "serving_server_conf.prototxt"
    path.write_text("#" * (prototxt.MAX_BYTES + 1), "utf-8")
    with pytest.raises(ModelError, match="it has more than 256 KiB"):
        prototxt.read(path)
    path.write_text('feed_var {name: "x"}\n' * 1001, "utf-8")
    with pytest.raises(ModelError, match="has more than 1000 feeds or fetches"):
        prototxt.read(path)
