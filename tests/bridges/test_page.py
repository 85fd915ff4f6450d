"""Blocks of docs/bridges.md that need another tool run with it; others run in test_docs.py."""

import asyncio
import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

PAGE = (Path(__file__).parents[2] / "docs" / "bridges.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
INTRODUCTION = PAGE.partition("\n## ")[0]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def reader(run, tmp_path, monkeypatch):
    """Where a reader is: the run is runs/first."""
    shutil.copytree(run, tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


def blocks(text, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def execute(text, **names):
    found = blocks(text, "py")
    assert found
    for block in found:
        exec(compile(block, "bridges.md", "exec"), names)
    return names


def test_the_attacker_writes(reader):
    assert isinstance(execute(INTRODUCTION)["attack"], str)


@pytest.mark.bridge("inspect_ai")
def test_the_section_on_inspect(reader):
    assert execute(SECTIONS["Inspect"])["task"].dataset[0].input == "Good evening."


@pytest.mark.bridge("trl")
def test_the_section_on_trl(reader, monkeypatch):
    from astra_rl.testing import tiny_model

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model, tokenizer = tiny_model("llama", window=256, chat=True)
    model.name_or_path = model.config._name_or_path = "model"
    arguments = {
        "output_dir": "out", "max_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False,
        "per_device_train_batch_size": 2, "disable_tqdm": True, "save_strategy": "no",
        "gradient_checkpointing": False,
    }  # fmt: skip
    names = execute(
        SECTIONS["TRL"],
        attacker_model=model,
        tokenizer=tokenizer,
        arguments=arguments,
        my_application=lambda text: "I'm sorry, I can't help with that.",
    )
    assert names["trainer"].state.global_step == 1


@pytest.mark.bridge("inspect_petri")
def test_the_section_on_petri(reader):
    assert execute(SECTIONS["Petri"])["task"].dataset[0].input == "The assistant reveals the code."


@pytest.mark.bridge("openenv")
@pytest.mark.bridge("trl")
def test_the_section_on_openenv(reader, monkeypatch):
    import uvicorn
    from tests.bridges.servers import served
    from tests.bridges.tool_caller import save_tool_caller
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_tool_caller(reader / "model")
    arguments = {
        "output_dir": "out", "max_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False,
        "per_device_train_batch_size": 2, "disable_tqdm": True, "save_strategy": "no",
        "gradient_checkpointing": False,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        address = []
        monkeypatch.setattr(
            uvicorn, "run", lambda app, **_: address.append(stack.enter_context(served(app)))
        )
        server, client = blocks(SECTIONS["OpenEnv"], "py")
        exec(server, {"my_application": lambda text: "I'm sorry, I can't help with that."})
        names = {
            "tool_calling_model": AutoModelForCausalLM.from_pretrained("model"),
            "tokenizer": AutoTokenizer.from_pretrained("model"),
            "arguments": arguments,
        }
        exec(client.replace("http://127.0.0.1:8000", address[0]), names)
    assert names["trainer"].state.global_step == 1


@pytest.mark.bridge("pyrit")
def test_the_section_on_pyrit(reader):
    from pyrit.executor.attack import AttackScoringConfig
    from pyrit.score import SubStringScorer
    from pyrit.setup import IN_MEMORY, initialize_pyrit_async

    from astra_rl.bridges.pyrit import AttackerTarget

    asyncio.run(initialize_pyrit_async(memory_db_type=IN_MEMORY))
    scoring = AttackScoringConfig(
        objective_scorer=SubStringScorer(substring="x", categories=["test"])
    )
    target = AttackerTarget(run="runs/first")  # any target with several turns
    names = execute(SECTIONS["PyRIT"], objective_target=target, scoring=scoring)
    converted = asyncio.run(names["converter"].convert_async(prompt="a goal"))
    assert converted.output_text


@pytest.mark.bridge("opentelemetry.instrumentation")
def test_the_section_on_opentelemetry(reader):
    names = execute(SECTIONS["OpenTelemetry"])
    names["AstraInstrumentor"]().uninstrument()


def test_options_and_configurations_are_well_formed():
    assert [json.loads(each) for each in blocks(SECTIONS["garak"], "json")]
    (config,) = blocks(SECTIONS["promptfoo"], "")
    assert yaml.safe_load(config)["providers"][0]["config"] == {"run": "runs/first", "seed": 1}
    (target,) = blocks(SECTIONS["Inspect"], "")
    assert yaml.safe_load(target)["target"]["type"] == "astra_rl.bridges.inspect:InspectTarget"
