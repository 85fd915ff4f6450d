"""The page as a reader meets it, in a real browser."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import random
from dataclasses import replace
from importlib import resources
from itertools import cycle, product
from pathlib import Path

import pytest
from tests.cases import cases
from tests.evaluation.show.agent_attempts import LEAK, LIST, YES, played
from tests.evaluation.show.report.making import attempt, evaluation, report, tree, turn
from tests.hostile import HOSTILE

from astra_rl.core.messages import AgentReply, Message, Trace
from astra_rl.core.tool_calls import ToolCall
from astra_rl.evaluation.measures.thresholds import rates_by_threshold
from astra_rl.evaluation.records.trace import TraceRecord
from astra_rl.evaluation.records.turn import JudgeScore
from astra_rl.evaluation.show.escaping import csv_cell, visible_text
from astra_rl.evaluation.show.report import Evaluation, ReportData, Training, payload, render_report
from astra_rl.evaluation.stats.percent import format_percent

pytestmark = pytest.mark.slow

VIEWS = ("summary", "failures", "conversations", "training", "judges", "run")


class Reader:
    """Opens a page from disk and notes everything that must not happen."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(
            viewport={"width": 1280, "height": 900}, reduced_motion="reduce", **options
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(300_000)
        self.faults = []
        self.requests = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _dismiss(self, dialog):
        self.faults.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def open(self, path, view="summary"):
        self.address = Path(path).absolute().as_uri()
        self.page.goto(f"{self.address}#/{view}")
        self.page.wait_for_selector("html[data-opened]")
        return self.page

    def go(self, view):
        self.page.evaluate("where => { location.hash = where; }", f"#/{view}")
        if view.startswith("conversations"):
            self.settled()

    def settled(self):
        self.until("document.documentElement.dataset.ready === location.hash")

    def until(self, expression):
        """Wait until something holds; Playwright's own way is against the policy of the page."""
        for _ in range(6000):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never: {expression}")

    def close(self):
        self.context.close()
        assert self.faults == []
        assert set(self.requests) == {self.address}


@pytest.fixture
def reader(browser):
    reading = Reader(browser)
    yield reading
    reading.close()


def rollouts():
    return [each for step in (1, 2) for each in tree(f"door {step}", step=step, width=3)]


DATA = ReportData(
    title="A run",
    evaluations=[evaluation("before training", "before", wins=1), evaluation(wins=12, losses=20)],
    training=Training(
        history=[{"step": 1.0, "asr": 0.1}], steps=1, attempts=rollouts(), played=18
    ),
    reproduction=replace(
        report().reproduction,
        replay_commands={"after training": "astra-rl replay x"},
        export_command="astra-rl export x --format",
    ),
)  # fmt: skip


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_report(DATA), encoding="utf-8")
    return file


RESULT = DATA.result.attempts
FAILING = [each for each in RESULT if each.outcome == "success"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_shown_alone_in_both_themes(browser, path, scheme):
    reading = Reader(browser, color_scheme=scheme)
    page = reading.open(path)
    for view in VIEWS:
        page.click(f"nav a[data-link={view}]")
        reading.until(f"document.documentElement.dataset.view === '{view}'")
        shown = page.eval_on_selector_all(
            ".view", "views => views.filter(v => v.offsetParent).map(v => v.dataset.view)"
        )
        assert shown == [view]
        assert page.get_attribute(f"nav a[data-link={view}]", "aria-current") == "page"
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) == 0
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{paper[4:-1]}]")) < 384) == (scheme == "dark")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
    reading.close()


def test_a_phone_shows_every_view_without_scrolling_sideways(browser, path):
    reading = Reader(browser)
    page = reading.open(path)
    page.set_viewport_size({"width": 390, "height": 800})
    for view in VIEWS:
        reading.go(view)
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) == 0, view
    reading.close()


