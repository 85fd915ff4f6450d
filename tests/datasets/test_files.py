"""Rows from the user's own files, and what is said of bad ones."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_rl.datasets.files import load_items, load_rows
from astra_rl.datasets.rows import MAX_CHARS, Row
from astra_rl.errors import ConfigurationError

WriteFile = Callable[[str, str | bytes], Path]
RECORD: dict[str, Any] = {
    "prompt": "Hello,\n\u201cworld\u201d",
    "id": "greeting",
    "category": "small talk",
    "system": "You are kind.",
    "brief": "Say hello.",
    "split": "test",
}
ROW = Row(
    id="greeting",
    prompt="Hello,\n\u201cworld\u201d",
    category="small talk",
    system="You are kind.",
    brief="Say hello.",
    facts={"secret": "amber"},
    split="test",
)


def message_of(path: Path, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_rows(path, **options)
    return str(caught.value)


# --- what each format says -----------------------------------------------------------------------


def test_a_text_file_has_a_prompt_on_every_line_that_is_not_empty(write: WriteFile) -> None:
    loaded = load_rows(write("mine.txt", "Hello\r\n\n  Gr\u00fc\u00dfe \n"))
    assert loaded.rows == (Row("mine-1", "Hello"), Row("mine-3", "Gr\u00fc\u00dfe"))


def test_a_file_without_an_ending_is_text(write: WriteFile) -> None:
    assert load_rows(write("prompts", "a\rb")).rows == (
        Row("prompts-1", "a"),
        Row("prompts-2", "b"),
    )


def test_unusual_line_separators_are_characters_of_a_prompt(write: WriteFile) -> None:
    for name in ("a.txt", "a.jsonl"):
        content = "a\u2028b\x85c" if name == "a.txt" else '"a\u2028b\x85c"\n'
        assert load_rows(write(name, content)).rows[0].prompt == "a\u2028b\x85c"


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_table_has_the_columns_of_a_row(write: WriteFile, name: str, delimiter: str) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*RECORD, "facts.secret", "ignored"], delimiter=delimiter)
    writer.writeheader()
    writer.writerow({**RECORD, "facts.secret": "amber", "ignored": "x"})
    assert load_rows(write(name, text.getvalue())).rows == (ROW,)


def test_json_lines_hold_objects_or_texts(write: WriteFile) -> None:
    lines = [json.dumps({**RECORD, "facts": {"secret": "amber"}}), "", '"just a prompt"']
    loaded = load_rows(write("a.jsonl", "\n".join(lines)))
    assert loaded.rows == (ROW, Row("a-3", "just a prompt"))


def test_a_json_file_holds_a_list(write: WriteFile) -> None:
    items = [{**RECORD, "facts.secret": "amber"}, "just a prompt"]
    assert load_rows(write("a.json", json.dumps(items))).rows == (ROW, Row("a-2", "just a prompt"))


def test_a_parquet_file_has_columns_and_nested_facts(tmp_path: Path) -> None:
    rows = [
        {**RECORD, "facts": {"secret": "amber"}, "score": 0.5},
        {"prompt": "plain", "facts": {"secret": None}, "score": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert load_rows(tmp_path / "a.parquet").rows == (ROW, Row("a-2", "plain"))


def test_columns_of_other_names_are_named(write: WriteFile) -> None:
    path = write("a.csv", "question,topic,password\nWhat is new?,news,amber\n")
    columns = {"prompt": "question", "category": "topic", "facts.secret": "password"}
    assert load_rows(path, columns=columns).rows == (
        Row("a-2", "What is new?", "news", facts={"secret": "amber"}),
    )


def test_numbers_may_be_ids_and_categories_and_facts(write: WriteFile) -> None:
    path = write("a.jsonl", '{"prompt": "x", "id": 7, "category": 3, "facts": {"pin": 4711}}\n')
    assert load_rows(path).rows == (Row("7", "x", "3", facts={"pin": "4711"}),)


def test_a_system_message_alone_makes_a_row(write: WriteFile) -> None:
    assert load_rows(write("a.jsonl", '{"system": "Keep it."}')).rows[0].system == "Keep it."


@pytest.mark.parametrize("name", ["val", "valid", "dev", "validation"])
def test_other_names_of_the_validation_split_are_understood(write: WriteFile, name: str) -> None:
    row = load_rows(write("a.csv", f"prompt,split\nx,{name}\n")).rows[0]
    assert row.split == "validation"


# --- any text survives ---------------------------------------------------------------------------

SAFE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
PROMPT = SAFE.filter(lambda text: bool(text.strip()))


def loaded_back(name: str, content: bytes) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return [row.prompt for row in load_rows(path).rows]


@settings(deadline=None)
@given(st.lists(PROMPT, min_size=1, max_size=6, unique=True))
def test_any_text_comes_back_from_json_lines(prompts: list[str]) -> None:
    for ascii_only in (True, False):
        lines = [json.dumps({"prompt": text}, ensure_ascii=ascii_only) for text in prompts]
        assert loaded_back("a.jsonl", "\n".join(lines).encode()) == prompts
        assert (
            loaded_back("a.json", json.dumps(prompts, ensure_ascii=ascii_only).encode()) == prompts
        )


@settings(deadline=None)
@given(st.lists(PROMPT, min_size=1, max_size=6, unique=True), st.sampled_from(["a.csv", "a.tsv"]))
def test_any_text_comes_back_from_tables(prompts: list[str], name: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, "excel-tab" if name == "a.tsv" else "excel")
    writer.writerows([["prompt"], *([prompt] for prompt in prompts)])
    assert loaded_back(name, text.getvalue().encode()) == prompts


@settings(deadline=None)
@given(st.lists(PROMPT, min_size=1, max_size=6, unique=True))
def test_any_text_comes_back_from_parquet(prompts: list[str]) -> None:
    file = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": prompts}), file)
    assert loaded_back("a.parquet", file.getvalue().to_pybytes()) == prompts


@settings(deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["txt", "csv", "jsonl", "json", "parquet"]))
def test_any_bytes_are_rows_or_a_named_error(content: bytes, ending: str) -> None:
    message = f"a.{ending}"
    try:
        assert loaded_back(f"a.{ending}", content)
    except ConfigurationError as error:
        message = str(error)
    assert f"a.{ending}" in message


# --- encodings -----------------------------------------------------------------------------------


def test_a_byte_order_mark_is_not_part_of_the_first_column(write: WriteFile) -> None:
    for name, content in (("a.csv", "prompt\nx"), ("a.txt", "x"), ("a.jsonl", '{"prompt": "x"}')):
        assert load_rows(write(name, content.encode("utf-8-sig"))).rows[0].prompt == "x"


def test_every_line_that_is_not_utf8_is_named(write: WriteFile) -> None:
    message = message_of(write("a.txt", b"fine\n\xff\xfe\nfine\ncaf\xe9\n"))
    assert re.search(r"a\.txt: 2 invalid rows, so nothing was loaded", message)
    assert "line 2: not UTF-8" in message
    assert "line 4: not UTF-8" in message


def test_a_utf16_file_is_recognised_and_can_be_read(write: WriteFile) -> None:
    path = write("a.csv", "prompt\nGr\u00fc\u00dfe\n".encode("utf-16"))
    assert "encoding='utf-16'" in message_of(path)
    assert load_rows(path, encoding="utf-16").rows[0].prompt == "Gr\u00fc\u00dfe"


def test_other_encodings_are_asked_for_by_name(write: WriteFile) -> None:
    path = write("a.txt", "caf\u00e9".encode("cp1252"))
    assert load_rows(path, encoding="cp1252").rows[0].prompt == "caf\u00e9"
    assert "unknown" in message_of(path, encoding="latin-99")
    assert "line 1: not ascii" in message_of(path, encoding="ascii")


# --- bad rows ------------------------------------------------------------------------------------


def test_all_bad_rows_are_named_by_line_and_nothing_is_loaded(write: WriteFile) -> None:
    lines = [
        '{"prompt": "good"}',
        '{"prompt": ""}',
        "",
        '{"prompt": "cut off',
        "[1, 2]",
        '{"prompt": 3}',
        '{"text": "other column"}',
        '{"prompt": "a\\u0000b"}',
        '{"prompt": "half \\ud83d"}',
        '{"prompt": "x", "split": "holdout"}',
        '{"prompt": "y", "facts": ["amber"]}',
        "[" * 100_000,
        '{"prompt": "good again"}',
    ]
    message = message_of(write("mine.jsonl", "\n".join(lines)))
    assert message.splitlines()[0].endswith("mine.jsonl: 10 invalid rows, so nothing was loaded.")
    expected = {
        2: "no text in 'prompt'; it is empty",
        4: "not JSON",
        5: "neither an object nor a text",
        6: "prompt is a number; it must be a text",
        7: "no text in 'prompt'; this row has 'text'",
        8: "prompt contains NUL at position 2",
        9: "prompt contains a lone surrogate at position 6",
        10: "split 'holdout' is not one of train, validation, test",
        11: "facts is a list; it must map names to texts",
        12: "not JSON (nested too deeply)",
    }
    for line, (number, reason) in zip(message.splitlines()[1:], expected.items(), strict=True):
        assert line.startswith(f"  line {number}: {reason}")


def test_of_very_many_bad_rows_the_first_are_named(write: WriteFile) -> None:
    message = message_of(write("a.jsonl", "{\n" * 1000))
    assert "1000 invalid rows" in message
    assert message.endswith(
        "line 20: not JSON (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1))\n  and 980 more"
    )


def test_lines_of_a_table_are_counted_as_an_editor_counts_them(write: WriteFile) -> None:
    content = 'prompt,category\n"two\nlines",a\n\nthree,cells,here\n" ",b\nfine,c\n'
    message = message_of(write("a.csv", content))
    assert "line 5: 3 cells, but the header has 2" in message
    assert "line 6: no text in 'prompt'; it is empty" in message
    assert "2 invalid rows" in message


def test_quotes_that_never_end_are_named_where_they_begin(write: WriteFile) -> None:
    message = message_of(write("a.csv", 'prompt\nfine\n"no end\nmore\n'))
    assert "line 3: not CSV (unexpected end of data)" in message


def test_a_prompt_of_a_megabyte_is_refused_unless_the_limit_is_raised(write: WriteFile) -> None:
    long = "x" * 2**20
    for name, content in (
        ("a.txt", f"short\n{long}"),
        ("a.csv", f"prompt\n{long}"),
        ("a.jsonl", f'"short"\n"{long}"'),
    ):
        path = write(name, content)
        message = message_of(path)
        assert f"line 2: prompt has 1,048,576 characters; the maximum is {MAX_CHARS:,}" in message
        assert len(message) < 300
        assert load_rows(path, max_chars=2**20).rows[-1].prompt == long


def test_reading_a_table_leaves_the_limit_of_the_csv_module_alone(write: WriteFile) -> None:
    before = csv.field_size_limit()
    load_rows(write("a.csv", "prompt\n" + "x" * 200_000), max_chars=200_000)
    assert csv.field_size_limit() == before


def test_an_id_may_occur_once(write: WriteFile) -> None:
    message = message_of(write("a.csv", "id,prompt\n1,a\n2,b\n1,c\n"))
    assert "line 4: id '1' is already used by line 2" in message


def test_rows_that_repeat_are_left_out_counted_and_named(
    write: WriteFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="astra_rl")
    loaded = load_rows(write("a.txt", "one\ntwo\none\n\none\n"))
    assert [row.prompt for row in loaded.rows] == ["one", "two"]
    assert loaded.source.repeated == 2
    assert "2 rows repeat earlier ones and are dropped: line 3 (as 1), line 5" in caplog.text


def test_the_same_prompt_with_another_secret_is_another_row(write: WriteFile) -> None:
    path = write("a.csv", "prompt,facts.secret\nHello,amber\nHello,ivory\n")
    assert len(load_rows(path).rows) == 2


# --- bad files -----------------------------------------------------------------------------------


def test_a_missing_column_is_named_once_with_those_there_are(write: WriteFile) -> None:
    path = write("a.csv", "promt,topic\nx,y\nz,w\n")
    message = message_of(path)
    assert "has no column 'prompt'. Did you mean 'promt'? It has: 'promt', 'topic'." in message
    assert "columns={'prompt': NAME}" in message
    assert "no column 'question'" in message_of(path, columns={"prompt": "question"})


def test_a_field_that_rows_do_not_have_is_refused(write: WriteFile) -> None:
    message = message_of(write("a.csv", "prompt\nx\n"), columns={"promt": "prompt"})
    assert "unknown field 'promt'. Did you mean 'prompt'?" in message


def test_two_columns_of_one_name_are_refused(write: WriteFile) -> None:
    assert "two columns are named 'prompt'" in message_of(write("a.csv", "prompt,prompt\nx,y\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "\n \n"), ("a.csv", ""), ("a.csv", "prompt\n"), ("a.jsonl", ""), ("a.json", "[]")],
)
def test_a_file_without_prompts_is_refused(write: WriteFile, name: str, content: str) -> None:
    assert "contains no prompt" in message_of(write(name, content))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.xlsx", "", r"no reader for '\.xlsx' files; use \.txt, \.csv"),
        ("a.jsnl", "", r"Did you mean '\.jsonl'\?"),
        ("a.json", "{", "is not JSON"),
        (
            "a.json",
            '{"prompt": "x"}',
            r"must contain a list of prompts, or a mapping .*use the suffix \.jsonl",
        ),
        ("a.parquet", "no parquet", "cannot be read as Parquet"),
    ],
)
def test_a_file_of_another_kind_is_named(
    write: WriteFile, name: str, content: str, expected: str
) -> None:
    assert re.search(expected, message_of(write(name, content)))


@pytest.mark.parametrize("name", ["none.txt", "no\0name.txt"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the prompts"):
        load_rows(tmp_path / name)


def test_what_a_file_calls_its_columns_cannot_act_on_a_terminal(write: WriteFile) -> None:
    assert "\x1b" not in message_of(write("a.csv", "\x1b[31mred,\x1b]0;title\x07\nx,y\n"))


# --- checksums -----------------------------------------------------------------------------------


def test_the_checksum_is_that_of_the_files_bytes(write: WriteFile) -> None:
    content = "prompt\nHello\n".encode("utf-8-sig")
    source = load_rows(write("a.csv", content)).source
    assert source.sha256 == hashlib.sha256(content).hexdigest()
    assert source.as_dict() == {
        "name": str(source.name),
        "sha256": source.sha256,
        "rows": 1,
        "repeated": 0,
    }


def test_rows_given_in_code_have_a_checksum_of_their_content() -> None:
    one = load_items(["a", {"prompt": "b"}], name="list")
    same = load_items([{"prompt": "a"}, "b"], name="list")
    other = load_items(["a", "c"], name="list")
    assert one.source.sha256 == same.source.sha256 != other.source.sha256
    with pytest.raises(ConfigurationError, match="item 2: neither an object nor a text"):
        load_items(["a", 3], name="list")


def test_a_file_that_says_something_of_itself_keeps_its_list_under_a_name(tmp_path):
    payloads = tmp_path / "payloads.json"
    payloads.write_text('{"lang": "en", "payload_types": ["Text"], "payloads": ["one", "two"]}')
    assert [row.prompt for row in load_rows(payloads).rows] == ["one", "two"]
    seeds = tmp_path / "set.prompt"
    seeds.write_text("source: here\nseeds:\n- value: one\n  data_type: text\n- value: 'two: 2'\n")
    found = load_rows(seeds, columns={"prompt": "value"})
    assert [row.prompt for row in found.rows] == ["one", "two: 2"]


def test_a_yaml_list_of_texts_is_read_and_its_bad_items_are_named(tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_text("- one\n- {prompt: two, category: b}\n")
    assert [row.prompt for row in load_rows(file).rows] == ["one", "two"]
    file.write_text("- one\n- 3\n- [four]\n")
    with pytest.raises(ConfigurationError, match=r"(?s)2 invalid rows.*item 2: neither.*item 3"):
        load_rows(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- one\n- 'two\n", "is not YAML in line 3"),
        ("one: two\n", "must contain a list of prompts"),
        ("prompts: [a]\nrows: [b]\n", "must contain a list of prompts"),
        ("!!python/object/apply:os.getcwd []\n", "is not YAML in line 1"),
        ("", "must contain a list of prompts"),
    ],
)
def test_yaml_that_is_none_or_holds_no_list_is_refused(tmp_path, text, message):
    file = tmp_path / "prompts.yml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_rows(file)
