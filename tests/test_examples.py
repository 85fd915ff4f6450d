"""Every example runs, offline and in seconds, with `--smoke`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.processes import Script

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(
    path for path in (ROOT / "examples").rglob("*.py") if "plugin" not in path.parts
)  # the plug-in is installed by test_installation


SAYS = {
    "differential_testing.py": "failure rate of A minus that of B: +17%",
    "endpoint.py": "failure rate: ",
    "harden_and_retest.py": "attacker 1 against target 1: ",
}
"""What an example prints that trains in no steps, or not only."""


each_example = pytest.mark.parametrize(
    "path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT))
)


@each_example
def test_an_example_runs_and_leaves_nothing_behind(path, tmp_path):
    code, errors = Script(path, "--smoke", cwd=tmp_path).wait()
    assert code == 0, errors
    assert SAYS.get(path.name, "step 1") in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.exhaustive  # the start of Python takes longer than the example
@each_example
def test_an_example_runs_on_its_own_and_leaves_nothing_behind(path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), "--smoke"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS.get(path.name, "step 1") in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_examples_that_the_guide_promises_exist():
    names = [str(path.relative_to(ROOT)) for path in EXAMPLES]
    assert "examples/GPT2_v_GPT2/ast_trainer.py" in names
    for name in ("early_stopping", "custom_everything", *map(Path, SAYS)):
        assert f"examples/{Path(name).stem}.py" in names
