"""Records of JSON and Parquet: their texts, and what is said of those that have none."""

import datetime
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from transnormer_jax.data.bad_records import BadRecord, InvalidBytes
from transnormer_jax.data.find_files import find_files
from transnormer_jax.data.text_files import read_documents, read_items
from transnormer_jax.errors import UserError

RECORDS = [
    {"text": "first\nline", "id": 1},
    {"text": " ", "id": 2},
    {"id": 3, "text": "Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"},
]


def write_records(path):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
        return
    with {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in RECORDS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.b.jsonl.xz", "a.parquet"])
def test_records_are_documents(tmp_path, name):
    write_records(tmp_path / name)
    assert find_files(str(tmp_path)).files == (str((tmp_path / name).resolve()),)
    assert list(read_documents(tmp_path / name, "file")) == ["first\nline", RECORDS[2]["text"]]
    with pytest.raises(UserError, match=r"has no (field|column) 'body': choose one of: id, text"):
        list(read_documents(tmp_path / name, "file", "body"))


def test_a_record_cut_short_is_the_users_error_after_those_before_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "whole"}\n{"text": "cut o')
    documents = read_documents(tmp_path / "a.jsonl", "file")
    assert next(documents) == "whole"
    with pytest.raises(UserError, match=r"a\.jsonl', line 2: it is not JSON \(Unterminated string"):
        next(documents)
    write_records(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet.*: replace it"):
        list(read_documents(tmp_path / "a.parquet", "file"))


def test_a_field_without_text_is_the_users_error(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": null}\n{"text": ["a"]}\n')
    with pytest.raises(UserError, match="line 2: the field 'text' holds an array, not text"):
        list(read_documents(file, "file"))


GOOD = '{"text": "good"}\n'
DEEP = "[" * 50_000 + "]" * 50_000
BAD = {
    '{"text": ': "it is not JSON (Expecting value, column 10)",
    "[1, 2]": "it is an array, not an object with a field 'text'",
    '"text"': "it is a string, not an object with a field 'text'",
    "null": "it is null, not an object with a field 'text'",
    "{}": "it has no field 'text'; it is empty",
    '{"txt": "a"}': "it has no field 'text': did you mean 'txt'?",
    '{"text": 5}': "the field 'text' holds a number, not text",
    f'{{"text": "a", "x": {DEEP}}}': "it is nested too deeply",
    f'{{"text": "a", "x": {"9" * 5000}}}': "it holds a number of more than 4,300 digits",
}


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize(("name", "opened"), [("a.jsonl", open), ("a.ndjson.gz", gzip.open), ("a.json", open)])
def test_a_bad_line_is_named_by_its_number_and_the_others_are_read(tmp_path, name, opened, bad):
    with opened(tmp_path / name, "wt", encoding="utf-8-sig") as file:
        file.write(f"\r\n{GOOD} \n{bad}\n{GOOD}")
    good, problem, again = read_items(tmp_path / name, "file")
    assert good == again == "good"
    assert str(problem).startswith(f"'{tmp_path / name}', line 4: {BAD[bad]}")
    with pytest.raises(UserError, match=rf"{name}', line 4: .*\. Correct or delete this line\.$"):
        list(read_documents(tmp_path / name, "file"))


@pytest.mark.parametrize("start", [1, 40, 120, 200])
def test_lines_are_counted_from_the_beginning_of_the_file(tmp_path, start):
    (tmp_path / "a.jsonl").write_text(GOOD * 5 + "\n" + GOOD * 5 + "broken\n" + GOOD * 3 + "broken too")
    problems = [one for one in read_items(tmp_path / "a.jsonl", "file", start=start) if isinstance(one, BadRecord)]
    expected = [12, 16] if start < 200 else [16]
    assert [str(one).split(":")[0] for one in problems] == [f"'{tmp_path}/a.jsonl', line {n}" for n in expected]


@pytest.mark.parametrize(("before", "indent"), [("", None), ("\ufeff\r\n ", 2)])
def test_an_array_of_records(tmp_path, before, indent):
    path = tmp_path / "alpaca.json"
    path.write_text(before + json.dumps([{"text": "one"}, {"body": "x"}, {"text": "two"}], indent=indent) + "\n")
    one, problem, two = read_items(path, "file")
    assert (one, two) == ("one", "two")
    assert str(problem) == f"'{path}', record 2: it has no field 'text': choose one of: body"
    path.write_text("[]")
    assert list(read_documents(path, "file")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "one"},\n{"text": "tw', "record 2 of its array in line 2: it is not JSON"),
        ('[{"text": "one"} {"text": "two"}]', "neither a comma nor the end of its array follows record 1"),
        ('[{"text": "one"}]\n[{"text": "two"}]', "there is more text behind its array"),
        (f'[{{"text": "one"}}, {DEEP}]', "record 2 of its array: it is nested too deeply"),
    ],
    ids=range(4),
)
def test_a_damaged_array_is_never_a_shorter_corpus(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"cannot read .*a\.json' \({message}"):
        list(read_items(tmp_path / "a.json", "file"))


LATE = pyarrow.array([2**58, 2**58], pyarrow.timestamp("us"))  # of the year 11104


@pytest.mark.parametrize("text", ["[", '[{"text": "one"}', '[{"text": "one"},\n'])
def test_an_array_without_an_end_ends_too_early(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot read .*a\.json', which ends too early"):
        list(read_items(tmp_path / "a.json", "file"))


def test_only_the_needed_columns_of_parquet_are_read(tmp_path):
    with pytest.raises((ValueError, OverflowError)):
        LATE.to_pylist()
    texts = pyarrow.table({"when": LATE, "text": ["one", "two"]})
    pyarrow.parquet.write_table(texts, tmp_path / "a.parquet")
    assert list(read_documents(tmp_path / "a.parquet", "file")) == ["one", "two"]
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    talks = pyarrow.table({"when": LATE, "messages": [talk, talk]})
    pyarrow.parquet.write_table(talks, tmp_path / "b.parquet")
    assert [json.loads(text)["messages"] for text in read_documents(tmp_path / "b.parquet", "conversation")] == [
        *(talk, talk)
    ]


def test_bad_rows_of_parquet_have_numbers(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"ok", b"\xff"]}), path)
    first, _ = read_items(path, "file")
    assert str(first) == f"'{path}', record 1: the field 'text' holds bytes, not text"
    pyarrow.parquet.write_table(pyarrow.table({"when": [datetime.datetime.now()]}), path)
    with pytest.raises(UserError, match=r"a\.parquet' has no column 'messages' or .*: choose one of: when"):
        list(read_items(path, "conversation"))


