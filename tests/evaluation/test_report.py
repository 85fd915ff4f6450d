import base64
import hashlib
import html
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.charts import before_after
from astra_rl.evaluation.escaping import visible_text
from astra_rl.evaluation.report import (
    Chart,
    Finding,
    Headline,
    ReportData,
    Transcript,
    Turn,
    findings_of,
    render_report,
    write_report,
)
from astra_rl.evaluation.statistics import Rate

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "</style><style>*{display:none}</style>",
    "</title><body onload=alert(3)>",
    "<img src=x onerror=alert(4)>",
    '" onmouseover="alert(5)" x="',
    "' autofocus onfocus='alert(6)",
    "<a href='javascript:alert(7)'>click</a>",
    "<svg/onload=alert(8)>",
    "--><!-- <!doctype html>",
    "&lt;script&gt;alert(9)&lt;/script&gt; &#0; &amp",
    "{{7*7}} {% raw %} {# comment #} ${7*7} <%= 7*7 %>",
    "a\u2028b\u2029c",
    "user\u202etxt.exe\u2066\u2069\u200f",
    "\x1b[2J\x1b]0;title\x07\x9b31m",
    "nul\0byte \x08\x7f",
    "lone \ud800 surrogate \udfff",
    "x" * 200_000,
    "many\n\n\nlines\r\nand\ttabs",
]


class Page(HTMLParser):
    """What is on a page: its elements, the text in each kind of them, its ids and links."""

    VOID = frozenset({"meta", "input", "br", "img", "link"})

    def __init__(self, source):
        super().__init__()
        self.elements = []
        self.open = []
        self.texts = {}
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def close(self):
        super().close()
        assert self.open == []

    def all(self, tag, **wanted):
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in wanted.items()}
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and wanted.items() <= attrs.items()
        ]


def report(text="Tell me the password", **changes):
    """A report with `text` at every place where a text can stand."""
    rate = Rate(5, 128)
    turns = [Turn(text, text, 0.97, 2.5), Turn(text, text, None, None)]
    fields = {
        "title": text,
        "headline": [
            Headline(text, rate, 0.5, text, text),
            Headline(text, Rate(113, 126, 2), 0.5, text, text),
        ],
        "summary": [(text, text)],
        "charts": [Chart(text, text, before_after({"rate": rate}))],
        "findings": [Finding(text, 3, [Transcript(turns, text), Transcript(turns[:1])])],
        "configuration": text,
        "versions": {text: text},
        "command": text,
        "notes": [text],
    }
    return ReportData(**{**fields, **changes})


STRUCTURE = [
    (tag, attrs.get("class"), attrs.get("id"))
    for tag, attrs in Page(render_report(report())).elements
]


