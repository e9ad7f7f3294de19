"""Files of every kind, and of none."""

import json

import pytest

from finetune.data.files import BadRow, DataFile, RawRow, find_files, read_rows
from localllm.errors import DataError, UsageError

ROW = {"text": "é"}


def rows(path):
    return list(read_rows(DataFile(path, "train")))


def test_jsonl_with_a_byte_order_mark_blank_lines_and_a_bad_one(tmp_path):
    path = tmp_path / "ünï.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n\r\n{oops\r\n[1]\r\n" + json.dumps(ROW).encode()
    )
    read = rows(path)
    assert [row.source for row in read] == [f"ünï.jsonl:{line}" for line in (1, 3, 4, 5)]
    assert [type(row) for row in read] == [RawRow, BadRow, BadRow, RawRow]
    assert read[0].fields == ROW


def test_a_directory_that_cannot_be_read(tmp_path, monkeypatch):
    def closed(_self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", closed)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        find_files([str(tmp_path)])


def test_a_json_list_knows_its_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW, ROW, 3], indent=2))
    assert [(type(row), row.source) for row in rows(path)] == [
        (RawRow, "rows.json:2"), (RawRow, "rows.json:5"), (BadRow, "rows.json:8"),
    ]  # fmt: skip


def test_a_json_list_that_breaks_off_keeps_what_came_before(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "a"},\n {"text": ')
    good, bad = rows(path)
    assert good.fields == {"text": "a"}
    assert "breaks off" in bad.reason


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ('[{"text": "a"},\n{"text": "b"},\n', "its ] is missing", 3),
        ('[{"text": "a"},\n{"text": "b"}]\n[{"text": "c"}]', "more follows", 2),
    ],
)
def test_no_row_of_a_json_file_is_lost_without_a_word(tmp_path, text, reason, line):
    path = tmp_path / "rows.json"
    path.write_text(text)
    *good, bad = rows(path)
    assert [row.fields["text"] for row in good] == ["a", "b"]
    assert reason in bad.reason
    assert bad.source == f"rows.json:{line}"


def test_a_wrong_byte_is_found_where_it_is_in_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = json.dumps({"text": "x" * 88}).encode() + b"\n"
    path.write_bytes(line * 300 + b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=rf"byte {300 * len(line) + 13} \(line 301\) is wrong"):
        rows(path)


def test_a_quotation_mark_that_is_never_closed_is_a_bad_row_and_not_the_rest_of_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\na,"b ""c"""\nd,"e" f\n\ng,"h\ni,j\nk,l\n')
    good, wrong, unclosed = rows(path)
    assert good.fields == {"prompt": "a", "completion": 'b "c"'}
    assert (type(wrong), wrong.source) == (BadRow, "rows.csv:3")
    assert (type(unclosed), unclosed.source) == (BadRow, "rows.csv:5")
    assert "quotation marks" in unclosed.reason


def test_csv(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"two\nlines",b\nx\n')
    good, bad = rows(path)
    assert (good.fields, good.source) == ({"prompt": "two\nlines", "completion": "b"}, "rows.csv:3")
    assert bad.source == "rows.csv:4"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.jsonl", b"GGUF\x03\x00", "a GGUF model"),
        ("a.jsonl", b"%PDF-1.7", "a PDF"),
        ("a.json", b"PK\x03\x04xx", "a ZIP"),
        ("a.json", b'{"a": 1}\n{"a": 2}', "an object where a list"),
        ("a.json", b'"[1, 2]"', "no JSON list"),
        ("a.csv", b'"text\nhello\n', "no first line of names"),
        ("a.jsonl", b'{"text": "\xff\xfe"}', "not UTF-8"),
        ("a.docx", b"hello", "of no known kind"),
        ("a.jsonl", b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        ("a.jsonl", b"\xff\xd8\xff\xe0", "a JPEG picture"),
        ("a.jsonl", b"PAR1xxxxPAR1", "a Parquet file by another name"),
        ("a.parquet", b'{"text": "a"}', "no Parquet file"),
        ("a.parquet", b"GGUF\x03\x00", "a GGUF model"),
        ("a.parquet", b"PAR1xxxx", "is damaged after row 0"),
    ],
)
def test_a_file_of_the_wrong_kind_is_named(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        rows(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1....PAR1")
    with pytest.raises(UsageError, match="pyarrow"):
        rows(path)


def test_a_directory_tells_its_sides_apart(tmp_path):
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}")
    files, notes = find_files([str(tmp_path)])
    assert [(file.path.name, file.part) for file in files] == [("train.jsonl", "train"), ("valid.jsonl", "valid")]
    assert notes == ["test.jsonl is left out: it is for a test afterwards."]


def test_what_a_mac_hides_beside_a_file_is_no_data(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "._train.jsonl").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    files, _ = find_files([str(tmp_path)])
    assert [file.path.name for file in files] == ["train.jsonl"]


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="no file or directory"):
        find_files([str(tmp_path / "none.jsonl")])
    with pytest.raises(DataError, match="holds no data file"):
        find_files([str(tmp_path)])