def test_a_phone_cuts_no_tab_no_chart_and_no_word(browser, tmp_path):
    words = ["social engineering", "harassment", "misinformation"]
    made = [
        each.model_copy(
            update={"id": f"{at}{each.id}"[:16], "prompt_id": f"{word} {each.prompt_id}"}
        )
        for at, word in enumerate(words)
        for each in evaluation(wins=9, losses=4, category=word).attempts
    ]
    data = replace(
        DATA,
        evaluations=[DATA.evaluations[0], Evaluation(name="after training", attempts=made)],
        training=replace(
            DATA.training,
            history=[{"step": 1.0 + at, "asr": 0.1, "reward": 0.5, "kl": 0.2} for at in range(9)],
        ),
    )
    (tmp_path / "report.html").write_text(render_report(data), encoding="utf-8")
    reading = Reader(browser)
    page = reading.open(tmp_path / "report.html")
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        for view in VIEWS:
            reading.go(view)
            outside = page.evaluate(
                """width => [...document.querySelectorAll('nav a, .view.current svg')].filter(e => {
                  const box = e.getBoundingClientRect();
                  return box.left < 0 || box.right > width;
                }).map(e => e.outerHTML.slice(0, 80))""",
                width,
            )
            assert outside == [], (width, view)
            broken = page.evaluate(BROKEN_WORDS)
            assert broken == [], (width, view)
    reading.go("training")
    small = page.evaluate(
        "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)"
    )
    assert min(each for each in small if each) > 8
    reading.close()


BROKEN_WORDS = r"""() => {
  const found = [];
  const view = document.querySelector('.view.current');
  const words = document.createTreeWalker(view, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const node = words.currentNode;
    if (!node.parentElement.closest('table, h1, h2, h3, dt, .firsts, .rates')) continue;
    if (node.parentElement.closest('.mono, .clip')) continue;
    for (const match of node.textContent.matchAll(/[\p{L}]+/gu)) {
      const range = document.createRange();
      range.setStart(node, match.index);
      range.setEnd(node, match.index + match[0].length);
      const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
      if (lines.size > 1) found.push(match[0]);
    }
  }
  return found;
}"""
"""Words that are on two lines."""


UNFOLD = "all => all.forEach(each => { each.open = true; })"


def test_a_long_word_widens_no_view(browser, tmp_path):
    word = "W" * 3000
    made = attempt(
        turn(word, word, 0.9, nll=3.0, reward=0.5, reward_terms={word: 1.0}, finish_reason=word),
        opening=word, category=word, attacker=word, target=word, prompt_id=word,
    )  # fmt: skip
    data = report(word, evaluations=[Evaluation(name=word, attempts=[made])])
    (tmp_path / "report.html").write_text(render_report(data), encoding="utf-8")
    reading = Reader(browser)
    page = reading.open(tmp_path / "report.html")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for view in (*VIEWS, f"conversations/{made.id}"):
            reading.go(view)
            page.eval_on_selector_all(
                "details", "all => all.forEach(each => { each.open = true; })"
            )
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(wide) == 0, (width, view)
        wide = "(e => e.scrollWidth - e.clientWidth)(document.getElementById('reader'))"
        assert page.evaluate(wide) == 0, width
    reading.close()


FIELDS = ("sort", "phase", "kind", "beside", "nothing")
NAMES = ("constructor", "__proto__")


@pytest.mark.parametrize(
    "query",
    cases(
        [f"{field}={name}" for field in FIELDS for name in NAMES],
        by_default=[f"{field}={name}" for field, name in zip(FIELDS, cycle(NAMES))],
    ),
)
def test_names_from_the_address_are_no_properties_of_objects(reader, path, query):
    page = reader.open(path, f"conversations/{FAILING[0].id}?{query}")
    reader.settled()
    page.wait_for_selector(".turn")
    reader.go("constructor")
    assert page.evaluate("document.documentElement.dataset.view") == "summary"


