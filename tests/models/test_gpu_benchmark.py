"""`benchmarks/gpu.py` runs all its parts, here on tiny models, and with a stand-in for vLLM."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.ext.test_engines import STARTED, vllm

FOLDER = Path(__file__).parents[2] / "benchmarks"

stand_in = vllm  # the fixture


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The measurements with vLLM, their sizes, and the folder of a saved model."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_sizes
    import gpu_vllm

    gpu_vllm.save_random_model("tiny", "cpu", tmp_path)
    return gpu_vllm, gpu_sizes.sizes_of(quick=True), tmp_path


@pytest.mark.slow
def test_each_part_of_the_gpu_benchmark_gives_a_result(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(FOLDER / "gpu.py"), "--quick", "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    parts = json.loads(output.read_text())["parts"]
    assert "tiny: update, LoRA" in parts
    assert not {name: found for name, found in parts.items() if "failed" in str(found)}
    assert parts["tiny: sampling, 8 rows"]["astra_rl_tokens_per_s"] > 0
    for trained in ("LoRA", "all weights"):
        step = parts[f"tiny: GRPO step, {trained}"]
        assert step["astra_rl_s"] > 0
        assert ("trl" in step) == (importlib.util.find_spec("trl") is None)
    if importlib.util.find_spec("vllm") is None:
        assert parts["tiny: vLLM"] == {"vllm": "not installed"}


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_a_step_that_an_engine_samples_is_measured(tiny):
    measure, sizes, folder = tiny
    assert measure.astra_rl_step("tiny", folder, sizes, "cpu")["astra_rl_s"] > 0
    (engine,) = STARTED
    assert engine.folder == str(folder)  # no second copy of the weights
    assert engine.options["gpu_memory_utilization"] == 0.3
    assert len(engine.calls) == sizes.setup("tiny").steps
    assert all(adapter is not None for _, _, adapter in engine.calls)


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_an_engine_alone_is_measured_with_each_number_of_rows(tiny):
    measure, sizes, folder = tiny
    found = measure.sampling("tiny", folder, sizes, "cpu")
    assert list(found) == ["vllm_tokens_per_s, 8 rows", "vllm_tokens_per_s, 16 rows"]
    assert min(found.values()) > 0


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trl_is_asked_to_sample_with_vllm_in_its_process(tiny):
    pytest.importorskip("trl")
    measure, sizes, folder = tiny
    from grpo_step import trl_config

    options = measure.trl_options(sizes)
    config = trl_config(sizes.setup("tiny"), str(folder), "cpu", **options)
    assert (config.use_vllm, config.vllm_mode) == (True, "colocate")
    assert config.vllm_gpu_memory_utilization == measure.LIMITS["gpu_memory_utilization"]
    assert config.vllm_max_model_length > 64 + sizes.step.new_tokens


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_measurement_that_fails_says_why_and_gives_no_figure(tiny):
    measure, _, folder = tiny
    found = measure.in_own_process("sampling", "tiny", folder, "--quick")
    assert list(found) == ["sampling failed"]
    assert "vllm is not installed" in found["sampling failed"]
