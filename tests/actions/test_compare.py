"""Two runs, compared from their folders."""

import html
import json
import re

import numpy as np
import pytest
from tests.cli.running import astra_rl
from tests.evaluation.show.report.making import unpacked

from astra_rl.actions.compare import compare_runs
from astra_rl.actions.export import export_run
from astra_rl.actions.score import score_run
from astra_rl.actions.seeds import compare_seeds
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.stats.percent import between
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.recorded import summary_of_phase


def test_folders_of_the_same_name_are_two_sides_and_must_be_judged_alike(tmp_path, record_run):
    """The layout of CI: the same run folder in two checkouts."""
    scores = [[0.7]] * 50
    base = record_run(tmp_path / "base/runs/x", scores, judge="lenient", threshold=0.9)
    changed = record_run(tmp_path / "pr/runs/x", scores, judge="strict", threshold=0.5)
    with pytest.raises(ConfigurationError, match=r"A \(x after\): lenient.*B \(x after\): strict"):
        compare_runs(base, changed)
    again = record_run(tmp_path / "same/runs/x", scores, judge="lenient", threshold=0.9)
    found = compare_runs(base, again)
    assert found.names == ("A (x after)", "B (x after)")
    assert (found.pairs.difference, found.pairs.p_value) == (0.0, 1.0)