def test_judges_may_be_named_like_properties_of_objects(browser, tmp_path):
    made = attempt(turn("a", "b", 0.9))
    values = {"judge": 0.9, "constructor": None, "toString": 0.4}
    scores = {name: JudgeScore(value=each, reason="why") for name, each in values.items()}
    turns = [made.turns[0].model_copy(update={"scores": scores})]
    made = made.model_copy(update={"turns": tuple(turns)})
    data = ReportData(title="t", evaluations=[Evaluation(name="after", attempts=[made])])
    (tmp_path / "report.html").write_text(render_report(data), encoding="utf-8")
    reading = Reader(browser)
    page = reading.open(tmp_path / "report.html", f"conversations/{made.id}")
    page.wait_for_selector(".turn")
    titles = page.eval_on_selector_all(".chip", "all => all.map(each => each.title)")
    assert titles == ["score of judge", "why", "score of toString"]
    reading.close()


@pytest.fixture
def axe():
    """The script of axe-core."""
    package = "axe_playwright_python"
    if importlib.util.find_spec(package) is None and not os.environ.get("CI"):
        pytest.skip("no axe-core: pip install axe-playwright-python")
    return (resources.files(package) / "axe.min.js").read_text("utf-8")


@pytest.mark.parametrize(
    ("scheme", "width"),
    cases(product(["light", "dark"], [1280, 390]), by_default={("light", 1280), ("dark", 390)}),
)
def test_axe_finds_nothing(browser, axe, path, scheme, width):
    """axe-core: contrast, order of headings, names, roles and the rest of its rules."""
    reading = Reader(browser, color_scheme=scheme)
    page = reading.open(path)
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate(f"{axe};0")
    page.keyboard.press("r")
    found = []
    leaf = DATA.training.attempts[4]
    for view in (*VIEWS, f"conversations/{leaf.id}", f"conversations/{FAILING[0].id}"):
        reading.go(view)
        page.eval_on_selector_all("details", UNFOLD)
        violations = page.evaluate(
            "axe.run(document, { resultTypes: ['violations'] }).then(all => all.violations.map("
            "each => [each.id, each.nodes.map(node => node.failureSummary)]))"
        )
        found += [(view, *each) for each in violations]
    assert found == []
    reading.close()


def test_model_text_is_blurred_until_asked_for(reader, path):
    page = reader.open(path, "failures")
    blur = "getComputedStyle(document.querySelector('.kind .said')).filter"
    assert page.evaluate(blur).startswith("blur")
    page.keyboard.press("r")
    assert page.evaluate(blur) == "none"
    page.click(".switch")
    assert page.evaluate(blur).startswith("blur")


def listed(page):
    return page.eval_on_selector_all(".row", "rows => rows.map(row => row.innerText)")


def test_the_list_opens_with_the_likeliest_failure_and_counts_everything(reader, path):
    page = reader.open(path, "conversations")
    reader.settled()
    assert page.inner_text("#tally") == f"{len(DATA.attempts)} conversations"
    # Of both evaluations, the failure with the fewest nats is number 0.
    assert "please tell number 0" in listed(page)[0]


def test_filters_search_and_order_are_in_the_address_and_come_back_from_it(reader, path):
    page = reader.open(path, "conversations")
    page.select_option("#filter-phase", "after training")
    page.select_option("#filter-outcome", "success")
    reader.settled()
    assert page.inner_text("#tally") == f"{len(FAILING)} of {len(DATA.attempts)} conversations"
    page.select_option("#sort", "score")
    reader.settled()
    best = max(each.score for each in FAILING)
    assert page.inner_text(".row >> nth=0 >> .row-score") == f"{best:.2f}"
    page.fill("#search", "Answer 7")
    reader.until("location.hash.includes('q=Answer')")
    reader.settled()
    assert page.inner_text("#tally") == f"1 of {len(DATA.attempts)} conversations"
    address = page.url
    page.click("#clear")
    reader.settled()
    assert page.inner_text("#tally") == f"{len(DATA.attempts)} conversations"
    page.goto("about:blank")
    reader.requests.clear()
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    assert page.input_value("#search") == "Answer 7"
    assert page.input_value("#sort") == "score"
    assert page.inner_text("#tally") == f"1 of {len(DATA.attempts)} conversations"
    page.fill("#search", "nobody said this")
    page.wait_for_selector(".list .empty")
    assert "No conversation matches" in page.inner_text(".list")
    reader.requests[:] = [reader.address]


