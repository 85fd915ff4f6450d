"""Configurations that were trained with the same seeds, compared."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats
from tests.cli.running import astra_rl

from astra_rl.actions.seeds import compare_methods, compare_seeds
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.show.escaping import latex_text
from astra_rl.evaluation.stats.paired_seeds import SeedPairs
from astra_rl.evaluation.stats.rates import Rate

PROMPTS = 20
GRPO, RLOO = ([3, 5, 4, 6], [9, 10, 12, 11])
"""Successes of 20 prompts, by seed."""


@pytest.fixture
def runs(tmp_path, record_run):
    folders = []
    for name, successes in (("grpo", GRPO), ("rloo", RLOO)):
        for seed, count in enumerate(successes):
            scores = [[0.9 if at < count else 0.1] for at in range(PROMPTS)]
            settings = f"algorithm: {{type: {name}}}\n"
            folder = tmp_path / f"{name}{seed}"
            folders.append(record_run(folder, scores, seed=seed, settings=settings))
    return folders


def pairs(a, b, trials=PROMPTS):
    sides = zip(a, b, strict=True)
    return SeedPairs({n: (Rate(x, trials), Rate(y, trials)) for n, (x, y) in enumerate(sides)})


@pytest.mark.slow
def test_algorithms_are_compared_by_seed(runs):
    found = compare_methods(runs)
    assert list(found.by_name) == ["algorithm.type=grpo", "algorithm.type=rloo"]
    (pair,) = found.pairs.values()
    differences = np.array([6, 5, 8, 5]) / PROMPTS
    assert list(pair.differences.values()) == pytest.approx(differences)
    assert pair.p_value == 2 / 2**4
    low, high = pair.interval
    student = stats.t.interval(0.95, 3, differences.mean(), stats.sem(differences))
    assert low <= student[0] < student[1] <= high
    assert found.adjusted == {"algorithm.type=rloo": pair.p_value}
    assert compare_seeds(runs[:4]).spread.mean == pytest.approx(np.mean(GRPO) / PROMPTS)
    with pytest.raises(ConfigurationError, match=r"more than the seed: algorithm\.type=grpo; "):
        compare_seeds(runs)


def test_the_p_value_is_that_of_all_signs():
    generator = np.random.default_rng(0)
    for count in (1, 2, 5, 7):
        a, b = generator.integers(0, PROMPTS, (2, count))
        found = pairs(a, b)
        differences = (b - a) / PROMPTS
        reached = [
            abs(np.dot(signs, differences)) >= abs(differences.sum()) - 1e-9
            for signs in itertools.product((1, -1), repeat=count)
        ]
        assert found.p_value == pytest.approx(np.mean(reached))


@pytest.mark.slow
def test_the_interval_of_a_difference_covers_it():
    """Seeds vary as a beta distribution; prompts are binomial."""
    generator = np.random.default_rng(1)
    for alpha, beta, shift in ((2, 8, 0.1), (1, 30, 0.0), (30, 1, -0.2)):
        covered = 0
        for _ in range(100):
            rate = generator.beta(alpha, beta, 5)
            other = np.clip(generator.beta(alpha, beta, 5) + shift, 0, 1)
            found = pairs(generator.binomial(50, rate), generator.binomial(50, other), 50)
            draws = np.clip(generator.beta(alpha, beta, 20000) + shift, 0, 1)
            low, high = found.interval
            covered += low <= draws.mean() - alpha / (alpha + beta) <= high
        assert covered >= 91


def test_few_or_equal_seeds_do_not_give_a_point():
    assert pairs([3], [4]).interval is None
    assert "fewer than three seeds" in pairs([3, 4], [4, 5]).text
    low, high = pairs([0, 0, 0], [0, 0, 0]).interval
    assert low < 0 < high
    empty = SeedPairs({0: (Rate(0, 0), Rate(1, 2))})
    assert math.isnan(empty.mean)
    assert (empty.interval, empty.p_value) == (None, None)


@pytest.mark.slow
def test_the_command_writes_a_table(tmp_path, runs):
    names = list(map(str, runs))
    for ending in ("json", "csv", "md", "tex"):
        done = astra_rl("seeds", *names, "-o", f"t.{ending}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "algorithm.type=rloo against algorithm.type=grpo: 4 seeds in common" in done.stdout
    assert json.loads((tmp_path / "t.json").read_text())["differences"]["algorithm.type=rloo"]
    first, second = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
    assert (first["method"], first["difference"]) == ("algorithm.type=grpo", "")
    assert float(second["difference"]) == pytest.approx(0.3)
    latex = (tmp_path / "t.tex").read_text().splitlines()
    assert latex[0] == r"\begin{tabular}{lrrrrrrrrrrr}"
    assert {line.count(" & ") for line in latex if line.endswith(r"\\")} == {11}
    markdown = (tmp_path / "t.md").read_text().splitlines()
    assert {line.count("|") for line in markdown} == {13}
    for ending, start in (("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")):
        done = astra_rl("seeds", *names, "-o", f"t.{ending}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"t.{ending}").read_bytes().startswith(start)
    figure = (tmp_path / "t.svg").read_text()
    for text in ("algorithm.type=", "rloo", "held-out prompts", "attack success rate"):
        assert text in figure
    done = astra_rl("seeds", *names, "-o", "t.xlsx", cwd=tmp_path)
    assert done.returncode == 2
    assert ".csv, .md, .tex" in done.stderr


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(tmp_path, record_run, runs):
    settings = "algorithm: {type: dapo}\n"
    other = record_run(tmp_path / "other", [[0.9]], seed=0, settings=settings)
    with pytest.raises(ConfigurationError, match=r"different prompts: 1 of 20 in common"):
        compare_methods([*runs, other])
    late = record_run(tmp_path / "late", [[0.9]] * PROMPTS, seed=9, settings=settings)
    with pytest.raises(ConfigurationError, match="none in common"):
        compare_methods([*runs, late])


def test_text_is_no_command_of_latex():
    assert latex_text(r"a_b\input{x} 5%") == r"a\_b\textbackslash{}input\{x\} 5\%"