def test_the_command_shows_both_sides_of_the_same_name(tmp_path, record_run):
    base = record_run(tmp_path / "base/runs/x", [[0.9], [0.9], [0.0]])
    changed = record_run(tmp_path / "pr/runs/x", [[0.9], [0.0], [0.0]])
    done = astra_rl("compare", str(base), str(changed), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [found[side]["asr"]["successes"] for side in "ab"] == [2, 1]
    assert "A (x after)" in done.stderr
    assert "B (x after)" in done.stderr


def test_the_attempts_of_each_side_are_read_once(tmp_path, record_run, monkeypatch):
    runs = [
        record_run(tmp_path / "a", [[0.9], [0.9, 0.1], [0.0]]),
        record_run(tmp_path / "b", [[0.9], [0.0]]),
    ]
    summaries = [summary_of_phase(run, "after") for run in runs]
    read, select = [], AttemptLog._select

    def noted(self, columns, order, limit, *rest):
        if limit is None and not columns.startswith("DISTINCT"):
            read.append(self.path)
        return select(self, columns, order, limit, *rest)

    monkeypatch.setattr(AttemptLog, "_select", noted)
    found = compare_runs(*runs)
    assert [found.a.summary, found.b.summary] == summaries
    assert read == [run / "attempts.jsonl" for run in runs]


def test_seeds_in_folders_of_the_same_name_must_be_judged_alike(tmp_path, record_run):
    runs = [
        record_run(tmp_path / "0/run", [[0.7]], judge="lenient", seed=0),
        record_run(tmp_path / "1/run", [[0.7]], judge="strict", seed=1),
    ]
    with pytest.raises(ConfigurationError, match="judges or thresholds differ"):
        compare_seeds(runs)


def test_comparisons_with_runs_of_the_same_name_have_files_of_their_own(tmp_path, record_run):
    base = record_run(tmp_path / "base/x", [[0.9], [0.0]])
    paths = {
        compare_runs(base, record_run(tmp_path / f"{name}/x", [[0.9], [0.0]])).default_path
        for name in ("one", "other")
    }
    assert len(paths) == 2


def test_categories_are_compared_with_p_values_adjusted_for_their_number(tmp_path, record_run):
    categories = ["fraud"] * 8 + ["privacy"] * 8 + ["weapons"] * 2
    a = record_run(tmp_path / "a", [[0.9]] * 8 + [[0.0]] * 10, categories=categories)
    b = record_run(tmp_path / "b", [[0.0]] * 16 + [[0.9]] * 2, categories=categories)
    found = compare_runs(a, b)
    # McNemar: eight pairs of one kind, 2 / 2^8; two pairs, 1/2; none, 1. Holm: times 3, 2 and 1.
    assert {name: each.p_value for name, each in found.by_category.items()} == {
        "fraud": pytest.approx(3 * 2 / 2**8),
        "privacy": 1.0,
        "weapons": 1.0,
    }
    assert found.by_category["fraud"].pairs.p_value == pytest.approx(2 / 2**8)
    done = astra_rl("compare", str(a), str(b), "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["by_category"]["fraud"]["p_value_holm"] == pytest.approx(
        6 / 2**8
    )
    assert "p-values adjusted by Holm" in done.stderr


@pytest.mark.slow
def test_two_runs_are_read_side_by_side_on_one_page(tmp_path, record_run):
    a = record_run(
        tmp_path / "base/x", [[0.9], [0.9], [0.1], [0.1]], categories=["sea", "sea", "land", "land"]
    )
    b = record_run(
        tmp_path / "pr/x", [[0.1], [0.9], [0.1], [0.9]], categories=["sea", "sea", "land", "land"]
    )
    page = tmp_path / "page.html"
    done = astra_rl("compare", str(a), str(b), "--html", str(page), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = page.read_text("utf-8")
    shown = " ".join(
        html.unescape(re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", text, flags=re.S)).split()
    )
    assert "A (x after) against B (x after)" in shown
    assert "B (x after) 0 points higher than A (x after)" in shown
    assert "success A (x after) 1 1 no success A (x after) 1 1" in shown
    columns = unpacked(text, "index")["columns"]
    assert len(set(columns["id"])) == 8  # those of two checkouts have the same ids in the records
    assert columns["phase"] == ["B (x after)"] * 4 + ["A (x after)"] * 4
    assert "land 2 +50" in shown
    same = tmp_path / "same.html"
    done = astra_rl("compare", str(a), str(a), "--html", str(same), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(set(unpacked(same.read_text("utf-8"), "index")["columns"]["id"])) == 8


def stopped_early(run):
    """Say that the phase "after" ended when its result was clear."""
    (run / "evaluation_after.json").write_text('{"until": "upper(asr)<0.05", "n": 1}')
    return run


def test_a_side_that_stopped_early_is_compared_at_any_time(tmp_path, record_run):
    """16 pairs differ in one direction: the exact test of 16 signs has p = 3e-5."""
    a = record_run(tmp_path / "a", [[0.9]] * 16 + [[0.0]] * 50)
    b = stopped_early(record_run(tmp_path / "b", [[0.0]] * 32))
    found = compare_runs(a, b).pairs
    assert found.sequential
    assert found.difference == 0.5
    # The wealth of a gambler who bets l on each sign, with the weights of Jeffreys' prior.
    bets = np.sin(np.pi * (np.arange(512) + 0.5) / 1024) ** 2
    assert found.p_value == pytest.approx(1 / np.mean((2 * bets) ** 16))
    assert 1e-4 < found.p_value < 1e-3
    assert found.interval.low > 0
    done = astra_rl("compare", str(a), str(b), cwd=tmp_path)
    assert "p at any time of stopping early" in done.stdout
    assert not compare_runs(a, record_run(tmp_path / "c", [[0.0]] * 66)).pairs.sequential


def test_two_sides_that_stopped_early_must_have_played_in_one_order(tmp_path, record_run):
    a = stopped_early(record_run(tmp_path / "a", [[0.9], [0.0], [0.0]]))
    b = stopped_early(record_run(tmp_path / "b", [[0.9], [0.0]]))
    assert compare_runs(a, b).pairs.sequential
    lines = (b / "attempts.jsonl").read_text().splitlines()
    (b / "attempts.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    with pytest.raises(ConfigurationError, match=r"stopped early .* different orders"):
        compare_runs(a, b)


def test_a_phase_that_stopped_early_and_is_scored_again_keeps_its_interval(tmp_path, record_run):
    run = stopped_early(record_run(tmp_path / "a", [[0.9]] + [[0.0]] * 9))
    judge = tmp_path / "judge.yaml"
    judge.write_text("type: keyword\noptions: {words: [secret]}\n")
    judged = score_run(run, str(judge))
    assert judged.now.asr.method == "confidence sequence"
    phase = judged.path.stem.removeprefix("attempts_")
    assert summary_of_phase(run, phase).asr.method == "confidence sequence"
    (run / "evaluation_after.json").unlink()
    score_run(run, str(judge))
    assert summary_of_phase(run, phase).asr.method != "confidence sequence"


def test_an_export_of_a_phase_that_stopped_early_has_its_interval(tmp_path, record_run):
    run = stopped_early(record_run(tmp_path / "x", [[0.9]] * 2 + [[0.0]] * 30))
    exported = export_run(run, "markdown").path.read_text("utf-8")
    assert between(summary_of_phase(run, "after").asr.interval) in exported
    assert "confidence sequence" in exported
