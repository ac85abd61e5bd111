"""Tables of tiles: read and written whole, and what is damaged in one does not cost the rest."""

import json
import re

import pytest

from kernels import table, tuning
from kernels.tile import Product, Tile

SOURCE = {"kind": "estimate", "device": "A100", "date": "2026-11-22"}
RECORDS = [
    table.Record("a", Product("forward", "float16", 4096, 64, 64, 9), Tile(128, 64, 32), SOURCE),
    table.Record("b", Product("transpose", "float16", 4096, 64, 64, 9, 1, 4), Tile(96, 48, 16, 8, 2), SOURCE),
    table.Record("c", Product("weight_gradient", "float32", 64, 3, 4096, 49), Tile(64, 64, 16, splits=9), SOURCE),
    table.Record("d", Product("forward", "float16", 512, 1, 1, 9, 64), Tile(64, 32, 1, dot=False), SOURCE),
]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "sm_80.json").write_text(table.dumps("sm_80", RECORDS))
    return tmp_path / "sm_80.json"


def test_what_is_written_is_read(path):
    found = table.read(path, "sm_80")
    assert found.faults == ()
    assert found.records == {record.product.problem_class: record for record in RECORDS}


def test_a_file_is_json_with_a_line_for_each_record_in_order(path):
    text = path.read_text()
    path.write_text(table.dumps("sm_80", reversed(RECORDS)))
    assert path.read_text() == text
    lines = text.splitlines()
    assert len(lines) == len(RECORDS) + 2 and len(json.loads(text)["records"]) == len(RECORDS)
    assert [json.loads(line.removesuffix(","))["problem"] for line in lines[1:-1]] == ["d", "a", "b", "c"]


def test_a_missing_file_is_an_empty_table(tmp_path):
    assert table.read(tmp_path / "none.json", "sm_80") == table.Table({}, ())


DAMAGES = {
    '"rows": 4096': ('"rows": "many"', "rows must be of type int, got 'many'"),
    '"columns": 64': ('"columns": true', "columns must be of type int, got True"),
    '"m": 128': ('"m": 100', "tile: m must be a power of two >= 16, or for m and n one and a half of one, got 100"),
    '"splits": 1': ('"splits": 2', "tile: splits must be 1, or more in the weight gradient, got 2"),
    '"warps": 4': ('"wraps": 4', "tile lacks warps"),
    '"taps": 9': ('"taps": 9, "colour": 3', "the record has an unknown colour"),
    '"dtype": "float16"': (
        '"dtype": "float8"',
        "dtype must be one of float16, bfloat16, float32, float64, got 'float8'",
    ),
    '"operation": "forward"': ('"operation": "sum"', "operation must be one of forward, .*, got 'sum'"),
    '"kind": "estimate"': ('"kind": "guess"', "source must have a kind, estimate or measured"),
    '"problem": "a", ': ("", "problem must be a text, got None"),
    '"dot": true': ('"dot": false', "tile: dot must be True for groups of this kind, got False"),
    '"k": 32, ': ('"k": 32, ' * 2 + "@", "cut off"),
}


@pytest.mark.parametrize("damaged", DAMAGES)
def test_a_damaged_record_is_named_and_the_rest_kept(path, damaged, monkeypatch):
    instead, message = DAMAGES[damaged]
    lines = path.read_text().splitlines()
    assert damaged in lines[2]
    lines[2] = lines[2].replace(damaged, instead)
    path.write_text("\n".join(lines))
    found = table.read(path, "sm_80")
    assert {record.problem for record in found.records.values()} == {"b", "c", "d"}
    (fault,) = found.faults
    assert fault.startswith("record 2")
    assert re.search(message, fault)
    monkeypatch.setattr(table, "TUNED", path.parent)
    tuning._recorded.cache_clear()
    with pytest.warns(UserWarning, match=r"sm_80.json: record 2.*; 3 records are sound, the heuristic") as warned:
        assert tuning._recorded("sm_80") == found.records
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    tuning._recorded.cache_clear()


def test_a_file_that_was_cut_off_keeps_what_is_whole(path):
    path.write_text(path.read_text()[:-300])
    found = table.read(path, "sm_80")
    assert len(found.records) == 3 and found.faults == ("record 4: it is cut off, or no JSON object",)


def test_a_class_counts_once(path):
    text = path.read_text().replace('"rows": 512', '"rows": 600').replace('"problem": "d"', '"problem": "e"')
    line = text.splitlines()[1].replace('"rows": 600', '"rows": 639')
    path.write_text(text.replace("[\n", "[\n" + line + "\n", 1))
    found = table.read(path, "sm_80")
    assert len(found.records) == 4 and "the same class" in found.faults[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2, "target": "sm_80", "records": []}', "it has the format 2, this version reads 1"),
        ('{"records": [{"operation": "forward"}]}', "it has the format 'none', this version reads 1"),
        ('{"format": 1, "target": "sm_90", "records": []}', "it is of target 'sm_90', not 'sm_80'"),
        ("", "it has the format 'none'"),
        ("\0\1", "it has the format 'none'"),
        ("[1, 2]", "it has the format 'none'"),
    ],
)
def test_a_table_of_another_kind_is_empty_and_says_why(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    found = table.read(tmp_path / "t.json", "sm_80")
    assert not found.records and found.faults[0].startswith(message)


def test_bytes_that_are_no_text_are_said_to_be(tmp_path):
    (tmp_path / "t.json").write_bytes(b"\xff\xfe\x80")
    assert table.read(tmp_path / "t.json", "sm_80").faults[0].startswith("it cannot be read")