@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text)[:40] for text in HOSTILE])
def test_hostile_text_appears_only_escaped_and_adds_no_element(text):
    page = render_report(report(text))
    page.encode("utf-8")
    shown = html.escape(visible_text(text)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    assert page.count(shown) >= 20
    if text != visible_text(text) or text != html.escape(text):
        assert text not in page
    parsed = Page(page)
    assert [(tag, a.get("class"), a.get("id")) for tag, a in parsed.elements] == STRUCTURE
    assert not [name for _, attrs in parsed.elements for name in attrs if name.startswith("on")]


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_no_text_changes_the_structure_of_the_page(text):
    page = render_report(report(text, charts=report().charts))
    page.encode("utf-8")
    parsed = Page(page)
    # An empty opening, configuration, command and the like are left out with their headings.
    if text:
        assert [(tag, a.get("class"), a.get("id")) for tag, a in parsed.elements] == STRUCTURE


def test_templates_are_not_evaluated_in_text():
    assert "49" not in re.sub(
        r"<svg.*?</svg>|<style.*?</style>",
        "",
        render_report(report("{{7*7}}", charts=())),
        flags=re.DOTALL,
    )


def test_the_policy_allows_the_pages_own_script_and_nothing_else():
    page = render_report(report())
    parsed = Page(page)
    (meta,) = parsed.all("meta", http_equiv="Content-Security-Policy")
    policy = dict(part.strip().split(" ", 1) for part in meta["content"].split(";"))
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    assert policy == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert parsed.elements.index(("meta", meta)) < [tag for tag, _ in parsed.elements].index(
        "style"
    )


def test_the_page_asks_no_network_for_anything():
    parsed = Page(render_report(report()))
    addresses = [
        value
        for _, attrs in parsed.elements
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster")
    ]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    style = "".join(parsed.texts["style"])
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_has_landmarks_one_heading_and_contents_that_lead_somewhere():
    parsed = Page(render_report(report()))
    assert parsed.elements[0] == ("html", {"lang": "en"})
    assert len(parsed.all("h1")) == len(parsed.all("main")) == len(parsed.all("footer")) == 1
    assert parsed.all("nav", aria_label="Contents")
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"].lstrip("#") for attrs in parsed.all("a")}
    assert {"result", "charts", "findings", "notes", "reproduce", "main"} == links
    references = {
        attrs[name]
        for _, attrs in parsed.elements
        for name in ("for", "aria-labelledby")
        if name in attrs
    }
    assert links | references <= set(ids)


def test_every_field_has_a_label_and_every_table_its_headers():
    parsed = Page(render_report(report()))
    labelled = {attrs.get("for") for attrs in parsed.all("label")}
    for field in parsed.all("input"):
        assert field["id"] in labelled or field["type"] == "checkbox"
    assert "Show what the models wrote" in " ".join(parsed.texts["label"])
    assert all(attrs.get("scope") in ("row", "col") for attrs in parsed.all("th"))
    assert len(parsed.all("table")) == 2


def test_model_text_is_blurred_until_asked_for_even_without_scripts():
    page = render_report(report())
    style = "".join(Page(page).texts["style"])
    assert re.search(r"^\.said \{[^}]*filter: blur", style, flags=re.MULTILINE)
    assert "body:has(#reveal:checked) .said { filter: none" in style
    (reveal,) = Page(page).all("input", id="reveal")
    assert "checked" not in reveal
    outside = re.sub(
        r'<(\w+) class="said[^>]*>.*?</\1>',
        "",
        render_report(
            report(findings=[Finding("harm", 1, [Transcript([Turn("harm", "harm")], "harm")])])
        ),
        flags=re.DOTALL,
    )
    assert "harm<" not in outside


def test_conversations_fold_without_scripts_and_only_the_first_is_open():
    parsed = Page(render_report(report()))
    conversations = parsed.all("details", class_="conversation")
    assert ["open" in attrs for attrs in conversations] == [True, False]
    assert len(parsed.all("details", class_="finding")) == 1


def test_the_filter_stays_hidden_without_scripts():
    assert "hidden" in Page(render_report(report())).all("div", class_="search")[0]


def test_the_page_follows_the_readers_colour_scheme_and_can_be_printed():
    parsed = Page(render_report(report()))
    style = "".join(parsed.texts["style"])
    assert parsed.all("meta", name="color-scheme", content="light dark")
    assert "@media (prefers-color-scheme: dark)" in style
    assert "@media print" in style


def prose(data):
    text = re.sub(
        r"<style.*?</style>|<script.*?</script>|<[^>]+>", " ", render_report(data), flags=re.DOTALL
    )
    return " ".join(html.unescape(text).split())


def test_the_headline_compares_the_first_rate_with_the_last():
    before, after = (
        Headline("before", Rate(5, 128), 0.5, "Judge", "SmolLM2"),
        Headline("after", Rate(113, 126, 2), 0.5, "Judge", "SmolLM2"),
    )
    text = prose(report(headline=[before, after]))
    assert "SmolLM2 failed in 90% of 126 conversations (after; 95% interval 83% to 94%)." in text
    assert "For comparison: 4% of 128 (before). The two intervals do not overlap." in text
    assert "113 of 126 90% (83%\N{EN DASH}94%) 2 88%\N{EN DASH}90%" in text
    close = prose(report(headline=[before, Headline("after", Rate(7, 128), 0.5, "Judge", "x")]))
    assert "The two intervals overlap" in close
    assert "do not overlap" not in close


def test_a_rate_that_was_not_measured_is_a_dash_and_not_zero():
    text = prose(report(headline=[Headline("after", Rate(0, 0, 3), 0.5, "Judge", "x")], charts=()))
    assert "No conversation (after) could be scored." in text
    assert "\N{EM DASH} (0%\N{EN DASH}100%)" in text
    assert "failed in 0%" not in text


def test_missing_scores_are_dashes_and_not_zeros():
    turns = [Turn("a", "b", None, None), Turn("a", "b", math.nan, math.nan)]
    text = prose(report(findings=[Finding("a", 1, [Transcript(turns)])]))
    assert "Turn 1: score \N{EM DASH}" in text
    assert "Turn 2: score \N{EM DASH} \N{EM DASH} nats per token" in text
    assert "0.00" not in text


def test_failed_calls_are_announced_before_the_rates():
    text = prose(report(errors=3))
    assert text.index("3 calls failed") < text.index("Threshold")
    assert "calls failed" not in prose(report())
    assert "Errors during the evaluation: 0." in prose(report())


def test_a_report_of_nothing_is_a_page_that_says_so():
    page = render_report(ReportData(title="Nothing yet"))
    Page(page)
    assert "No attack made the target fail." in page
    assert 'href="#charts"' not in page


def test_a_finding_that_shows_only_some_conversations_says_so():
    assert "2 of 3 conversations are shown." in prose(report())


def test_a_chart_that_is_not_svg_is_refused():
    with pytest.raises(ConfigurationError, match="not an <svg>"):
        Chart("title", "caption", "<script>alert(1)</script>")


def test_the_file_is_the_page_in_utf8(tmp_path):
    data = report("Grüße \ud800")
    write_report(data, tmp_path / "deep" / "report.html")
    written = (tmp_path / "deep" / "report.html").read_bytes().decode("utf-8")
    assert written == render_report(data)
    assert '<meta charset="utf-8">' in written[:200]


def test_findings_come_from_an_evaluation_with_the_likeliest_attack_first():
    def episode(attack, *scores, nll):
        turns = [
            {"attack": attack, "response": "r", "score": score, "attack_nll": nll, "reward": 0.0}
            for score in scores
        ]
        return {"prompt": "p", "turns": turns}

    metrics = {
        "conversations": [
            episode("a", 0.9, nll=3.0),
            episode("b", None, 0.9, nll=None),
            episode("c", 0.2, 0.8, nll=1.0),
        ],
        "clusters": [{"attack": "a", "size": 3, "conversations": [0, 1, 2]}],
    }
    (finding,) = findings_of(metrics)
    assert finding.attack == "a"
    assert finding.size == 3
    assert [each.turns[0].attack for each in finding.conversations] == ["c", "a", "b"]
    assert finding.conversations[0].worst == Turn("c", "r", 0.8, 1.0)
    (shortened,) = findings_of(metrics, most=1)
    assert shortened.size == 3
    assert len(shortened.conversations) == 1
    Page(render_report(report(findings=[finding, shortened])))


def test_one_hundred_and_twenty_eight_conversations_make_a_page_of_moderate_size():
    transcript = Transcript([Turn("attack " * 20, "response " * 50, 0.9, 2.0)])
    findings = [Finding("attack", 9, [transcript] * 9) for _ in range(14)]
    assert len(render_report(report(findings=findings))) < 500_000
