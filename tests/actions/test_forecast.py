"""Forecasts from the attempts of a run."""

import json

import pytest
from tests.cli.running import astra_rl


@pytest.mark.slow
def test_forecasts_are_made_or_refused_with_a_reason(tmp_path, record_run):
    scores = [[0.9] * (number % 4) + [0.1] * (5 - number % 4) for number in range(24)]
    record_run(tmp_path / "run", scores)
    done = astra_rl(
        *("forecast", "run", "--tries", "50", "--tries", "5000", "--queries", "1000", "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["success_at"][0]["estimate"] > 0.75
    assert "more than 100 times" in found["success_at"][1]["reason"]
    assert "24 queries" in found["largest_of"][0]["reason"]
    assert "1000 queries: no forecast" in done.stderr


@pytest.mark.slow
def test_a_forecast_says_how_many_trials_have_no_outcome(tmp_path, record_run):
    scores = [[0.9, 0.1, 0.1, 0.1, None] if number < 4 else [0.9, 0.1, 0.1, 0.1, 0.1]
              for number in range(24)]  # fmt: skip
    record_run(tmp_path / "run", scores)
    done = astra_rl("forecast", "run", "--tries", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["unscored"] == 4
    assert "4 outcomes are not known" in done.stderr
    assert found["success_at"][0]["high"] - found["success_at"][0]["low"] > 2 * 4 / 24
