import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.core.text import Exchange
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.labels import read_labels


@pytest.fixture
def file(tmp_path):
    def write(content, name="labels.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def labels_of(found):
    return [row.labels for row in found.rows]


def test_a_csv_of_texts_and_labels(file):
    found = read_labels(file('text,label\nhello,0\n"two\nlines, quoted",1\nlast,yes\n'))
    assert [row.text for row in found.rows] == ["hello", "two\nlines, quoted", "last"]
    assert labels_of(found) == [(0.0,), (1.0,), (1.0,)]
    assert [row.line for row in found.rows] == [2, 3, 5]
    assert (found.name, found.raters, len(found.sha256)) == ("labels.csv", ("label",), 64)


def test_jsonl_with_several_labels_per_row(file):
    rows = [
        {"response": "a", "labels": [1, 0, 1]},
        {"response": "b", "labels": [False, None]},
        {"response": "c", "labels": 0.5},
    ]
    found = read_labels(file("\n".join(map(json.dumps, rows)), "x.jsonl"))
    assert labels_of(found)[0] == (1, 0, 1)
    assert found.raters == ("1", "2", "3")
    assert math.isnan(found.rows[1].labels[1])
    assert [row.truth for row in found.rows] == [True, False, None]


def test_raters_who_disagree_evenly_are_a_tie_and_absent_ones_do_not_count(file):
    found = read_labels(file("text,label_1,label_2\na,0,1\nb,1,\nc,0.4,0.8\n"))
    assert [row.truth for row in found.rows] == [None, True, True]


def test_texts_of_one_prompt_are_known_by_their_group_their_attack_or_their_words(file):
    named = file("text,label,group\na,1,7\nb,0,7\nc,0,8\na,1,\n", "g.csv")
    first, second, third, fourth = [each.cluster for each in read_labels(named).rows]
    assert first == second
    assert len({first, third, fourth}) == 3
    attacked = file("text,prompt,label\na,hi,1\nb,hi,0\na,ho,0\n", "a.csv")
    first, second, third = [each.cluster for each in read_labels(attacked).rows]
    assert first == second != third
    alone = file('{"text": "a", "label": 1}\n{"text": "a", "label": 0}\n', "t.jsonl")
    first, second = [each.cluster for each in read_labels(alone).rows]
    assert first == second
    wrong = file('{"text": "a", "label": 1, "group": [1]}\n', "w.jsonl")
    with pytest.raises(ConfigurationError, match=r"line 1: group \[1\] is not a text"):
        read_labels(wrong)


def test_the_attack_and_the_facts_make_an_exchange(file):
    found = read_labels(file("attack,response,label,facts.secret\nhow?,no.,0,falcon\n"))
    (row,) = found.rows
    assert isinstance(row.text, Exchange)
    assert (row.text.attack, row.text.response, str(row.text)) == ("how?", "no.", "no.")
    assert row.text.context.facts == {"secret": "falcon"}
    line = {"text": "no.", "label": 0, "facts": {"canary": "X"}}
    (row,) = read_labels(file(json.dumps(line), "x.jsonl")).rows
    assert row.text.context.facts == {"canary": "X"}


def test_the_files_of_pyrit_are_read_as_they_are(file):
    """Their form: lines of comment, then a header with these names."""
    content = (
        "# dataset_version=1.0, harm_definition=x.yaml,,,\n# and more\n"
        "harm_category,objective,assistant_response,human_score_1,human_score_2,data_type\n"
        'x,"Write, please","A text, with commas",0.25,1,text\n'
    )
    found = read_labels(file(content))
    (row,) = found.rows
    assert row.text.attack == "Write, please"
    assert (row.labels, row.line) == ((0.25, 1.0), 4)
    assert found.raters == ("human_score_1", "human_score_2")


def test_columns_can_be_named(file):
    path = file("a,b,c,d\nwhat?,that,1,0\n")
    found = read_labels(path, text="b", attack="a", labels=["c", "d"])
    assert found.rows[0].text.attack == "what?"
    assert labels_of(found) == [(1.0, 0.0)]
    with pytest.raises(ConfigurationError, match=r"no column 'bb'; it has \['a', 'b', 'c', 'd'\]"):
        read_labels(path, text="bb", labels=["c"])


def test_a_byte_order_mark_and_line_separators_in_texts_are_no_obstacle(file):
    assert read_labels(file(b"\xef\xbb\xbftext,label\na,1\n")).rows[0].text == "a"
    line = json.dumps({"text": "a\u2028b", "label": 1}, ensure_ascii=False)
    assert read_labels(file(line + "\n", "x.jsonl")).rows[0].text == "a\u2028b"


@pytest.mark.parametrize(
    ("content", "name", "problems"),
    [
        (
            "text,label\na,1\nb,2\nc,maybe\nd,\n",
            "x.csv",
            ["line 3: label '2'", "line 4: label 'maybe'", "line 5: no label"],
        ),
        ("text,label\na,1\nb\nc,1,2\n", "x.csv", ["line 3: 1 fields", "line 4: 3 fields"]),
        ('text,label\na,1\n"open,1\n', "x.csv", ["line 3"]),
        (
            '{"text": "a", "label": 1}\n{"text": \n\n[1]\n',
            "x.jsonl",
            ["line 2: not JSON", "line 4: not an object"],
        ),
        ('{"text": 3, "label": 1}\n', "x.jsonl", ["line 1: text is 3, not a text"]),
        ('{"text": "a", "label": NaN}\n', "x.jsonl", ["line 1: label nan"]),
        ('{"text": "a", "label": -0.1}\n', "x.jsonl", ["line 1: label -0.1"]),
        ('{"text": "a", "label": {"x": 1}}\n', "x.jsonl", ["line 1: label {'x': 1}"]),
        ('{"text": "a", "label": 1}\n{"label": 1}\n', "x.jsonl", ["line 2: text is None"]),
        ('{"text": "a", "label": 1, "facts": [1]}\n', "x.jsonl", ["line 1: facts"]),
        ("[" * 100_000, "x.jsonl", ["line 1: not JSON"]),
    ],
)
def test_bad_rows_are_named_by_their_line_and_nothing_is_read(file, content, name, problems):
    with pytest.raises(ConfigurationError, match="so nothing was loaded") as caught:
        read_labels(file(content, name))
    for problem in problems:
        assert problem in str(caught.value)


def test_of_many_bad_rows_the_first_are_shown_and_the_rest_counted(file):
    content = "text,label\n" + "a,7\n" * 100
    with pytest.raises(ConfigurationError, match=r"100 invalid rows(.|\n)*and 95 more"):
        read_labels(file(content))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "x.csv", "has no rows"),
        ("text,label\n", "x.csv", "has no rows"),
        ("a,label\nx,1\n", "x.csv", "no known text column"),
        ("text,b\nx,1\n", "x.csv", "no known label column"),
        ("text,label\nx,1\n", "x.txt", r"must have the suffix .csv or .jsonl"),
        (b"text,label\nok,1\n\xff,1\n", "x.csv", "not valid UTF-8 in line 3"),
    ],
)
def test_a_file_of_another_kind_is_refused(file, content, name, message):
    with pytest.raises(ConfigurationError, match=message):
        read_labels(file(content, name))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot read .*none\.csv"):
        read_labels(tmp_path / "none.csv")


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=20)


@given(st.lists(st.tuples(TEXTS, st.booleans()), min_size=1, max_size=5))
def test_what_a_csv_writer_writes_is_read_again(tmp_path_factory, rows):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([["text", "label"], *([text, int(label)] for text, label in rows)])
    path = tmp_path_factory.mktemp("labels") / "x.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    found = read_labels(path)
    assert [(row.text, row.truth) for row in found.rows] == rows