def test_parquet_cut_short_ends_too_early(tmp_path):
    write_records(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.parquet', which ends too early"):
        list(read_documents(tmp_path / "a.parquet", "file"))


def test_malformed_conversations_are_bad_records(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [
        {"messages": 5},
        {"messages": [{"role": "user"}]},
        [],
        None,
        {"prompt": {}, "response": 7},
        {"text": "x"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    problems = list(read_items(path, "conversation"))
    assert [str(one).split(": ")[0] for one in problems] == [f"'{path}', line {i + 1}" for i in range(len(records))]


def test_bytes_that_are_not_utf_8_are_told_with_their_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\nb\xffd\nU+FFFD \xef\xbf\xbd\n")
    assert list(read_items(path, "line")) == ["good", "b\ufffdd", InvalidBytes(str(path)), "U+FFFD \ufffd"]
    for mode in ("file", "paragraph", "chunk", "delimited"):
        assert [isinstance(item, InvalidBytes) for item in read_items(path, mode)] == [False, True]


def test_files_with_a_byte_order_mark_may_be_put_together(tmp_path):
    part = b'\xef\xbb\xbf{"text": "one"}\r\n'
    (tmp_path / "a.jsonl").write_bytes(part + part)
    assert list(read_documents(tmp_path / "a.jsonl", "file")) == ["one", "one"]
