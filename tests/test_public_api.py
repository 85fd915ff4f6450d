"""Names, signatures and import side effects that user code relies on."""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.public_api import is_called_as, parameters, public_api

import astra_rl
from astra_rl.errors import MissingDependencyError

HEAVY = [
    "torch",
    "numpy",
    "transformers",
    "detoxify",
    "wandb",
    "pydantic",
    "rich",
    "typer",
    "jinja2",
    "matplotlib",
    "sklearn",
    "peft",
    "yaml",
]


def modules():
    return sorted(
        module.name
        for module in pkgutil.walk_packages(astra_rl.__path__, "astra_rl.")
        if not module.name.endswith("__main__")
    )


def in_a_fresh_process(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, astra_rl; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert in_a_fresh_process(code).strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--version", "--help"])
def test_the_command_line_answers_without_loading_torch_or_many_modules(option):
    code = f"""
import contextlib, sys
from astra_rl.cli import main
sys.argv = ["astra-rl", {option!r}]
with contextlib.suppress(SystemExit):
    main.run()
slow = [name for name in ("torch", "numpy", "pydantic", "asyncio") if name in sys.modules]
print(slow, len(sys.modules))
"""
    slow, _, count = in_a_fresh_process(code).splitlines()[-1].rpartition(" ")
    assert slow == "[]"
    assert int(count) < 500  # a time would depend on the machine


@pytest.mark.slow
def test_using_the_package_loads_nothing_but_torch_and_changes_nothing():
    heavy = [name for name in HEAVY if name not in ("torch", "numpy")]
    code = f"""
import json, logging, os, random, sys, torch
torch.manual_seed(0); random.seed(0)
before = torch.get_rng_state().tolist(), random.getstate(), dict(os.environ)
from astra_rl import GRPO, PPO, ASTProblem, Conversation, Graph, Trainer
after = torch.get_rng_state().tolist(), random.getstate(), dict(os.environ)
print(json.dumps({{
    "loaded": [name for name in {heavy!r} if name in sys.modules],
    "root handlers": len(logging.getLogger().handlers),
    "our handlers": [type(each).__name__ for each in logging.getLogger("astra_rl").handlers],
    "level": logging.getLogger("astra_rl").level,
    "unchanged": before == after,
}}))
"""
    assert json.loads(in_a_fresh_process(code)) == {
        "loaded": [],
        "root handlers": 0,
        "our handlers": ["NullHandler"],
        "level": 0,
        "unchanged": True,
    }


@pytest.mark.slow
def test_a_lazy_name_loads_its_own_module_only():
    code = f"""
import sys, astra_rl
assert astra_rl.FunctionModerator.__name__ == "FunctionModerator"
assert astra_rl.methods.ast_problem.ASTProblem is astra_rl.ASTProblem
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert set(ast.literal_eval(in_a_fresh_process(code))) <= {"torch", "numpy"}


@pytest.mark.slow
def test_reading_configurations_and_finished_runs_loads_no_model_library():
    code = """
import sys
import astra_rl.actions.compare, astra_rl.actions.comparison_page, astra_rl.actions.export
import astra_rl.actions.failures, astra_rl.actions.label, astra_rl.actions.seeds
import astra_rl.config.loading, astra_rl.runs.report, astra_rl.runs.view
print([name for name in ("torch", "transformers", "peft", "tokenizers") if name in sys.modules])
"""
    assert in_a_fresh_process(code).strip() == "[]"


@pytest.mark.slow
def test_a_configuration_is_checked_without_transformers(tmp_path):
    """With an attacker that is trained, and without one."""
    (tmp_path / "run.yaml").write_text(
        "attacker: {model: 'bundled:pico'}\ntarget: {model: 'bundled:pico'}\n"
        "moderator: {type: secret_leak}\nprompts: {scenario: planted_secrets}\n"
    )
    (tmp_path / "questions.txt").write_text("Good morning\n")
    (tmp_path / "test.yaml").write_text(
        "target: {type: openai, options: {model: m, base_url: 'http://127.0.0.1:9/v1'}}\n"
        f"moderator: {{type: refusal}}\nprompts: {{file: {tmp_path / 'questions.txt'}}}\n"
    )
    code = f"""
import contextlib, sys
from astra_rl.cli import main
for name in ("run.yaml", "test.yaml"):
    sys.argv = ["astra-rl", "validate", {str(tmp_path)!r} + "/" + name]
    with contextlib.suppress(SystemExit):
        main.run()
print([name for name in ("transformers", "peft") if name in sys.modules])
"""
    *said, loaded = in_a_fresh_process(code).splitlines()
    assert [each.split("/")[-1] for each in said if each.endswith("is valid")] == [
        "run.yaml is valid",
        "test.yaml is valid",
    ]
    assert loaded == "[]"


@pytest.mark.parametrize("package", ["algorithms", "methods", "training"])
def test_a_package_has_its_names_and_their_modules(package):
    found = importlib.import_module(f"astra_rl.{package}")
    for name, module in found._MODULES.items():
        assert getattr(found, name) is getattr(importlib.import_module(module), name)
        assert getattr(found, module.rpartition(".")[2]) is sys.modules[module]
    with pytest.raises(AttributeError, match="no attribute 'Adversary'"):
        found.Adversary  # noqa: B018


def as_ruff_sorts(names):
    """CONSTANTS, then Classes, then functions; each in order."""
    return sorted(names, key=lambda name: (not name.isupper(), not name[:1].isupper(), name))


@pytest.mark.parametrize("name", ["astra_rl", *modules()])
def test_every_module_can_be_imported_and_has_what_it_exports(name):
    try:
        module = importlib.import_module(name)
    except MissingDependencyError as error:  # of another tool; `make bridges` tests it
        assert name.startswith("astra_rl.bridges.")
        pytest.skip(str(error))
    exported = getattr(module, "__all__", [])
    assert exported == as_ruff_sorts(exported)
    for each in exported:
        assert getattr(module, each) is not None
        assert each in dir(module)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Adversary'"):
        astra_rl.Adversary  # noqa: B018


def test_the_package_exports_these_names():
    assert set(astra_rl.__all__) >= {
        *("Trainer", "TrainingConfiguration", "Harness"),
        *("Problem", "ValueFunctionProblem", "Environment", "Moderator", "Algorithm", "Evaluator"),
        *("GraphMetrics", "Node", "Graph", "Utterance", "Conversation", "Exchange"),
        *("ASTProblem", "ASTEnvironment", "ASTEvaluator", "ASTNode"),
        *("DPO", "IPO", "DPOStep", "DPOBatch", "GRPO", "PPO", "RLOO", "REINFORCE"),
        *("A2C", "DAPO", "DrGRPO", "PolicyGradient", "PolicyStep", "PolicyBatch"),
        *("FunctionModerator", "DetoxifyModerator", "LlamaGuardModerator"),
        *("AstraError", "ConfigurationError", "ContractError", "MissingDependencyError"),
    }
    assert astra_rl.__version__


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("astra_rl.core.common", "StateT ActionT StepT BatchT"),
        ("astra_rl.core.environment", "Environment Graph Node"),
        ("astra_rl.core.moderator", "Moderator"),
        ("astra_rl.core.problem", "Problem ValueFunctionProblem"),
        ("astra_rl.core.algorithm", "Algorithm"),
        ("astra_rl.core.evaluator", "Evaluator GraphMetrics"),
        ("astra_rl.algorithms", "ALGORITHMS DPO IPO GRPO PPO"),
        ("astra_rl.algorithms.dpo", "DPO IPO DPOStep DPOBatch"),
        ("astra_rl.methods.ast_problem", "ASTProblem ASTEnvironment ASTEvaluator ASTNode"),
        ("astra_rl.training", "Trainer TrainingConfiguration Harness"),
        ("astra_rl.training.trainer", "Trainer TrainingConfiguration"),
        (
            "astra_rl.ext.transformers",
            "HFASTProblem HFASTTrainer HFASTConfiguration HFEvaluationProblem",
        ),
        (
            "astra_rl.ext.transformers.hf_ast_problem",
            "HFASTProblem HFASTTrainer HFASTConfiguration HFEvaluationProblem",
        ),
        ("astra_rl.logging", "logger"),
        (
            "astra_rl.testing",
            "ToyProblem ScriptedModerator check_problem check_environment check_algorithm",
        ),
    ],
)
def test_documented_import_paths_hold(module, names):
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in names.split())


def test_a_recorded_public_name_is_still_called_as_before():
    recorded = (Path(__file__).parent / "data" / "public_api.txt").read_text("utf-8").splitlines()
    found = dict(line.partition("(")[::2] for line in public_api())
    broken = [
        line
        for name, was in (line.partition("(")[::2] for line in recorded)
        if not is_called_as(was, found.get(name))
        for line in [f"{name}({was}, now {found.get(name)}"]
    ]
    assert not broken, (
        "public names changed; see CONTRIBUTING.md on deprecation. Record them with "
        "python -m tests.public_api > tests/data/public_api.txt"
    )


@pytest.mark.parametrize(
    ("was", "now", "same"),
    [
        ("a b= *c)", "a b= *c)", True),
        ("a b= *c)", "a b= c= *d=)", True),
        ("a b= *c)", "a b= *c *d=)", True),
        ("a *c)", "a b= *c=)", True),
        ("a b)", "b a)", False),
        ("a b= *c)", "a *b= *c)", False),
        ("a b= *c)", "a b= *c d)", False),
        ("a=)", "a)", False),
        ("a)", None, False),
    ],
)
def test_what_breaks_a_call_is_known(was, now, same):
    assert is_called_as(was, now) is same


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        ("Problem.rollout_prompt_with_attacker", "contexts"),
        ("Problem.rollout_prompt_with_target", "contexts"),
        ("Problem.get_attacker_logprobs", "contexts continuations"),
        ("Problem.get_target_logprobs", "contexts continuations"),
        ("Problem.get_baseline_logprobs", "contexts continuations"),
        ("Problem.advance", "context attack response"),
        ("Problem.reward", "contexts attacks responses"),
        ("Problem.parameters", ""),
        ("ValueFunctionProblem.value", "contexts continuations"),
        ("Environment.rollout", "seed="),
        ("Environment.rollouts", "seeds"),
        ("Environment.eval_rollout", "seed="),
        ("Moderator.moderate", "x"),
        ("Algorithm.flatten", "graph"),
        ("Algorithm.prepare", "steps"),
        ("Algorithm.collate_fn", "steps"),
        ("Algorithm.step", "batch"),
        ("Evaluator.evaluate", "n_rollouts= progress="),
        ("Evaluator.compute_metrics", "graph"),
        ("Evaluator.aggregate_metrics", "metrics"),
        ("Evaluator.write_json", "data path"),
        (
            "Node",
            "context attack response reward children= *reward_terms= *truncated= "
            "*continuation_probability= *next_context= *role= *unknown_alternatives=",
        ),
        ("Graph", "context children="),
        ("Trainer", "config environment algorithm *callbacks="),
        ("Trainer.train", ""),
        ("ASTEnvironment", "problem prompts tree_width= tree_depth="),
        (
            "redteam",
            "target prompts= judge= *scenario= *model= *judge_model= *attacker= *attacker_model= "
            "*attacks= *examples= *column= *threshold= *trials= *budget= *seed= *output=",
        ),
        (
            "Harness",
            "environment algorithm num_episodes_per_experience= *batch_size= *dataloader_kwargs= "
            "*on_collected=",
        ),
    ],
)
def test_signatures_of_the_specification_hold(thing, expected):
    found = astra_rl
    for name in thing.split("."):
        found = getattr(found, name)
    assert parameters(found) == expected


def test_signatures_for_transformers_hold():
    from astra_rl.ext.transformers import HFASTProblem, HFASTTrainer

    assert parameters(HFASTProblem).startswith(
        "attacker_model_id target_model_id baseline_model_id moderator device= *"
    )
    assert parameters(HFASTTrainer).startswith(
        "config environment algorithm *dev_prompts= *eval_every= *ckpt_dir="
    )
    defaults = inspect.signature(HFASTTrainer).parameters
    assert defaults["eval_every"].default == 200
    assert defaults["ckpt_dir"].default == "checkpoints"


@pytest.mark.parametrize(
    "name",
    ["Problem", "Environment", "Moderator", "Algorithm", "Node", "Graph", "Trainer", "Harness"],
)
def test_the_interfaces_stay_generic(name):
    interface = getattr(astra_rl, name)
    count = len(interface.__parameters__)
    assert count == (4 if name in ("Algorithm", "Trainer", "Harness") else 2)
    assert interface[(str,) * count] is not None


def test_a_name_of_the_first_toolbox_is_an_error_that_says_the_new_one():
    for former, now in astra_rl._FORMER.items():
        if former in astra_rl._ALIASES:
            with pytest.warns(DeprecationWarning, match=now):
                assert getattr(astra_rl, former).__name__ == now.rpartition(".")[2]
            continue
        with pytest.raises(AttributeError, match=now.rpartition(".")[2]):
            getattr(astra_rl, former)
    assert not hasattr(astra_rl, "ASTSystem")