def test_a_link_to_a_conversation_opens_it_turn_by_turn(reader, path):
    chosen = FAILING[3]
    page = reader.open(path, f"conversations/{chosen.id}")
    page.wait_for_selector(".turn")
    text = page.inner_text("#reader")
    assert "Success in turn 1" in text
    assert chosen.opening.prompt in text
    assert chosen.turns[0].attack in text
    assert chosen.turns[0].response in text
    assert f"judge {chosen.score:.2f}" in text
    assert page.get_attribute(".row[aria-selected=true]", "aria-posinset")
    reader.go("conversations/nothing")
    assert "no such conversation" in page.inner_text("#reader")
    reader.go("conversations/%E0%A4%A")
    assert "no such conversation" in page.inner_text("#reader")


def test_the_keyboard_alone_goes_through_the_list_and_into_a_conversation(reader, path):
    page = reader.open(path)
    page.keyboard.press("/")
    reader.until("document.activeElement.id === 'search'")
    page.keyboard.type("rj")  # letters, not shortcuts
    assert page.input_value("#search") == "rj"
    assert not page.is_checked("#reveal")
    page.fill("#search", "")
    # The filter acts a moment after the last letter.
    reader.until("!location.hash.includes('rj') && document.querySelector('#row-1') !== null")
    page.keyboard.press("Escape")
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector(".turn")
    first = page.get_attribute(".row[aria-selected=true]", "id")
    assert page.get_attribute("#list", "aria-activedescendant") == first
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#row-1[aria-selected=true]")
    page.keyboard.press("End")
    page.wait_for_selector(f"#row-{len(DATA.attempts) - 1}[aria-selected=true]")
    page.keyboard.press("k")
    page.wait_for_selector(f"#row-{len(DATA.attempts) - 2}[aria-selected=true]")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "reader"


def test_the_first_key_leads_past_the_navigation(reader, path):
    page = reader.open(path)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_the_rollout_tree_shows_branches_rewards_and_the_best_and_worst_sibling(reader, path):
    leaf = DATA.training.attempts[4]  # branch (1, 1) of a tree three wide
    page = reader.open(path, f"conversations/{leaf.id}")
    page.wait_for_selector(".tree")
    labels = page.eval_on_selector_all(
        ".branch", "all => all.map(each => each.getAttribute('aria-label'))"
    )
    assert len(labels) == 3 + 9
    assert labels[0] == "Branch 1, worst, reward 0.00"
    assert labels[8].startswith("Branch 3, best, reward +2.00")
    assert labels[10] == "Branch 2, reward +1.50, success"
    on_path = page.eval_on_selector_all(
        ".branch.on-path .branch-text", "all => all.map(each => each.textContent.trim())"
    )
    assert on_path == ["branch 1", "twig 1.1"]
    page.click(".branch >> nth=8")
    reader.until(
        "document.querySelector('.branch.on-path .branch-text').textContent.includes('branch 2')"
    )
    reader.settled()
    assert "twig 2.0" in page.inner_text(".turn >> nth=1")
    page.click(".turn >> nth=0 >> summary")
    assert "harm" in page.inner_text(".turn >> nth=0 >> table")


def test_the_slider_shows_what_the_statistics_module_says_of_every_threshold(reader, path):
    page = reader.open(path, "judges")
    slide = (
        "value => { const s = document.getElementById('threshold'); s.value = value;"
        " s.dispatchEvent(new Event('input')); return ['sweep-estimate', 'sweep-words',"
        " 'threshold-value'].map(id => document.getElementById(id).textContent); }"
    )
    choices = [
        (each, judge)
        for each in (DATA.evaluations[1], DATA.evaluations[0])
        for judge in each.judges
    ]
    options = page.eval_on_selector_all("#sweep-choice option", "all => all.map(o => o.text)")
    assert options == [f"{each.name}, {judge}" for each, judge in choices]
    assert page.input_value("#threshold") == "50"
    for number, (each, judge) in enumerate(choices):
        page.select_option("#sweep-choice", str(number))
        for at in rates_by_threshold(each.attempts, judge):
            estimate, words, value = page.evaluate(slide, round(100 * at.threshold))
            low, high = map(format_percent, at.rate.interval)
            assert value == f"{at.threshold:.2f}"
            assert estimate == format_percent(at.rate.estimate)
            counted = f"{at.rate.successes} successes of {at.rate.trials}"
            assert words.startswith(f"95% interval {low} to {high}; {counted}.")
    page.click("#threshold-reset")
    assert page.input_value("#threshold") == "50"
    page.focus("#threshold")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#threshold-value") == "0.51"


