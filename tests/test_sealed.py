"""Files that carry their own hash: every bit counts, and JSON is bounded before it is believed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.sealed import json_value, parse_json, parse_toml, read_sealed_json, write_sealed_json

VALUE = {"a": "é", "b": [1.5, None, {"c": True}]}


def test_json_comes_back_and_is_json_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed_json(path, VALUE)
    assert read_sealed_json(path, what="record", remedy="r") == VALUE
    assert json.loads(path.read_text())["b"] == VALUE["b"]


def test_every_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed_json(path, VALUE)
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(len(whole))]
    for place in range(len(whole)):
        damaged += [whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :] for bit in range(8)]
    for data in [*damaged, whole + b"\n"]:
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"damaged record \(.*a\.json"):
            read_sealed_json(path, what="record", remedy="r")
    path.unlink()
    with pytest.raises(InputMissingError):
        read_sealed_json(path, what="record", remedy="r")


def test_a_file_without_a_hash_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": "b" * 200}))
    with pytest.raises(DataError, match="it carries no hash"):
        read_sealed_json(tmp_path / "a.json", what="record", remedy="r")


@pytest.mark.parametrize(
    "text", [".".join("a" * 10**5) + "=1", f"x = {'[' * 5000}", f"x = {'[' * 99}{']' * 99}", "x = 1" + "0" * 9999, "x"]
)
def test_toml_of_others_is_refused_at_once(text: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=r"\w"):
        parse_toml(text)
    assert time.process_time() - started < 2.0
    assert parse_toml(f"a.b.c = [{'0.5, ' * 2000}]")["a"]["b"]["c"][-1] == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        b"\xff",
        '{"a": 1e999}',
        '{"a": NaN}',
        "[" * 10**5,
        f'{{"a": {"[" * 99}{"]" * 99}}}',
        "1" * 9999,
    ],
)
def test_what_is_no_plain_object_is_refused_in_one_line(text: str | bytes) -> None:
    with pytest.raises(DataError, match="damaged x") as caught:
        parse_json(text, name="x", remedy="another")
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", ["[" * 100_000, b'{"a":' * 100_000, f"{'[' * 99}{']' * 99}", "", "nothing"])
def test_json_of_others_fails_in_one_way(data: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"nested|Expecting value"):
        json_value(data)
    assert json_value(b'{"a": [1]}') == {"a": [1]}
