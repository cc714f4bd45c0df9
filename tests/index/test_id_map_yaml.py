"""id_map.yaml: read as PaddleX writes it, event by event, within bounds."""

import time
from pathlib import Path

import pytest
import yaml

from pdserve.errors import IndexFolderError
from pdserve.index import id_map_yaml

REST = "index_type: Flat\nmetric_type: IP\n"


def read(tmp_path: Path, text: str | bytes) -> dict[int, str]:
    path = tmp_path / "id_map.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return id_map_yaml.read(path)


def test_labels_as_they_stand_and_a_name_in_place_of_the_path(tmp_path: Path) -> None:
    text = (
        "id_map:\n  0: cola\n  -5: '007'\n  9000000000000000000: \"no: \\u9ed1\"\n  7: 12\n  8: true\n" + REST
    )
    assert read(tmp_path, text) == {
        0: "paddlex/0\tcola",
        -5: "paddlex/-5\t007",
        9_000_000_000_000_000_000: "paddlex/9000000000000000000\tno: 黑",
        7: "paddlex/7\t12",
        8: "paddlex/8\ttrue",
    }
    assert read(tmp_path, "metric_type: L2\nindex_type: IVF\nid_map: {}\n") == {}


def test_long_labels_that_yaml_folds(tmp_path: Path) -> None:
    label = "a very long label " * 20 + "end"
    made = yaml.dump({"id_map": {3: label}, "index_type": "Flat", "metric_type": "IP"}, allow_unicode=True)
    assert len(made.splitlines()) > 4
    assert read(tmp_path, made) == {3: f"paddlex/3\t{label}"}


def test_what_is_written_is_what_pyyaml_reads(tmp_path: Path) -> None:
    labels = [
        "cola",
        "黑咖啡",
        "007",
        "null",
        "yes: no",
        "a # b",
        "- x",
        "'q'",
        "x" * 400,
        "two  blanks",
        "😀",
        "=",
    ]
    entries = {i * 3: f"{i}.jpg\t{label}" for i, label in enumerate(labels)}
    data = id_map_yaml.dumps(entries, "HNSW32", "L2")
    wanted = {"id_map": {i * 3: label for i, label in enumerate(labels)}}
    assert yaml.full_load(data.decode()) == wanted | {"index_type": "HNSW32", "metric_type": "L2"}
    assert [each.split("\t")[1] for each in read(tmp_path, data).values()] == labels


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no mapping"),
        ("- 1\n", "is no mapping"),
        (REST, "has no id_map"),
        ("id_map: {0: a}\nindex_type: Flat\n", "has no metric_type"),
        ("id_map: {0: a}\nmetric_type: IP\n", "has no index_type"),
        ("id_map: [a]\n" + REST, "an id_map that is no mapping"),
        ("id_map: {x: a}\n" + REST, "the id 'x', which is no whole number of 64 bits"),
        ("id_map: {0x10: a}\n" + REST, "the id '0x10'"),
        (f"id_map: {{{2**63}: a}}\n" + REST, "64 bits"),
        ("id_map: {0: a, 0: b}\n" + REST, "the id 0 twice"),
        ("id_map: {0: [a]}\n" + REST, "no text as the label of 0"),
        ("id_map: {[1]: a}\n" + REST, "an id that is no number"),
        ('id_map: {0: "a\\tb"}\n' + REST, "a label of 0 that is no text of one line"),
        ('id_map: {0: "a\\nb"}\n' + REST, "a label of 0 that is no text of one line"),
        ("id_map: {0: &x a, 1: *x}\n" + REST, "no text as the label of 1"),
        ("id_map: &x {0: a}\nid_map: *x\n" + REST, "'id_map' twice"),
        ("id_map: {0: a}\n" + REST + "metric_type: L2\n", "'metric_type' twice"),
        ("id_map: {0: a}\n" + REST + "---\n{}\n", "more than one document"),
        ("id_map: {0: a}\nindex_type: [Flat]\nmetric_type: IP\n", "no word for 'index_type'"),
        ("id_map: {0: a\n", "is no YAML"),
        (b"id_map: {0: \xff\xfe}\n", "is no YAML"),
        ("id_map: {0: a}\nindex_type: Flat\nmetric_type: hamming\n", "binary vectors .*does not search"),
    ],
    ids=lambda text: repr(text)[:40],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(IndexFolderError, match=words):
        read(tmp_path, text)


def test_nothing_of_it_is_made_an_object(tmp_path: Path) -> None:
    made = tmp_path / "made"
    call = f"!!python/object/apply:os.mkdir ['{made}']"
    text = f"id_map:\n  0: {call}\n"
    with pytest.raises(IndexFolderError, match="no text as the label of 0"):
        read(tmp_path, text + REST)
    assert not made.exists()
    yaml.unsafe_load(text)
    assert made.exists()


def test_the_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "id_map.yaml"
    path.write_text("id_map: {0: a}\n" + REST, "utf-8")
    with pytest.raises(IndexFolderError, match="more than the limit of 20 for an id map"):
        id_map_yaml.read(path, max_bytes=20)


def test_aliases_and_depth_cost_nothing(tmp_path: Path) -> None:
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
    started = time.monotonic()
    for text in ("a0: &a0 [x]\n" + levels, "id_map: " + "[" * 100_000, "id_map: " + "{0: " * 50_000):
        with pytest.raises(IndexFolderError):
            read(tmp_path, text)
    assert time.monotonic() - started < 5