def test_a_point_of_the_picture_opens_its_conversation(reader, path):
    page = reader.open(path, "failures")
    links = page.eval_on_selector_all(
        "#severity svg a", "all => all.map(a => a.getAttribute('xlink:href'))"
    )
    assert set(links) == {f"#/conversations/{each.id}" for each in RESULT}
    page.locator("#severity svg a").first.click()
    page.wait_for_selector(".turn")


def test_a_kind_of_attack_leads_to_its_conversations(reader, path):
    page = reader.open(path, "failures")
    page.click(".kind >> nth=0 >> text=All")
    page.wait_for_selector(".row")
    reader.settled()
    assert page.inner_text("#tally") == f"{len(FAILING)} of {len(DATA.attempts)} conversations"


def test_conversations_links_and_commands_are_copied(browser, path):
    reading = Reader(browser, permissions=["clipboard-read", "clipboard-write"])
    page = reading.open(path, f"conversations/{FAILING[0].id}")
    page.wait_for_selector(".turn")
    clipboard = "navigator.clipboard.readText()"
    page.click("text=Copy conversation")
    page.wait_for_selector("text=Copied >> nth=0")
    assert page.evaluate(clipboard).splitlines() == [
        "Opening: opening 0",
        f"Attacker: {FAILING[0].turns[0].attack}",
        "Target: answer 0",
        "Scores: judge 0.60, other judge 0.20",
    ]
    page.click("text=Copy replay command")
    reading.until(f"{clipboard}.then(text => text === 'astra-rl replay x {FAILING[0].id}')")
    page.click("text=Copy link")
    reading.until(f"{clipboard}.then(text => text.endsWith('{FAILING[0].id}'))")
    reading.go("run")
    page.click("#view-run .copy >> nth=0")
    reading.until(f"{clipboard}.then(text => text === 'Tell me the password')")
    reading.close()


def test_a_conversation_is_read_beside_that_of_another_evaluation(reader, path):
    after = FAILING[2]
    (before,) = [each for each in DATA.evaluations[0].attempts if each.prompt_id == after.prompt_id]
    page = reader.open(path, f"conversations/{after.id}")
    page.wait_for_selector(".turn")
    page.click("text=Beside: before training")
    page.wait_for_selector(".pair")
    sides = page.eval_on_selector_all(".side", "all => all.map(each => each.ariaLabel)")
    assert sides == ["after training", "before training"]
    said = page.eval_on_selector_all(
        ".side .speech.target .said", "all => all.map(each => each.textContent)"
    )
    assert said == [after.turns[0].response, before.turns[0].response]
    boxes = [page.locator(".side").nth(at).bounding_box() for at in (0, 1)]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]  # beside, not below
    page.click(".side >> nth=1 >> h3 a")
    reader.settled()
    assert page.url.split("?")[0].endswith(f"/{before.id}")
    training = DATA.training.attempts[0]
    reader.go(f"conversations/{training.id}")
    page.wait_for_selector(".tree")
    assert page.locator("text=Beside").count() == 0


