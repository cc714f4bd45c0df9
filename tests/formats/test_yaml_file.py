"""YAML from a stranger."""

import time
from pathlib import Path

import pytest

from pdserve.formats import yaml_file
from pdserve.formats.yaml_file import YamlError


def read(folder: Path, text: str | bytes) -> object:
    path = folder / "x.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return yaml_file.read(path)


def test_plain_and_with_aliases(tmp_path: Path) -> None:
    assert read(tmp_path, "a: &x [1, 2.5, é]\nb: *x\nc: {d: null}\n") == {
        "a": [1, 2.5, "é"],
        "b": [1, 2.5, "é"],
        "c": {"d": None},
    }
    assert read(tmp_path, b"\xef\xbb\xbfa: 1\r\n") == {"a": 1}
    assert read(tmp_path, f"a: {2**63}\nb: {-(2**63)}\n") == {"a": 2**63, "b": -(2**63)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "expected"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: 2001-13-45", "month must be in"),
        ("a: !!int ''", "."),
        ("a: !!bool x", "."),
        ("a: !!timestamp x", "."),
        (b"a: \xff", "codec can't decode"),
        (b"a: 1\nb: \xfc", "codec can't decode a byte of line 2; save it as UTF-8$"),
        ("a:\n\tb: 1\n", "line 2, column 1: a tab, perhaps; indent with spaces$"),
        ("a: " + "9" * 5000, "."),
        ("a: 0x" + "f" * 5000, "number of more than 64 bits"),
        (f"a: {2**64}", "number of more than 64 bits"),
        ("[" * 3000, "nested too deeply"),
        ("a: &x {b: *x}", "more than 1000000 values"),
        ("a: &x [" + "*x, " * 3000 + "]", "more than 1000000 values"),
        ("#" * (yaml_file.MAX_BYTES + 1), "more than 4 MiB"),
        ("".join(f"k{i}: 1\n" for i in range(100_000)), "^it has more than 100000 values$"),
        ("[" + "a," * 200_000 + "]", "^it has more than 100000 values$"),
        ("[" + "[]," * 200_000 + "]", "^it has more than 100000 values$"),
        ("a: 1\nb: 2\na: 3\n", "^it has 'a' twice, in line 1 and in line 3; remove one$"),
        ("x: {a: 1, 'a': 2}\n", "^it has 'a' twice, in line 1 and in line 1; remove one$"),
        (
            "a: 1\n".encode("utf-16"),
            r"^it is UTF-16 text, as some Windows programs save it; save.*$",
        ),
        ("a: 1\n".encode("utf-16-le"), "^it is UTF-16 text"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(YamlError, match=words) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_what_is_refused_is_refused_soon(tmp_path: Path) -> None:
    text = "".join(f"k{i}: 1\n" for i in range(400_000))
    started = time.process_time()
    with pytest.raises(YamlError, match="more than 4 MiB"):
        read(tmp_path, text)
    with pytest.raises(YamlError, match="more than 100000 values"):
        read(tmp_path, text[: yaml_file.MAX_BYTES])
    assert time.process_time() - started < 3  # 37 s when all was built


def test_keys_of_other_mappings_and_merges_are_not_twice(tmp_path: Path) -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: [{x: 1}, {x: 2}]\n"
    assert read(tmp_path, text) == {"a": {"x": 1}, "b": {"x": 2}, "c": [{"x": 1}, {"x": 2}]}


def test_aliases_that_stand_for_gigabytes(tmp_path: Path) -> None:
    lines = ["a0: &a0 [" + "lol, " * 9 + "]"]
    lines += [f"a{i}: &a{i} [" + f"*a{i - 1}, " * 9 + "]" for i in range(1, 9)]
    with pytest.raises(YamlError, match="aliases expanded"):
        read(tmp_path, "\n".join(lines))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        yaml_file.read(tmp_path / "none.yml")
