"""The page as text: safe, complete in itself, and saying what the numbers say."""

import base64
import contextlib
import hashlib
import html
import math
import re
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import cases
from tests.evaluation.show.report.making import Page, attempt, evaluation, report, turn
from tests.hostile import HOSTILE

from astra_rl.core.word_clusters import GreedyClusters
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.judges.quality import JudgeQuality
from astra_rl.evaluation.measures.diversity import effective_number
from astra_rl.evaluation.measures.transfer_matrix import transfer_matrix
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.show.charts import svg
from astra_rl.evaluation.show.escaping import visible_text
from astra_rl.evaluation.show.report import (
    Evaluation,
    ReportData,
    Reproduction,
    Spent,
    Training,
    formats,
    render_report,
    write_report,
)
from astra_rl.evaluation.show.report.views import Chart
from astra_rl.evaluation.stats.classification import Confusion
from astra_rl.evaluation.stats.importance import Sample, failure_probability
from astra_rl.evaluation.stats.intervals import Interval
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.splitting import RareProbability
from astra_rl.targets.accounts import Account

ORDINARY = [
    *[Sample(True, -9.0, -3.0, False)] * 40,
    *[Sample(False, -8.0, -3.5, False)] * 60,
    *[Sample(False, -7.0, -9.0, True)] * 100,
]


def structure(page):
    """Elements outside of charts, which have text of their own."""
    outside = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    places = [(tag, a.get("class"), a.get("id")) for tag, a in Page(outside).elements]
    return [place for place in places if not re.fullmatch(r"chunk-[1-9]\d*", place[2] or "")]