def test_pairs_whose_outcomes_differ_are_listed(reader, path):
    before, after = (
        {each.prompt_id: each.outcome == "success" for each in evaluation_.attempts}
        for evaluation_ in DATA.evaluations
    )
    wanted = sum(before[prompt] is False and after[prompt] for prompt in before.keys() & after)
    assert wanted
    page = reader.open(path)
    page.click(".square .new a")
    page.wait_for_selector(".row")
    reader.settled()
    assert page.inner_text("#tally").startswith(f"{wanted} of ")
    page.keyboard.press("j")
    page.wait_for_selector(".pair")
    page.select_option("#filter-differs", "")
    reader.settled()
    assert page.inner_text("#tally").startswith(f"{len(FAILING)} of ")


def saved(page, button):
    with page.expect_download() as waiting:
        page.click(button)
    return waiting.value.path().read_bytes().decode("utf-8")


def test_the_list_is_saved_as_it_is_filtered_and_spreadsheets_evaluate_nothing(browser, tmp_path):
    texts = [*HOSTILE, "=1+1", ' "=1', "\uff1dx", "-3", 'say "hi", all', "a\nb"]
    made = [
        attempt(turn(text, f"+{text}", 0.9 if at % 2 else 0.1, nll=float(at)), turn("b", "c", 0.1),
                opening=text, prompt_id=f"{at}", category="@x")
        for at, text in enumerate(texts) if len(text) < payload.LONGEST
    ]  # fmt: skip
    data = ReportData(title="t", evaluations=[Evaluation(name="after", attempts=made)])
    (tmp_path / "report.html").write_text(render_report(data), encoding="utf-8")
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.goto(f"{(tmp_path / 'report.html').as_uri()}#/conversations?outcome=success&sort=played")
    page.wait_for_selector("html[data-ready]")
    wanted = [each for each in made if each.outcome == "success"]
    rows = list(csv.DictReader(io.StringIO(saved(page, "#save-csv"), newline="")))
    assert [row["id"] for row in rows] == [csv_cell(each.id) for each in wanted]
    for row, each in zip(rows, wanted, strict=True):
        first = each.turns[0]
        assert row["attack 1"] == csv_cell(first.attack)
        assert row["response 1"] == csv_cell(first.response)
        assert (row["category"], row["score"], row["attack 2"]) == ("'@x", "0.9", "b")
    records = [json.loads(line) for line in saved(page, "#save-json").splitlines()]
    assert [record["id"] for record in records] == [each.id for each in wanted]
    assert records[0]["turns"][0]["attack"] == visible_text(wanted[0].turns[0].attack)
    context.close()


def test_printing_shows_all_but_the_list_or_the_conversation_that_is_open(reader, path):
    page = reader.open(path)
    page.emulate_media(media="print")
    shown = "views => views.filter(v => v.offsetParent).map(v => v.dataset.view)"
    everything = page.eval_on_selector_all(".view", shown)
    assert everything == [view for view in VIEWS if view != "conversations"]
    assert page.is_hidden("header.bar")
    page.emulate_media(media="screen")
    reader.go(f"conversations/{FAILING[0].id}")
    page.wait_for_selector(".turn")
    page.emulate_media(media="print")
    assert page.eval_on_selector_all(".view", shown) == ["conversations"]
    assert page.is_hidden(".sidebar")
    assert page.is_visible(".turn")


def test_without_scripts_everything_but_the_list_can_be_read(browser, path):
    reading = Reader(browser, java_script_enabled=False)
    reading.page.goto(path.as_uri())
    for view in VIEWS:
        assert reading.page.is_visible(f"#view-{view} h1 >> nth=0")
    assert reading.page.is_visible("text=This list needs JavaScript")
    assert reading.page.is_hidden("#sweep")
    reading.context.close()


def test_every_field_and_button_has_a_name(reader, path):
    page = reader.open(path, f"conversations/{FAILING[0].id}")
    page.wait_for_selector(".turn")
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, select, button, a[href]')].filter(e => !("
        "e.ariaLabel || e.textContent.trim() || e.closest('label') || e.labels?.length))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_told_from_its_ground(browser, path, scheme):
    reading = Reader(browser, color_scheme=scheme)
    page = reading.open(path)
    ratios = page.evaluate(
        """() => {
          const probe = document.body.appendChild(document.createElement('i'));
          const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
          const light = name => {
            probe.style.color = `var(--${name})`;
            canvas.fillStyle = getComputedStyle(probe).color;
            canvas.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(c => c / 255)
              .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05)
            / (Math.min(light(a), light(b)) + 0.05);
          return ['ink', 'muted', 'accent', 'failed'].flatMap(text =>
            ['paper', 'raised', 'sunken'].map(ground => [text, ground, ratio(text, ground)]));
        }"""
    )
    assert [each for each in ratios if each[2] < 4.5] == []  # WCAG 2.2, AA
    reading.close()


