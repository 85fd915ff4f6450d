"""Regression suites, checked before any model is loaded."""

from tests.cli.running import astra_rl


def test_an_empty_suite_is_refused(tmp_path, record_run):
    """A run without failures gives a suite without cases, which tests nothing."""
    run = record_run(tmp_path / "run", [[0.0]] * 5)
    done = astra_rl("export", str(run), "--format", "regression", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    suite = str(run / "regression.json")
    done = astra_rl("regress", suite, "--target", "tiny", "--run", str(run), cwd=tmp_path)
    assert done.returncode == 2
    assert "has no cases" in done.stderr


def test_a_run_without_any_score_gives_no_suite(tmp_path, record_run):
    run = record_run(tmp_path / "run", [[None]] * 5)
    done = astra_rl("export", str(run), "--format", "regression", cwd=tmp_path)
    assert done.returncode == 2
    assert "none of the 5 attempts has a known outcome" in done.stderr