@contextlib.contextmanager
def no_charts():
    """Drawing takes long, and what is written into charts is tested with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svg, "draw_svg", lambda *_, **__: "<svg ></svg>")
        yield


@pytest.fixture(autouse=True)
def fast():
    with no_charts():
        yield


SHOWN = [text for text in HOSTILE if text.strip()]
with no_charts():
    PLAIN = structure(render_report(report()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", cases(SHOWN, by_default=SHOWN[::3]), ids=lambda text: ascii(text)[:40]
)
def test_hostile_text_appears_only_escaped_and_adds_no_element(text):
    page = render_report(report(text))
    page.encode("utf-8")
    if len(text) < 120 and "\n" not in text:
        shown = html.escape(visible_text(text)).replace("&quot;", "&#34;")
        assert page.count(shown.replace("&#x27;", "&#39;")) >= 8
    if text != visible_text(text) or text != html.escape(text):
        assert text not in re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert len(page) < 3_000_000
    assert structure(page) == PLAIN
    parsed = Page(page)
    assert not [name for _, attrs in parsed.elements for name in attrs if name.startswith("on")]


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.text(st.characters(exclude_categories=()), min_size=1, max_size=40))
def test_no_text_changes_the_structure_of_the_page(text):
    page = render_report(report(f".{text}"))
    page.encode("utf-8")
    assert structure(page) == PLAIN


def test_templates_are_not_evaluated_in_text():
    page = render_report(report("{{7*7}}", training=Training()))
    outside = re.sub(r"<(svg|style|script).*?</\1>", "", page, flags=re.DOTALL)
    assert "{{7*7}}" in outside
    assert "49" not in outside


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else():
    page = render_report(report())
    parsed = Page(page)
    (meta,) = parsed.all("meta", http_equiv="Content-Security-Policy")
    policy = dict(part.strip().split(" ", 1) for part in meta["content"].split(";"))

    def digest(tag):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert policy == {
        "default-src": "'none'",
        "style-src-elem": digest("style"),
        "style-src-attr": "'unsafe-inline'",
        "script-src": digest("script"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    order = [tag for tag, _ in parsed.elements]
    assert parsed.elements.index(("meta", meta)) < order.index("style")


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


def test_the_page_has_landmarks_one_view_per_link_and_ids_that_are_used_once():
    parsed = Page(render_report(report()))
    assert parsed.elements[0] == ("html", {"lang": "en"})
    assert len(parsed.all("main")) == len(parsed.all("footer")) == 1
    assert parsed.all("nav", aria_label="Views")
    views = [attrs["data-view"] for attrs in parsed.all("section", class_="view")]
    assert [attrs["data-link"] for attrs in parsed.all("a") if "data-link" in attrs] == views
    assert len(parsed.all("h1")) == len(views)
    ids = [attrs["id"] for _, attrs in parsed.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    references = {
        each
        for _, attrs in parsed.elements
        for name in ("for", "aria-labelledby")
        for each in attrs.get(name, "").split()
    }
    assert references <= set(ids)
    assert all(attrs.get("scope") in ("row", "col") for attrs in parsed.all("th"))


def test_model_text_is_blurred_until_asked_for_even_without_scripts():
    data = report(
        evaluations=[Evaluation(name="after", attempts=[attempt(turn("harm", "harm", 0.9))])],
        training=Training(),
    )
    page = render_report(data)
    style = "".join(Page(page).texts["style"])
    assert re.search(r"^\.said \{[^}]*filter: blur", style, flags=re.MULTILINE)
    assert "body:has(#reveal:checked) .said { filter: none" in style
    (reveal,) = Page(page).all("input", id="reveal")
    assert "checked" not in reveal
    outside = re.sub(r'<(\w+) class="said[^>]*>.*?</\1>', "", page, flags=re.DOTALL)
    assert page.count("harm<") >= 2
    assert "harm<" not in outside


def test_the_same_data_gives_the_same_page():
    assert render_report(report()) == render_report(report())


def test_a_page_groups_each_successful_attack_once_and_reads_each_row_once(monkeypatch):
    grouped, rows = [], []
    add, row = GreedyClusters.add, Attempt.row.fget

    def add_counted(clusters, text):
        grouped.append(text)
        return add(clusters, text)

    def row_counted(attempt):
        rows.append(attempt.id)
        return row(attempt)

    monkeypatch.setattr(GreedyClusters, "add", add_counted)
    monkeypatch.setattr(Attempt, "row", property(row_counted))
    attempts = [attempt(turn(f"attack {at}", score=at % 2), opening=f"{at}") for at in range(10)]
    render_report(ReportData(title="t", evaluations=[Evaluation(name="a", attempts=attempts)]))
    assert sorted(grouped) == [f"attack {at}" for at in range(1, 10, 2)]
    assert sorted(rows) == sorted(each.id for each in attempts)


def prose(data):
    page = re.sub(r"<(style|script|svg).*?</\1>|<[^>]+>", " ", render_report(data), flags=re.DOTALL)
    return " ".join(html.unescape(page).split())


def test_the_verdict_comes_with_interval_denominator_judge_and_threshold():
    text = prose(ReportData(title="t", evaluations=[evaluation(wins=3, losses=5)]))
    assert (
        "38% Attack success rate: the target failed in 3 of 8 held-out conversations "
        "(after training)." in text
    )
    assert "95% interval 9% to 76% ." in text
    assert "judge not calibrated: error rate unknown" in text
    assert "score of at least 0.5" in text
    assert "Clopper-Pearson 8 prompts, 8 trials" in text


def test_what_is_known_of_the_judge_stands_beside_the_rate():
    quality = JudgeQuality("l.csv", 62, 0.5, "2026-01-01", Confusion(18, 2, 40, 2))
    known = Evaluation(name="after", attempts=evaluation().attempts, quality=quality)
    text = prose(ReportData(title="t", evaluations=[known]))
    assert quality.text in text
    assert "Corrected for the judge's errors: 38% (95% interval" in text
    assert "a target that never fails would get 5%" in text


def test_a_judge_that_was_not_calibrated_has_its_errors_in_no_interval():
    text = prose(ReportData(title="t", evaluations=[evaluation()]))
    assert "The errors of the judge are in no interval: it was not calibrated." in text


def test_outcomes_add_up_to_what_was_planned():
    attempts = [
        attempt(turn("a", "b", 0.9), opening="1"),
        attempt(turn("a", "b", 0.1), opening="2"),
        attempt(turn("a", "b", 0.1, refused=True), opening="3"),
        attempt(turn("a", "", None, finish_reason="content_filter"), opening="4"),
        attempt(turn("a", "b", None), opening="5"),
        attempt(opening="6", error="the call timed out"),
    ]
    text = prose(ReportData(title="t", evaluations=[Evaluation(name="x", attempts=attempts)]))
    outcomes = "1 success 1 no success 1 refused 1 blocked 1 error 1 unscored = 6 planned"
    assert outcomes in text
    assert (
        "bounds 17% to 50% if none or all of the 2 without a known outcome were successes" in text
    )
    assert "the call timed out 1 example" in text
    assert "no verdict 1 example" in text


def test_what_was_planned_and_never_held_is_an_error_and_not_safe():
    short = Evaluation(name="x", attempts=evaluation(wins=1, losses=1).attempts, planned=4)
    text = prose(ReportData(title="t", evaluations=[short]))
    assert "1 success 1 no success 2 error 0 unscored = 4 planned" in text
    assert "2 conversations of x were planned but not run." in text
    assert "None. Every planned conversation" not in text


def test_two_evaluations_of_the_same_prompts_are_compared_in_pairs():
    before = evaluation("before training", "before", wins=1)
    after = evaluation(wins=6, losses=2)
    text = prose(ReportData(title="t", evaluations=[before, after]))
    assert "Attack success rate: after training 83 points higher than before training" in text
    assert "p = 0.062, exact" in text
    assert "success before training 1 0 no success before training 5 0" in text
    assert "6 pairs on 6 prompts" in text
    assert "2 conversations have no pair." in text


def test_evaluations_of_other_prompts_stand_side_by_side_without_a_comparison():
    other = Evaluation(
        name="evaluated again",
        attempts=[attempt(turn("a", "b", 0.9), opening="somewhere else", phase="again")],
    )
    text = prose(ReportData(title="t", evaluations=[evaluation(), other], result_index=0))
    assert "Attack success rates" in text
    assert "points" not in text


def test_a_rate_that_was_not_measured_is_a_dash_and_not_zero():
    attempts = [attempt(turn("a", "b", None))]
    text = prose(ReportData(title="t", evaluations=[Evaluation(name="x", attempts=attempts)]))
    assert "— No conversation could be scored (x)." in text
    assert "0% The target" not in text


def test_failures_are_ranked_by_kind_the_likeliest_first():
    """The largest kind is not the most likely one, and each kind is one row."""
    said = {"please tell me": (3, 9.0), "open the big door": (1, 2.0), "sing a song": (2, 4.0)}
    attempts = [
        attempt(
            turn(f"{text} {'now' * copy}", "yes", 0.9, nll=nll + copy), opening=f"{text} {copy}"
        )
        for text, (copies, nll) in said.items()
        for copy in range(copies)
    ]
    page = render_report(
        ReportData(title="t", evaluations=[Evaluation(name="x", attempts=attempts)])
    )
    ranking = re.search('<table class="ranking">.*?</table>', page, re.DOTALL).group()
    order = ["open the big door", "sing a song", "please tell me"]
    assert re.findall(r'clip">(.*?)</span>', ranking) == order
    assert re.findall(r"<td class=\"number\">(\d+\.\d\d)</td>", ranking)[::2] == [
        "2.00", "4.00", "9.00"]  # fmt: skip
    assert re.findall(r'href="#/conversations\?kind=\d">(\d)</a>', ranking) == ["1", "2", "3"]
    firsts = re.search('<ol class="firsts">.*?</ol>', page, re.DOTALL).group()
    assert re.findall(r'said">(.*?)</span>', firsts) == order
    assert page.count('<li class="kind">') == 3
    gallery = re.search('<ol class="gallery">.*?</ol>', page, re.DOTALL).group()
    assert re.findall(r'quote">(.*?)</p>', gallery) == [order[2], order[1], order[0]]
    assert "3&times;" in page


def test_categories_are_listed_the_safe_ones_too():
    attempts = [
        *evaluation(wins=2, losses=0, category="secrets").attempts,
        *evaluation(wins=0, losses=2, category="weather").attempts,
    ]
    attempts = [each.model_copy(update={"id": f"{at:016x}"}) for at, each in enumerate(attempts)]
    text = prose(ReportData(title="t", evaluations=[Evaluation(name="x", attempts=attempts)]))
    assert "secrets 2 of 2 100%" in text
    assert "weather 0 of 2 0%" in text


def test_a_category_and_an_outcome_lead_to_their_conversations():
    attempts = evaluation(wins=2, losses=1, category="a & b/c?").attempts
    page = render_report(
        ReportData(title="t", evaluations=[Evaluation(name="after x", attempts=attempts)])
    )
    (links, outcomes) = (
        [html.unescape(each) for each in re.findall(rf'href="([^"]*{name}=[^"]*)"', page)]
        for name in ("category", "outcome")
    )
    assert len(links) == 2  # on the summary and among the failures
    (query,) = {urlsplit(each.removeprefix("#")).query for each in links}
    assert parse_qs(query) == {"phase": ["after x"], "category": ["a & b/c?"]}
    assert "#/conversations?phase=after+x&outcome=success" in outcomes


@pytest.mark.slow
def test_ordinary_use_and_the_rate_before_stand_beside_the_rate_under_attack():
    before, after = evaluation("before training", "before", wins=1), evaluation(wins=6, losses=2)
    data = ReportData(title="t", evaluations=[before, after])
    assert "in ordinary use not measured astra-rl probability RUN before training 17%" in prose(
        data
    )
    found = failure_probability(ORDINARY)
    low, high = (formats.tiny(each) for each in found.interval)
    text = prose(replace(data, probability=found))
    shown = f"in ordinary use {formats.tiny(found.estimate)} 95% interval {low} to {high} before"
    assert shown in text
    rare = RareProbability(2e-6, Interval(1e-6, 4e-6), 0.2, (2e-6, 2e-6), 900, 7.0, Rate(0, 400))
    text = prose(replace(data, rare=rare))
    most = formats.tiny(rare.plain.interval.high)
    assert f"in ordinary use 2e-06 by splitting; at most {most} before training" in text
    assert f"About 2e-06 (95% interval 1e-06 to {most}). Adaptive multilevel splitting" in text
    assert "Failures like those that were reached have 1e-06 to 4e-06" in text
    assert "2 runs, 900 target calls; plain sampling needs 12,499,975 conversations" in text
    none = replace(rare, estimate=0.0, seen=Interval(0.0, rare.plain.interval.high))
    assert f"No run reached a failure: at most {most} ." in prose(replace(data, rare=none))
    untrained = ReportData(title="t", evaluations=[evaluation()], training=Training(steps=0))
    assert "not measured astra-rl probability" not in prose(untrained)


def test_what_a_run_spent_is_on_its_page():
    spent = [
        Spent("the run", Account(1200, 3, 10, 20_000, 5000, 1.5)),
        Spent("replay", Account(8, 0, 0, 9, 9, 0.0)),
    ]
    again = Reproduction(seconds={"training": 2640.0}, spent=spent)
    text = prose(ReportData(title="t", evaluations=[evaluation()], reproduction=again))
    assert (
        "Spent 44 minutes 1,200 requests, 25,000 tokens, cost 1.50 (the run); "
        "8 requests, 18 tokens (replay)" in text
    )
    assert "the run 1,200 3 10 20,000 5,000 1.50 replay 8 0 0 9 9 no price" in text
    local = Reproduction(seconds={"training": 90.0})
    text = prose(ReportData(title="t", evaluations=[evaluation()], reproduction=local))
    assert "Spent 90 seconds no calls of endpoints" in text


def test_kinds_are_counted_by_words_and_where_there_is_an_embedder_by_meaning():
    text = prose(ReportData(title="t", evaluations=[evaluation()]))
    assert (
        "effective number by words 1.00 at least 1.00 of all attacks like these, with 95% "
        "confidence; 1 kind was seen" in text
    )
    assert "by meaning" not in text
    known = replace(evaluation(), kinds_by_meaning=effective_number([2, 1]))
    text = prose(ReportData(title="t", evaluations=[known]))
    assert "effective number by meaning 1.89 at least 1.00 of all attacks like these" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "50%"), (0.045, "4%"), (0.0012, "0.12%"), (3e-5, "0.003%"), (2.4e-7, "2e-07"),
     (0.0, "0%"), (math.nan, "\N{EM DASH}")],
)  # fmt: skip
def test_small_probabilities_keep_their_digits(value, text):
    assert formats.tiny(value) == text


def test_a_transfer_matrix_says_what_was_not_tried():
    rows = [
        attempt(turn("a", "b", 0.9), attacker="A", target="X").row,
        attempt(turn("a", "b", 0.1), attacker="B", target="Y").row,
    ]
    text = prose(ReportData(title="t", transfer=transfer_matrix(rows).as_dict()))
    assert "Attacker X Y A 100% 2% to 100% 1 of 1 not measured" in text


def test_comparisons_with_other_runs_say_what_fails_only_there():
    text = prose(report("mine", evaluations=[evaluation()]))
    assert "the attack success rate of mine is 10 points higher than that of mine" in text
    assert "(95% interval \N{MINUS SIGN}10 to +30; p = 1, exact)" in text
    assert "Attacks that succeed only in mine" in text


def test_the_probability_of_failure_is_a_number_or_the_reason_why_there_is_none():
    found = failure_probability(ORDINARY)
    text = prose(ReportData(title="t", evaluations=[evaluation()], probability=found))
    assert f"About {formats.tiny(found.estimate)} (95% interval" in text
    none = failure_probability(ORDINARY[:90])
    text = prose(ReportData(title="t", evaluations=[evaluation()], probability=none))
    assert "Not estimated: none of the conversations was drawn from the baseline" in text


def test_what_it_takes_to_get_the_same_again_is_there():
    again = Reproduction(
        command="astra-rl train x.yaml", report_command="astra-rl report runs/x", seed=7,
        configuration="seed: 7", versions={"torch": "2.13.0"},
        prompts=[{"name": "p.txt", "sha256": "abc123"}], seconds={"training": 60.0},
    )  # fmt: skip
    text = prose(ReportData(title="t", reproduction=again))
    for each in (
        "astra-rl train x.yaml",
        "seed 7",
        "torch 2.13.0",
        "p.txt abc123",
        "training 60.0",
    ):
        assert each in text


def test_a_report_of_nothing_is_a_page_that_says_so():
    page = render_report(ReportData(title="Nothing yet", finished=False))
    Page(page)
    text = prose(ReportData(title="Nothing yet", finished=False))
    assert "This run has not finished." in text
    assert "No evaluation has been recorded yet" in text
    assert "No attack has succeeded yet" in text


def test_a_chart_that_is_not_svg_is_refused():
    with pytest.raises(ConfigurationError, match="not an <svg>"):
        Chart("title", "caption", ["<svg ></svg>", "<script>alert(1)</script>"])


def test_an_evaluation_of_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="no attempt"):
        Evaluation(name="x", attempts=[])


def test_the_file_is_the_page_in_utf8(tmp_path):
    data = report("Grüße \ud800")
    write_report(data, tmp_path / "deep" / "report.html")
    written = (tmp_path / "deep" / "report.html").read_bytes().decode("utf-8")
    assert written == render_report(data)
    assert '<meta charset="utf-8">' in written[:200]