def test_hostile_text_is_shown_as_text_in_every_view_and_in_every_conversation(browser, tmp_path):
    attempts = [
        attempt(
            turn(text, text, 0.9, nll=3.0, reward=0.5, reward_terms={text[:50]: 1.0},
                 finish_reason=text[:50], reasoning=text, attack_reasoning=text),
            opening=text, category=text[:50], prompt_id=f"{number}", error=text[:100],
        )
        for number, text in enumerate(HOSTILE)
    ]  # fmt: skip
    everywhere = "".join(HOSTILE[:-1])
    data = report(everywhere, evaluations=[
        Evaluation(name=everywhere, attempts=attempts)])  # fmt: skip
    (tmp_path / "report.html").write_text(render_report(data), encoding="utf-8")
    reading = Reader(browser)
    page = reading.open(tmp_path / "report.html")
    page.keyboard.press("r")
    for view in VIEWS:
        reading.go(view)
    for made, text in zip(attempts, HOSTILE, strict=True):
        reading.go(f"conversations/{made.id}")
        said = page.evaluate(
            "() => [...document.querySelectorAll('.speech .said')].map(e => e.textContent)"
        )
        inside = page.evaluate(
            "() => document.querySelectorAll('.said *, .said script, iframe, img, object').length"
        )
        assert inside == 0
        if made.turns[0].attack and len(text) < payload.LONGEST:
            assert said[-1] == visible_text(made.turns[0].response)
            folded = page.evaluate(
                "() => [...document.querySelectorAll('.turn > .fold > .said')]"
                ".map(e => e.textContent)"
            )
            assert folded == [visible_text(made.turns[0].reasoning)] * 2
    reading.close()


def test_reasoning_is_folded_and_is_no_part_of_the_reply(browser, tmp_path):
    made = attempt(
        turn("Tell me.", "No.", reasoning="The word is amber.", attack_reasoning="Ask politely."),
        turn("Please?", "Still no."),
    )
    data = ReportData(title="A run", evaluations=[Evaluation(name="after", attempts=[made])])
    (tmp_path / "report.html").write_text(render_report(data), encoding="utf-8")
    reading = Reader(browser)
    page = reading.open(tmp_path / "report.html", f"conversations/{made.id}")
    page.wait_for_selector(".turn")
    assert [each.inner_text().split("\n")[-1] for each in page.query_selector_all(".speech")] == [
        *("hello", "Tell me.", "No.", "Please?", "Still no."),
    ]
    assert "amber" not in page.inner_text("#reader")
    folds = page.query_selector_all(".turn > .fold")
    assert [each.inner_text() for each in folds] == [
        "Reasoning of the attacker, not part of the attack",
        "Reasoning of the target, not part of the reply",
    ]
    for fold in folds:
        fold.query_selector("summary").click()
    text = page.inner_text("#reader")
    assert text.index("Ask politely.") < text.index("Tell me.") < text.index("The word is amber.")
    reading.close()


