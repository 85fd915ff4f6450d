"""`benchmarks/gpu.py` runs all its parts, here on tiny models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_each_part_of_the_gpu_benchmark_gives_a_result(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    parts = json.loads(output.read_text())["parts"]
    assert "tiny: update, LoRA" in parts
    assert not {name: found for name, found in parts.items() if "failed" in str(found)}
    assert parts["tiny: sampling, 8 rows"]["astra_rl_tokens_per_s"] > 0
    assert parts["tiny: GRPO step"]["astra_rl_s"] > 0
