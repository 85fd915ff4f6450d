"""Every code block of the trainer guide runs as written; see `data/trainer_guide.md`."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_rl import DPO, ASTEnvironment, FunctionModerator, Harness, Trainer, TrainingConfiguration
from astra_rl.ext.transformers import HFASTProblem, hf_ast_problem
from astra_rl.models.generation import Sampling
from astra_rl.testing import tiny_model

GUIDE = (Path(__file__).parent / "data" / "trainer_guide.md").read_text(encoding="utf-8")
BLOCKS = dict(
    re.findall(r"^## (\S+)\n+```python\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
)


def run(section, names):
    exec(compile(BLOCKS[section], f"trainer guide, section {section}", "exec"), names)
    return names


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the blocks take for granted: a problem, an environment and a solver, of tiny models."""
    monkeypatch.chdir(tmp_path)
    problem = HFASTProblem(
        tiny_model(seed=1),
        tiny_model(seed=2),
        tiny_model(seed=1),
        FunctionModerator(lambda texts: [len(set(text)) / 40 for text in texts]),
        attacker_sampling=Sampling(max_new_tokens=4),
        target_sampling=Sampling(max_new_tokens=2),
    )
    environment = ASTEnvironment(problem, ["hi.", "good day"], tree_width=2, tree_depth=1)
    return {
        "__name__": "guide",
        "problem": problem,
        "env": environment,
        "solver": DPO(problem),
        "DEV_PROMPTS": ["hello", "hey you"],
    }


def weights(problem):
    return torch.cat([parameter.detach().flatten() for parameter in problem.parameters()])


def test_the_guide_has_all_its_blocks():
    assert list(BLOCKS) == ["4.1", "4.2", "6.1", "6.2", "6.3"]


def test_4_1_a_configuration_takes_the_six_hyperparameters():
    config = run("4.1", {})["config"]
    assert dataclasses.asdict(config) == {
        "lr": 1e-5,
        "batch_size": 4,
        "optimizer": "adamw",
        "gradient_accumulation_steps": 1,
        "training_steps": 1000,
        "num_episodes_per_experience": 2,
        "max_grad_norm": 1.0,
        "max_nonfinite_losses": 3,
        "max_unscored_steps": 5,
        "seed": None,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "shards": None,
        "reduction": None,
        "sharding": "replicated",
        "micro_batch_tokens": None,
        "max_staleness": 0,
    }


def test_4_2_the_harness_returns_batches_and_each_gives_a_loss_and_logs(names):
    names["harness"] = Harness(names["env"], names["solver"], 4, batch_size=2)
    batches = list(names["harness"].experience())
    assert batches
    for names["batch"] in batches:
        run("4.2", names)
        assert names["loss"].shape == ()
        names["loss"].backward()
        assert float(names["loss"].detach().item()) == pytest.approx(names["step_logs"]["loss"])


def test_6_1_the_base_trainer_trains_and_the_attacker_can_be_saved(names):
    run("4.1", names)
    names["config"].training_steps = 3
    before = weights(names["problem"])
    run("6.1", names)
    assert isinstance(names["trainer"], Trainer)
    assert not torch.equal(weights(names["problem"]), before)
    assert [path.name for path in Path().iterdir()] == ["final_ckpt"]
    assert_opens(Path("final_ckpt"), names["problem"])


@pytest.mark.slow
def test_6_2_the_trainer_for_transformers_evaluates_and_saves(names, monkeypatch):
    @dataclasses.dataclass(kw_only=True)
    class Shorter(hf_ast_problem.HFASTConfiguration):
        training_steps: int = 100

    monkeypatch.setattr(hf_ast_problem, "HFASTConfiguration", Shorter)
    before = weights(names["problem"])
    run("6.2", names)
    assert not torch.equal(weights(names["problem"]), before)
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["best", "last"]
    for name in ("best", "last"):
        metrics = json.loads((Path("checkpoints") / name / "metrics.json").read_text())
        assert metrics["step"] == 100
        assert metrics["n"] == 2
        assert_opens(Path("checkpoints") / name, names["problem"])


def assert_opens(folder, problem):
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert (folder / "model.safetensors").is_file()
    opened = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, value in problem.attacker.state_dict().items():
        assert torch.equal(opened[name], value)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == problem.tokenizer.get_vocab()


def test_6_3_a_trainer_and_a_configuration_of_one_s_own(names):
    run("6.3", names)
    config = names["MyConfig"]()
    assert isinstance(config, TrainingConfiguration)
    assert (config.eval_every, config.ckpt_dir, config.lr) == (100, "checkpoints", 1e-5)
    trainer = names["MyTrainer"](config, names["env"], names["solver"], names["DEV_PROMPTS"])
    assert trainer.train() is None
    assert trainer.dev_prompts == names["DEV_PROMPTS"]
    assert Path("checkpoints").is_dir()
    assert names["MyTrainer"](config, names["env"], names["solver"]).dev_prompts == []


@pytest.mark.slow
def test_6_3_filled_in_it_trains_with_evaluation_saving_and_accumulation(names):
    """What the block leaves to the reader, written with nothing but what the guide names."""
    run("6.3", names)

    class Filled(names["MyTrainer"]):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.scores = []

        def _save_hf(self, step):
            problem = self.algorithm.problem
            problem.attacker.save_pretrained(f"{self.config.ckpt_dir}/{step}")
            problem.tokenizer.save_pretrained(f"{self.config.ckpt_dir}/{step}")

        @torch.no_grad()
        def _eval_dev(self, step, tag="dev"):
            graphs = [self.environment.eval_rollout(prompt) for prompt in self.dev_prompts]
            rewards = [node.reward for graph in graphs for node in graph.nodes()]
            self.scores.append(sum(rewards) / len(rewards))

        def train(self):
            for step in range(1, self.config.training_steps + 1):
                self.optimizer.zero_grad()
                batches = list(self.harness.experience())
                for batch in batches:
                    loss, _ = self.harness.step(batch)
                    (loss / len(batches)).backward()
                self.optimizer.step()
                if step % self.config.eval_every == 0:
                    self._eval_dev(step)
                    self._save_hf(step)

    config = names["MyConfig"]()
    config.training_steps, config.eval_every = 4, 2
    before = weights(names["problem"])
    trainer = Filled(config, names["env"], names["solver"], names["DEV_PROMPTS"])
    trainer.train()
    assert len(trainer.scores) == 2
    assert not torch.equal(weights(names["problem"]), before)
    assert_opens(Path("checkpoints/4"), names["problem"])


def test_the_guide_s_names_are_found_where_it_says():
    from astra_rl import Trainer as from_the_top
    from astra_rl.ext.transformers import hf_ast_problem as module
    from astra_rl.logging import logger
    from astra_rl.training import trainer as base

    assert base.Trainer is from_the_top
    assert base.TrainingConfiguration is TrainingConfiguration
    assert issubclass(module.HFASTTrainer, Trainer)
    assert issubclass(module.HFASTConfiguration, TrainingConfiguration)
    assert logger.name == "astra_rl"
