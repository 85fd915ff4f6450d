"""What a notebook shows is text, whatever a model wrote."""

from html.parser import HTMLParser

import pytest
from tests.hostile import BASE

from astra_rl import Graph, Node
from astra_rl.datasets import Row, Scenario
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures.summary import summarise
from astra_rl.evaluation.records.attempt import AttemptRow
from astra_rl.evaluation.records.outcome import Outcome
from astra_rl.infra.visible import html_text, visible_text

OURS = {"table", "tr", "th", "td", "p", "div", "b", "br", "small"}


class Tags(HTMLParser):
    """Collects the names of tags and attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", BASE)
def test_text_of_a_model_is_no_markup_in_a_notebook(text):
    leaf = Node(text, text, text, 0.5, [])
    graph = Graph(text, [Node(text, text, text, float("nan"), [leaf])])
    scenario = Scenario(text or "x", {"test": [Row("1", text or "x", category=text)]}, brief=text)
    for page in (graph._repr_html_(), scenario._repr_html_()):
        found = Tags(page)
        assert found.tags <= OURS
        assert found.attributes <= {"style"}
        assert visible_text(text) in found.text
    assert Tags(f'<b title="{html_text(text)}">').tags == {"b"}


def test_a_large_graph_is_cut():
    page = Graph("c", [Node("c", f"attack {n}", "r", 0.0, []) for n in range(500)])._repr_html_()
    assert "200 of 500 turns" in page
    assert "attack 199" in page
    assert "attack 200" not in page


def row(name, phase="after", outcome=Outcome.SUCCESS):
    return AttemptRow(name, phase, name, 0, "a", "t", outcome, 1, 1, True)


def test_a_summary_shows_its_rate():
    summary = summarise([row("one"), row("two", outcome=Outcome.REFUSED)])
    text = Tags(summary._repr_html_()).text
    assert summary.asr.text in text
    assert "1 success, 1 refused" in text


def test_attempts_of_several_phases_are_not_pooled():
    with pytest.raises(ConfigurationError, match="phases after, training given"):
        summarise([row("one"), row("two", phase="training")])
