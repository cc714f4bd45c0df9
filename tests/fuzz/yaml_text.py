"""YAML that is altered as a tree, and as text with all that YAML makes of plain words."""

from collections.abc import Sequence
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.mutation import mutated, mutated_tree

# Nine lists, each of nine times the one before: half a billion words from as many bytes as this line has.
_LAUGHS = "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['lol'] * 9)}]\n" for i in range(9)
).encode()

YAML_TOKENS = (
    b"\n" + _LAUGHS + b"op: *a8\n",
    b"\nPreProcess: &x {transform_ops: *x}\n",
    b"\nop: &x\n  a: *x\n",
    b"2001-13-45",
    b"2001-01-01 99:99:99",
    b"!!timestamp x",
    b"!!int ''",
    b"!!int x",
    b"!!float x",
    b"!!bool x",
    b"!!binary '%'",
    b"!!set {a, b}",
    b"!!omap [a, b]",
    b"!!python/object/apply:os.system [x]",
    b"1:2:3:4",
    b"0b2",
    b"0x",
    b"0o9",
    b"9" * 5000,
    b"1e999",
    b".nan",
    b"-.inf",
    b"? {a: b}\n: c\n",
    b"? [a]\n: c\n",
    b"<<: 3\n",
    b"<<: [*x]\n",
    b"[" * 1500,
    b"{a: " * 1500,
    b"- " * 1500,
    b"&",
    b"*",
    b"!",
    b"|",
    b">",
    b"%YAML 9.9\n",
    b"---\n",
    b"=",
    b"\xff",
    b"\xfe\xff",
    b"\0",
    b"\t",
    b"\xc2\x85",
)


def mutated_yaml(seeds: Sequence[Any], odd: Sequence[Any] = ()) -> SearchStrategy[bytes]:
    """YAML whose tree, or whose text, is altered."""
    texts = [yaml.safe_dump(seed, sort_keys=False).encode() for seed in seeds]
    trees = mutated_tree(seeds, odd).map(lambda tree: yaml.safe_dump(tree).encode("utf-8", "surrogatepass"))
    return st.one_of(trees, mutated(texts, YAML_TOKENS))
