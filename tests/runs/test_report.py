"""From the folder of a run to its page."""

import html
import json
import math
import os
import re
import subprocess
import sys
import tracemalloc

import pytest
import yaml
from tests.cases import cases
from tests.evaluation.show.report.making import attempt, evaluation, report, tree, turn, unpacked
from tests.formats import FORMATS

from astra_rl.actions import compare as comparing
from astra_rl.actions.export import export_run
from astra_rl.actions.failures import rank_failures
from astra_rl.config.schema import RunConfig
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.measures import likely_failures
from astra_rl.evaluation.measures.likely_failures import severity_and_likelihood
from astra_rl.evaluation.records.turn import LogProb
from astra_rl.evaluation.show.report import Spent, render_report
from astra_rl.evaluation.stats.importance import Sample, failure_probability
from astra_rl.evaluation.stats.intervals import Interval
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.evaluation.stats.splitting import RareProbability
from astra_rl.runs import evaluations as evaluating
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import RunFolder
from astra_rl.runs.recorded import StoredAttempts, plan_attempts
from astra_rl.runs.report import read_run, render_run_page, write_run_page
from astra_rl.targets.accounts import Account

pytestmark = pytest.mark.slow


def config(**changes):
    values = {
        "title": "Does it keep its word?",
        "attacker": {"model": "a"},
        "target": {"model": "b"},
        "moderator": {"type": "secret_leak"},
        "prompts": {"scenario": "planted_secrets"},
        "training": {"steps": 9},
    }
    return RunConfig.model_validate({**values, **changes})


def write(path, attempts):
    with AttemptLog(path, write=True) as log:
        for each in attempts:
            log.append(each)


@pytest.fixture
def begun(tmp_path):
    """A run in the middle of its training."""
    folder = RunFolder(tmp_path / "run")
    folder.write_text(folder.config, config().to_yaml())
    folder.write_json(folder.manifest, {"command": "astra-rl train x.yaml", "seed": 3})
    write(
        folder.attempts,
        [*evaluation(phase="before", wins=1).attempts, *tree(), *tree(step=2, trial=1)],
    )
    folder.write_lines(folder.metrics, [{"step": 1, "asr": 0.1}, {"step": 2, "asr": 0.3}])
    return folder


@pytest.fixture
def finished(begun):
    """The same run at its end."""
    write(begun.attempts, evaluation(phase="after").attempts)
    begun.write_json(begun.evaluation("after"), {"judge_quality": None})
    begun.write_json(
        begun.manifest, {"seed": 3, "seconds": {"training": 60.0}, "warnings": ["It pleases."]}
    )
    return begun