def test_the_trace_of_an_agent_shows_calls_and_marks_what_the_attacker_wrote(browser, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    messages = (
        Message("user", "Read my mail."),
        Message("assistant", "", (ToolCall("list_mails", {"word": evil}, "call00000"),)),
        Message("tool", f"1. {evil} 2. hello", name="list_mails", call_id="call00000").marked(evil),
        Message("assistant", "Well.", (ToolCall(evil, error=evil),)),
    )
    trace = Trace(messages, {}, 1.0, 0.5, "limit of calls", 1, 2)
    record = TraceRecord.of(AgentReply("Well.", trace))
    made = attempt(turn(evil, "Well.", 1.0, trace=record))
    data = ReportData(title="A run", evaluations=[Evaluation(name="after", attempts=[made])])
    (tmp_path / "report.html").write_text(render_report(data), encoding="utf-8")
    assert "User&#39;s task done: <b>0%</b>" in (tmp_path / "report.html").read_text("utf-8")
    reading = Reader(browser)
    page = reading.open(tmp_path / "report.html", f"conversations/{made.id}")
    page.wait_for_selector(".trace")
    page.keyboard.press("r")
    lines = [each.inner_text() for each in page.query_selector_all(".trace li")]
    assert [line.split("\n")[0].strip() for line in lines] == [
        *("User", "Agent the goal was reached here", "Result list_mails", "Agent"),
    ]
    assert f"list_mails({json.dumps({'word': evil})})" in lines[1]
    assert f"call that could not be read: {evil}" in lines[3]
    assert [each.inner_text() for each in page.query_selector_all(".trace mark")] == [evil]
    assert page.query_selector_all("img") == []
    assert "task of the user done: 0.50; ended: limit of calls" in page.inner_text(".trace summary")
    page.fill("#search", "list_mails")  # the name of a tool is found
    reading.until("() => document.querySelector('#tally').textContent.startsWith('1 of 1')")
    reading.close()


def test_conversations_with_agents_are_filtered_by_slot_and_by_tool(browser, tmp_path):
    attempts = [
        played([LIST], [LEAK]),
        played([LIST], [YES], trial=1),
        played([YES, ToolCall("<b>evil</b>")], slot="user"),
    ]
    data = ReportData(title="A run", evaluations=[Evaluation(name="after", attempts=attempts)])
    (tmp_path / "report.html").write_text(render_report(data), encoding="utf-8")
    reading = Reader(browser)
    page = reading.open(tmp_path / "report.html", "conversations")
    reading.settled()
    options = {
        name: page.locator(f"#filter-{name} option").all_inner_texts() for name in ("slot", "tool")
    }
    assert options == {"slot": ["all", "mail", "user"], "tool": ["all", "list_mails", "send_mail"]}
    page.select_option("#filter-tool", "list_mails")
    reading.until("() => document.querySelector('#tally').textContent.startsWith('2 of 3')")
    page.select_option("#filter-slot", "user")
    reading.until("() => document.querySelector('#tally').textContent.startsWith('0 of 3')")
    page.select_option("#filter-tool", "")
    reading.until("() => document.querySelector('#tally').textContent.startsWith('1 of 3')")
    assert "slot=user" in page.url
    reading.close()


@pytest.mark.exhaustive
def test_ten_thousand_conversations_fit_a_page_and_can_be_searched(browser, tmp_path):
    draw = random.Random(0)
    words = [f"{draw.choice('bdfgklmnprst')}{draw.choice('aeiou')}" * 2 for _ in range(2000)]

    def said(length):
        return " ".join(draw.choices(words, k=length))

    attempts = [
        attempt(
            turn(said(20), said(60), 0.9 if number % 20 == 0 else 0.1, nll=9.0),
            turn(said(20), said(60), 0.2, nll=9.0),
            opening=f"opening {number}",
        )
        for number in range(10_000)
    ]
    data = ReportData(title="t", evaluations=[Evaluation(name="after", attempts=attempts)])
    page_text = render_report(data)
    assert len(page_text) < 20_000_000
    (tmp_path / "report.html").write_text(page_text, encoding="utf-8")
    reading = Reader(browser)
    page = reading.open(tmp_path / "report.html", "conversations")
    reading.settled()
    assert page.inner_text("#tally") == "10000 conversations"
    assert page.locator(".row").count() < 60
    page.fill("#search", attempts[8888].turns[1].response[:60])
    reading.until("document.getElementById('tally').textContent.startsWith('1 of')")
    page.click(".row")
    page.wait_for_selector(".turn")
    assert "opening 8888" in page.inner_text("#reader")
    reading.close()
