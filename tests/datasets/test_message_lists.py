"""Rows of data sets of TRL and verl, and files of spreadsheets."""

import json

import pytest

from astra_rl.config.prompts import read_openings
from astra_rl.config.schema import PromptsConfig
from astra_rl.core.attack_files import read_attacks
from astra_rl.datasets import load_rows
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.labels import read_labels

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "What is tea?"}
ANSWER = {"role": "assistant", "content": "A drink."}


def loaded(tmp_path, *rows, **options):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return [(row.system, row.prompt) for row in load_rows(file, **options).rows]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER]},
        {"messages": [USER, ANSWER]},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]},
        {
            "data_source": "x",
            "prompt": [USER],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {"index": 0},
        },
        {"conversations": [{"from": "human", "value": "What is tea?"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is tea?"}]}]},
        {"prompt": "What is tea?", "messages": [ANSWER]},
    ],
)
def test_rows_of_trl_and_verl_open_a_conversation(tmp_path, row, caplog):
    assert loaded(tmp_path, row) == [(None, "What is tea?")]
    assert caplog.text == ""


def test_the_system_message_is_that_of_the_target(tmp_path):
    row = {"messages": [SYSTEM, USER, ANSWER]}
    assert loaded(tmp_path, row) == [("Be brief.", "What is tea?")]
    config = PromptsConfig(file=str(tmp_path / "rows.jsonl"), test_file=str(tmp_path / "t.jsonl"))
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": [{**USER, "content": "Why?"}]}))
    (opening,) = read_openings(config, seed=0).train
    assert (opening.system, opening.prompt, opening.turns) == ("Be brief.", "What is tea?", ())


def test_a_column_of_another_name_may_hold_messages(tmp_path):
    assert loaded(tmp_path, {"chat": [USER]}, columns={"prompt": "chat"}) == [
        (None, "What is tea?")
    ]


def test_further_messages_are_left_out_with_a_warning(tmp_path, caplog):
    row = {"messages": [USER, ANSWER, {"role": "user", "content": "More?"}, ANSWER]}
    assert loaded(tmp_path, row) == [(None, "What is tea?")]
    assert "1 rows have more messages than an opening" in caplog.text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [ANSWER]}, "messages: the first message must be of the role user; it is 'as"),
        ({"messages": [SYSTEM]}, "must be of the role user; it is none"),
        ({"messages": [{"content": "x"}]}, "a message has no role"),
        ({"messages": [{"role": "user", "content": 3}]}, "is a number; it must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "parts that are not"),
        ({"prompt": [SYSTEM, USER], "system": "Other."}, "both in prompt and in the column system"),
        ({"prompt": ["a", "b"]}, "prompt is a list; it must be a text"),
    ],
)
def test_other_lists_are_refused_by_line(tmp_path, row, reason):
    with pytest.raises(ConfigurationError, match=f"line 1: .*{reason}"):
        loaded(tmp_path, row)


def test_the_header_of_a_csv_file_tells_the_separator(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes('\ufeffprompt;category\r\nHello, you;a\r\n"x;y";b\r\n'.encode())
    for separator in (None, ";"):
        rows = load_rows(file, separator=separator).rows
        assert [(row.prompt, row.category) for row in rows] == [("Hello, you", "a"), ("x;y", "b")]
    config = PromptsConfig(file=str(file), test_file=str(file), separator=";")
    with pytest.raises(ConfigurationError, match="is in train and in test"):
        read_openings(config, seed=0)
    for separator, message in ((":", "choose one of"), (",", r'a semicolon\. Set separator: ";"')):
        with pytest.raises(ConfigurationError, match=message):
            load_rows(file, separator=separator)
    file.write_text("prompt,a;b\nHello; you,c\n")
    assert load_rows(file).rows[0].prompt == "Hello; you"
    file.write_text('"prompt;category\n')
    with pytest.raises(ConfigurationError, match="line 1: not CSV"):
        load_rows(file)
    (tmp_path / "rows.txt").write_text("a")
    with pytest.raises(ConfigurationError, match=r"only \.csv files have one"):
        load_rows(tmp_path / "rows.txt", separator=";")
    with pytest.raises(ValueError, match="need file"):
        PromptsConfig(scenario="x", separator=";")


@pytest.mark.parametrize(("separator", "name"), [("\t", "tab"), ("|", "vertical bar")])
def test_other_separators_are_read_and_named_too(tmp_path, separator, name):
    file = tmp_path / "rows.csv"
    file.write_text(f"prompt{separator}category\na, b{separator}c\n")
    with pytest.raises(ConfigurationError, match=f"separated by a {name}"):
        load_rows(file, separator=",")
    assert load_rows(file).rows[0].prompt == "a, b"


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_labels_are_read_with_the_separator_of_their_header(tmp_path, separator):
    file = tmp_path / "labels.csv"
    file.write_text(f'# a comment, with a comma\ntext{separator}label\n"Hello, you"{separator}1\n')
    ((text, labels),) = [(each.text, each.labels) for each in read_labels(file).rows]
    assert (text, labels) == ("Hello, you", (1.0,))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_attacks_of_windows_programs_and_with_line_separators_are_read(tmp_path, end):
    (tmp_path / "a.txt").write_bytes(f"\ufeffHello\u2028there{end}{end}Bye\x0b!{end}".encode())
    assert [each.attack for each in read_attacks(tmp_path / "a.txt")] == [
        "Hello\u2028there",
        "Bye\x0b!",
    ]
    lines = ['{"attack": "Hello\u2028there"}', '{"attack": "Bye"}']
    (tmp_path / "a.jsonl").write_bytes(("\ufeff" + end.join(lines)).encode())
    assert [each.attack for each in read_attacks(tmp_path / "a.jsonl")] == [
        "Hello\u2028there",
        "Bye",
    ]