def prose(page):
    page = re.sub(r"<(style|script|svg).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(page).split())


def test_a_finished_run_has_its_verdict_its_past_and_its_trees(finished):
    data = read_run(finished)
    assert data.title == "Does it keep its word?"
    assert [each.name for each in data.evaluations] == ["before training", "after training"]
    assert data.result.name == "after training"
    assert data.finished
    assert data.warnings == ["It pleases."]
    page = render_run_page(finished)
    assert "38% Attack success rate: the target failed in 3 of 8" in prose(page)
    index = unpacked(page, "index")
    assert len(index["columns"]["id"]) == 6 + 8 + 8
    assert max(index["columns"]["episode"]) == 6 + 8 + 2 - 1


@pytest.mark.parametrize(
    "command",
    ["report {run}", "compare {run} {run}", "export {run} --format jsonl", "failures {run}"],
)
def test_commands_on_a_finished_run_load_no_model_library(finished, command):
    code = """
import contextlib, sys
from astra_rl.cli import main
with contextlib.suppress(SystemExit):
    main.run()
print([name for name in ("torch", "transformers", "peft") if name in sys.modules], file=sys.stderr)
"""
    arguments = command.format(run=finished.path).split()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    assert "Usage:" not in done.stderr


def test_the_same_files_give_the_same_page(finished):
    page = render_run_page(finished)
    assert write_run_page(finished) == finished.report
    assert finished.report.read_text("utf-8") == page
    assert finished.learning_curve.is_file()
    elsewhere = finished.path / "deep" / "page.html"
    assert write_run_page(finished, elsewhere).read_text("utf-8") == page


def test_bands_of_the_curves_are_intervals_of_the_recorded_conversations(begun):
    begun.write_lines(
        begun.metrics,
        [{"step": 1, "asr": 0.25, "reward": 0.5, "reward_std": 0.2}, {"step": 9, "asr": 0.3}],
    )
    first, other = read_run(begun).training.history
    outcomes = [each.outcome == "success" for each in tree()]
    interval = Rate.of_prompts([(sum(outcomes), len(outcomes))]).interval
    assert (first["asr/low"], first["asr/high"]) == interval
    assert (first["reward/low"], first["reward/high"]) == pytest.approx((0.3, 0.7))
    assert "asr/low" not in other  # no conversation of this step was recorded


def test_an_estimate_by_splitting_and_all_spending_are_read(finished):
    rare = RareProbability(1e-5, Interval(0.0, 4e-5), math.nan, (1e-5,), 90, 2.5, Rate(1, 80))
    path = finished.path / "probability_rare.json"
    finished.write_json(path, rare.as_dict())
    assert str(read_run(finished).rare) == str(rare)  # NaN is not equal to itself
    total = {"requests": 7, "failed_tries": 1, "cached": 2, "input_tokens": 30,
             "output_tokens": 4, "cost": 0.5}  # fmt: skip
    finished.write_json(finished.path / "ledger_replay.json", {"total": total})
    finished.write_json(finished.path / "ledger_rare.json", {"total": {"requests": 0}})
    assert read_run(finished).reproduction.spent == [Spent("replay", Account(7, 1, 2, 30, 4, 0.5))]
    finished.write_json(path, {"estimate": "much"})
    with pytest.raises(ConfigurationError, match="holds no estimate"):
        read_run(finished)


def test_the_probability_of_a_rare_answer_is_on_the_page(finished):
    samples = [Sample(True, -9.0, -3.0, False)] * 40 + [Sample(False, -7.0, -9.0, True)] * 60
    for found in (failure_probability(samples), failure_probability(samples[40:])):
        finished.write_json(
            finished.path / "probability_answers.json",
            {
                "target": "mine", "proposals": ["steered by '<b>'"], "messages": 1,
                **found.as_dict(), "failures": [{"answer": "<script>"}],
            },
        )  # fmt: skip
        page = render_run_page(finished)
        assert "Probability of a failing answer to these messages" in page
        assert "1 proposal (steered by &#39;&lt;b&gt;&#39;)" in page
        assert "<script>" not in page.partition("Probability of a failing answer")[2][:900]
    assert "Not estimated: no failure was seen" in page
    finished.write_json(finished.path / "probability_answers.json", {"estimate": "much"})
    with pytest.raises(ConfigurationError):
        read_run(finished)


def test_a_run_that_has_not_ended_has_a_page_and_says_so(begun):
    data = read_run(begun)
    assert not data.finished
    assert data.result.name == "before training"
    text = prose(render_run_page(begun))
    assert "This run has not finished. 2 of 9 training steps are recorded." in text
    assert "The results below are of the untrained attacker." in text


def test_half_an_evaluation_is_not_taken_for_a_result(begun):
    write(begun.attempts, evaluation(phase="after").attempts[:2])
    assert [each.name for each in read_run(begun).evaluations] == ["before training"]


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert "No evaluation has been recorded yet" in prose(render_run_page(folder))
    folder.write_text(folder.config, config().to_yaml())
    assert "0 of 9 training steps" in prose(render_run_page(folder))


def test_files_that_are_being_written_are_read_as_far_as_they_go(begun):
    with begun.metrics.open("a") as file:
        file.write('{"step": 3, "as')
    with AttemptLog(begun.attempts, write=True) as log:
        log.append(attempt(turn("said just now", "yes", 0.9), phase="training", step=3))
        log.flush()
        line = attempt(turn("half", "of", 0.9), phase="training", step=4).to_json()
        with begun.attempts.open("ab") as file:
            file.write(line[: len(line) // 2].encode())
        data = read_run(begun)
        assert [row["step"] for row in data.training.history] == [1, 2]
        assert data.training.attempts[-1].turns[0].attack == "said just now"
        # Not to be closed by a writer that would complain of the other one.
        begun.attempts.write_bytes(begun.attempts.read_bytes()[: -(len(line) // 2)])


def test_other_judges_that_were_asked_later_stand_beside_the_first(finished):
    again = [
        each.judged("another", [0.9] * len(each.turns), threshold=0.5)
        for each in evaluation(phase="after").attempts
    ]
    write(finished.attempts_of("after_another"), again)
    result = read_run(finished).result
    assert result.judge == "judge"
    assert list(result.judges) == ["judge", "other judge", "another"]
    assert result.summary.asr.successes == 3
    assert "judge and another agree on 38% of 8 turns" in prose(render_run_page(finished))


def test_a_later_evaluation_is_compared_and_does_not_take_the_place_of_the_result(finished):
    write(finished.attempts_of("again"), evaluation(phase="again", wins=5, losses=3).attempts)
    data = read_run(finished)
    assert data.result.name == "after training"
    text = prose(render_run_page(finished))
    assert "Attack success rate: evaluated again 25 points higher than after training" in text


def test_the_folder_of_an_evaluation_alone_has_a_page(tmp_path):
    folder = RunFolder(tmp_path / "next")
    write(folder.attempts_of("again"), evaluation(phase="again").attempts)
    assert read_run(folder).result.name == "evaluated again"
    assert "3 of 8 held-out conversations (evaluated again)" in prose(render_run_page(folder))


def test_transfers_make_a_matrix(finished):
    for target, wins in (("x", 1), ("y", 4)):
        folder = RunFolder(finished.path / "transfer" / target)
        made = evaluation(phase="again", wins=wins, losses=1, target=target)
        write(folder.attempts_of("again"), made.attempts)
    cells = read_run(finished).transfer
    assert [(cell["target"], cell["successes"]) for cell in cells] == [("x", 1), ("y", 4)]
    finished.write_json(finished.transfer, cells[:1])
    assert [cell["target"] for cell in read_run(finished).transfer] == ["x"]


def test_what_is_planned_is_told_from_what_was_done(finished):
    plan_attempts(finished, "after", 10)
    assert read_run(finished).result.summary.never_made == 2


def test_the_probability_in_ordinary_use_is_computed_again_from_its_record(finished):
    logprobs = {
        "baseline": LogProb(total=-4.0, tokens=4), "attacker": LogProb(total=-3.0, tokens=4)
    }  # fmt: skip
    made = [
        attempt(
            turn("a", "b", 0.9 if number % 4 == 0 else 0.1).model_copy(
                update={"logprobs": logprobs}
            ),
            opening=f"{number}", phase="ordinary",
            attacker="ordinary use" if number % 2 else "attacker",
        )
        for number in range(100)
    ]  # fmt: skip
    write(finished.attempts_of("ordinary"), made)
    assert read_run(finished).probability is None
    finished.write_json(finished.path / "probability.json", {})
    # 25 of 100, each with the density of the baseline over the mean of both densities: 2 / (1 + e).
    assert read_run(finished).probability.estimate == pytest.approx(0.25 * 2 / (1 + math.e))
    assert "About 13%" in prose(render_run_page(finished))


def test_comparisons_that_were_kept_are_shown(finished):
    kept = report().comparisons[0]
    finished.write_json(finished.path / "comparisons" / "a-b.json", kept)
    assert read_run(finished).comparisons == [kept]


def test_long_trainings_are_shown_in_whole_trees_evenly_chosen(begun, monkeypatch):
    monkeypatch.setattr(evaluating, "MOST_CONVERSATIONS", 20)
    write(begun.attempts, [each for step in range(3, 13) for each in tree(f"{step}", step=step)])
    training = read_run(begun).training
    assert training.played == 48
    assert 12 <= len(training.attempts) <= 20
    steps = [each.step for each in training.attempts]
    assert all(steps.count(step) == 4 for step in steps)
    assert "of them, as complete trees" in prose(render_run_page(begun))


def test_long_evaluations_are_counted_whole_and_shown_in_part(finished, monkeypatch):
    """Also the examples that the page links to are shown, and nothing else is linked."""
    reasons = [
        attempt(turn("a", "", None), opening=f"failed {number}", phase="after", error=reason)
        for number, reason in enumerate(["no route", "no route", "time is up"])
    ]
    more = evaluation(phase="after", wins=60, losses=140).attempts
    write(finished.attempts, [*more, *reasons])
    finished.write_json(finished.planned, {"after": 210})
    whole = read_run(finished)
    monkeypatch.setattr(evaluating, "MOST_CONVERSATIONS", 20)
    part = read_run(finished)
    assert whole.result.not_shown == 0
    assert len(part.result.attempts) + part.result.not_shown == 203
    assert len(part.result.attempts) < 20 + 50 + 2 + 100
    assert all(each in whole.result.attempts for each in part.result.attempts)
    assert part.result.summary == whole.result.summary
    assert part.result.summary.never_made == 7
    assert part.result.numbers.ranking == whole.result.numbers.ranking
    assert part.result.numbers.trials == whole.result.numbers.trials
    page, complete = render_run_page(finished), render_report(whole)
    assert unpacked(page, "index")["sweeps"] == unpacked(complete, "index")["sweeps"]
    linked = set(re.findall(r'href="#/conversations/([0-9a-f]{16})', page))
    assert linked <= set(unpacked(page, "index")["columns"]["id"])
    text = prose(page)
    assert "60 of 200" in text
    assert (
        f"Of the 203 conversations after training the list has {len(part.result.attempts)}" in text
    )
    assert "Of the" not in prose(complete)


def test_the_memory_of_a_report_does_not_grow_with_its_attempts(finished, monkeypatch):
    monkeypatch.setattr(evaluating, "MOST_CONVERSATIONS", 20)
    peaks = []
    for count in (40, 240):
        folder = RunFolder(finished.path.with_name(f"of {count}"))
        folder.write_text(folder.config, config().to_yaml())
        folder.write_json(folder.evaluation("after"), {})
        long = (
            attempt(turn(f"{number}", "so " * 10_000, 0.1), opening=f"{number}", phase="after")
            for number in range(count)
        )
        write(folder.attempts, long)
        peaks.append(peak_of(lambda folder=folder: read_run(folder)))
    assert peaks[1] < peaks[0] + 1_000_000  # its texts are 6 MB larger


def test_the_memory_of_a_comparison_does_not_grow_with_its_attempts(finished, monkeypatch):
    """Attempts that succeed on one side only are listed up to a limit."""
    monkeypatch.setattr(comparing, "MOST_LISTED", 10)
    peaks = []
    for count in (40, 240):
        sides = []
        for name, score in (("a", 0.9), ("b", 0.1)):
            folder = RunFolder(finished.path.with_name(f"{name} of {count}"))
            folder.write_text(folder.config, config().to_yaml())
            made = (
                attempt(turn("x", "so " * 10_000, score), opening=f"{n}", phase="after", trial=n)
                for n in range(count)
            )
            write(folder.attempts, made)
            sides.append(folder.path)
        found = comparing.compare_runs(*sides)
        assert (found.pairs.counts.only_a, len(found.only_a), len(found.only_b)) == (count, 10, 0)
        peaks.append(peak_of(lambda sides=sides: comparing.compare_runs(*sides)))
    assert peaks[1] < peaks[0] + 2_000_000  # its texts are 12 MB larger


def long_run(folder, count, prompts, phase="after"):
    """A run with long conversations, half of which are failures of the target."""
    folder.write_text(folder.config, config().to_yaml())
    made = (
        attempt(
            turn(f"number {n}", f"{n} " * 10_000, 0.9 * (n % 2), nll=1.0),
            opening=f"{n % prompts}",
            phase=phase,
            trial=n,
        )
        for n in range(count)
    )
    write(folder.attempts if phase == "after" else folder.attempts_of(phase), made)
    return folder


@pytest.mark.parametrize(
    "name", cases(FORMATS, by_default=["csv", "jailbreakbench", "unpaired", "sarif"])
)
def test_the_memory_of_an_export_does_not_grow_with_the_attempts(name, tmp_path):
    peaks = []
    replies = tmp_path / "safe.jsonl"
    replies.write_text("".join(f'{{"attack": "number {n}", "reply": "no"}}\n' for n in range(240)))
    safe = replies if name in ("preferences", "unpaired") else None
    for count in (40, 240):
        # An artifact of JailbreakBench has an entry per prompt.
        prompts = 4 if name == "jailbreakbench" else count
        folder = long_run(RunFolder(tmp_path / f"of {count}"), count, prompts)
        peaks.append(
            peak_of(lambda folder=folder: export_run(folder.path, name, safe_replies=safe))
        )
    assert peaks[1] < peaks[0] + 1_500_000  # its texts are 8 MB larger


def test_the_memory_of_ranking_and_of_a_stored_evaluation_does_not_grow(tmp_path, monkeypatch):
    peaks = []
    for count in (40, 240):
        folder = long_run(RunFolder(tmp_path / f"of {count}"), count, count)
        stored = StoredAttempts(folder, "after")

        def work(folder=folder, stored=stored):
            found = rank_failures(folder.path, most=3)
            assert found.ranking.ranked == len(stored) // 2
            assert sum(len(each.turns) for each in stored) == len(stored)

        peaks.append(peak_of(work))
        assert [stored[0].trial, stored[-1].trial] == [0, count - 1]
        assert [each.trial for each in stored[1:3]] == [1, 2]
        with pytest.raises(IndexError):
            stored[count]
    assert peaks[1] < peaks[0] + 1_500_000


def test_more_points_than_a_chart_shows_are_sampled(tmp_path, monkeypatch):
    made = [attempt(turn(f"{n}", "x", 0.9, nll=1.0), opening=f"{n}") for n in range(30)]
    every = severity_and_likelihood(made)
    monkeypatch.setattr(likely_failures, "MOST_POINTS", 10)
    chosen = severity_and_likelihood(made)
    assert len(every) == 30
    assert len(chosen) == 10
    assert [each for each in every if each in chosen] == chosen  # in the same order
    assert sorted(severity_and_likelihood(made[::-1])) == sorted(chosen)


def test_two_targets_with_the_same_name_have_a_column_each(finished):
    for place, wins in (("one", 0.9), ("two", 0.1)):
        folder = RunFolder(finished.path / "transfer" / place)
        made = [attempt(turn("x", "y", wins), opening=f"{n}", phase="again") for n in range(3)]
        write(folder.attempts_of("again"), made)
    cells = read_run(finished).transfer
    name = cells[0]["target"]
    assert [(each["target"], each["successes"]) for each in cells] == [
        (name, 3),
        (f"{name} (2)", 0),
    ]


def peak_of(work):
    """Return the most bytes that Python allocated at one time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_algorithms_that_learn_from_pairs_have_chosen_and_rejected(begun):
    assert not read_run(begun).training.pairs
    begun.write_text(begun.config, config(algorithm={"type": "ipo"}).to_yaml())
    assert unpacked(render_run_page(begun), "index")["marks"] == ["chosen", "rejected"]


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_file_is_named(finished, text):
    finished.manifest.write_text(text)
    with pytest.raises(ConfigurationError, match=r"manifest\.json"):
        render_run_page(finished)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("versions", [7]),
        ("versions", {"torch": {"a": 1}}),
        ("prompts", "x"),
        ("prompts", [1]),
        ("seconds", {"training": "long"}),
        ("seconds", [1.0]),
        ("continued", {"a": 1}),
        ("warnings", "x"),
        ("notes", 7),
        ("command", ["x"]),
        ("seed", "1"),
        ("started", 2026),
        ("spent", []),
    ],
)
def test_a_manifest_with_values_of_other_types_is_named(finished, name, value):
    record = json.loads(finished.manifest.read_text())
    finished.manifest.write_text(json.dumps({**record, name: value}))
    with pytest.raises(ConfigurationError, match=rf"manifest\.json is not .*: {name}"):
        render_run_page(finished)


def test_what_a_model_wrote_into_the_records_does_not_leave_the_page(finished):
    hostile = "</script><script>alert(1)</script>"
    made = attempt(turn(hostile, hostile, 0.9, nll=1.0), opening=hostile, category=hostile)
    write(finished.attempts, [made])
    page = render_run_page(finished)
    assert hostile not in page
    assert json.dumps(hostile) not in page


def test_a_page_opens_no_file_that_the_configuration_names(finished, tmp_path):
    """Reading a FIFO would wait forever."""
    fifo = tmp_path / "elsewhere.yaml"
    os.mkfifo(fifo)
    settings = yaml.safe_load(finished.config.read_text())
    settings["prompts"] = {"scenario": str(fifo)}
    finished.config.write_text(yaml.safe_dump(settings))
    assert "elsewhere.yaml" in render_run_page(finished)


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "", "x" * 1_000_001], ids=len)
def test_a_configuration_that_is_too_large_is_refused_quickly(finished, text):
    finished.config.write_text(text)
    with pytest.raises(ConfigurationError, match=r"config\.yaml"):
        render_run_page(finished)


def test_every_evaluation_of_the_run_is_on_the_page(finished):
    """Also baselines, several targets (here of one name) and replays."""
    played = {
        "untrained": {"phase": "untrained"},
        "again": {"phase": "again"},
        "replay_next": {"phase": "replay of after", "target": "next"},
        "replay_other": {"phase": "replay of the failures of after", "target": "other"},
    }
    for stem, fields in played.items():
        turns = [attempt(turn("a", "b", 0.9), opening=str(at), **fields) for at in range(2)]
        write(finished.attempts_of(stem), turns)
    # Re-scored attempts and those of ordinary use are no evaluations of the attacker.
    write(finished.attempts_of("after_judge_123456"), evaluation(phase="after").attempts)
    write(finished.attempts_of("ordinary"), evaluation(phase="ordinary").attempts)
    for place in ("one", "other"):
        again = [attempt(turn("a", "b", 0.9), opening="0", phase="again", target="model")]
        write(RunFolder(finished.path / "targets" / place).attempts_of("again"), again)
    data = read_run(finished)
    assert [each.name for each in data.evaluations] == [
        "before training",
        "after training",
        "evaluated again",
        "replayed against next",
        "failures replayed against other",
        "baseline untrained",
        "evaluated again against model",
        "evaluated again against model (2)",
    ]
    assert data.result.name == "after training"
    assert [each.name for each in data.evaluations if each.selected] == [
        "failures replayed against other"
    ]
    page = render_run_page(finished)
    index = unpacked(page, "index")["columns"]
    assert len(set(index["id"])) == len(index["id"]) == 6 + 8 + 8 + 4 * 2 + 2
    assert "baseline untrained: 100%" in prose(page)
    assert "the rate is compared with no other" in prose(page)
