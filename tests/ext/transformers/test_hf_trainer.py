import json
import logging
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_rl import (
    DPO,
    GRPO,
    ASTEnvironment,
    ConfigurationError,
    ContractError,
    Evaluator,
    FunctionModerator,
    NonFiniteLossError,
)
from astra_rl.ext.transformers import HFASTConfiguration, HFASTProblem, HFASTTrainer
from astra_rl.models.generation import Sampling
from astra_rl.testing import ToyProblem, tiny_model
from astra_rl.training.trackers import HistoryTracker

pytestmark = pytest.mark.slow

nan = math.nan


@pytest.fixture(scope="module")
def models():
    return [tiny_model(seed=seed, window=64) for seed in (1, 2)]


class Scores(Evaluator):
    """Gives one score after the other and remembers at how many updates it was asked."""

    def __init__(self, *scores):
        self.scores = list(scores)
        self.asked = 0

    def evaluate(self, n_rollouts=None, progress=True):
        assert not torch.is_grad_enabled()
        self.asked += 1
        return {"score": self.scores[self.asked - 1], "conversations": ["long"], "n": 3}

    def compute_metrics(self, graph):
        raise NotImplementedError

    aggregate_metrics = compute_metrics


@pytest.fixture
def make(models, tmp_path):
    def make(algorithm=GRPO, *, steps=4, kind=HFASTTrainer, **options):
        moderator = FunctionModerator(lambda texts: [len(set(text)) / 40 for text in texts])
        problem = HFASTProblem(
            models[0],
            models[1],
            models[0],
            moderator,
            attacker_sampling=Sampling(max_new_tokens=3),
            target_sampling=Sampling(max_new_tokens=2),
        )
        config = HFASTConfiguration(
            lr=1e-3, training_steps=steps, num_episodes_per_experience=1, seed=0
        )
        environment = ASTEnvironment(problem, ["hi.", "ho."], tree_width=2, tree_depth=1)
        options = {"ckpt_dir": tmp_path / "ckpt", "tracker": HistoryTracker(), **options}
        return kind(config, environment, algorithm(problem), **options)

    return make


def metrics_of(trainer, name):
    return json.loads((trainer.ckpt_dir / name / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("every", "steps", "times"), [(1, 3, 3), (2, 5, 2), (3, 3, 1), (4, 3, 0), (0, 3, 0)]
)
def test_evaluation_runs_once_per_eval_every_training_steps(make, every, steps, times):
    evaluator = Scores(*range(9))
    trainer = make(steps=steps, eval_every=every, evaluator=evaluator)
    trainer.train()
    assert evaluator.asked == times
    assert (trainer.ckpt_dir / "last").is_dir()
    assert (trainer.ckpt_dir / "best").is_dir() == (times > 0)


def test_best_is_rewritten_only_by_a_better_score_and_nan_is_never_the_best(make):
    trainer = make(steps=7, eval_every=1, evaluator=Scores(nan, 0.2, 0.1, 0.2, nan, 0.5, 0.4))
    bests = []

    def on_step_end(step, logs):
        HFASTTrainer.on_step_end(trainer, step, logs)
        exists = (trainer.ckpt_dir / "best").exists()
        bests.append(metrics_of(trainer, "best")["step"] if exists else None)

    trainer.on_step_end = on_step_end
    trainer.train()
    assert bests == [None, 2, 2, 2, 2, 6, 6]
    assert (trainer.best_score, trainer.best_step) == (0.5, 6)
    assert metrics_of(trainer, "best") == {"step": 6, "score": 0.5, "n": 3}
    logged = [row["eval/best_score"] for row in trainer.tracker.rows]
    assert logged == [-math.inf, 0.2, 0.2, 0.2, 0.2, 0.5, 0.5]


def test_without_any_score_there_is_no_best(make):
    trainer = make(steps=2, eval_every=1, evaluator=Scores(nan, None))
    trainer.train()
    assert not (trainer.ckpt_dir / "best").exists()
    assert trainer.best_step is None
    assert metrics_of(trainer, "last")["score"] is None


def test_the_best_checkpoint_keeps_the_weights_of_its_step(make):
    trainer = make(steps=3, eval_every=1, evaluator=Scores(0.5, 0.1, 0.2))
    seen = []

    def on_step_end(step, logs):
        HFASTTrainer.on_step_end(trainer, step, logs)
        weights = trainer.algorithm.problem.attacker.state_dict()
        seen.append({name: value.clone() for name, value in weights.items()})

    trainer.on_step_end = on_step_end
    trainer.train()
    for name, expected in (("best", seen[0]), ("last", seen[2])):
        opened = AutoModelForCausalLM.from_pretrained(trainer.ckpt_dir / name).state_dict()
        assert all(torch.equal(opened[key], value) for key, value in expected.items())
    assert any(not torch.equal(seen[0][key], seen[2][key]) for key in seen[0])


def test_checkpoints_open_in_transformers_and_hold_only_safetensors(make):
    trainer = make(DPO, steps=2, eval_every=2, dev_prompts=["hi.", "hey"])
    trainer.train()
    for name in ("best", "last"):
        folder = trainer.ckpt_dir / name
        files = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "metrics.json"} <= files
        assert not [file for file in files if file.endswith((".bin", ".pt", ".pkl"))]
        AutoModelForCausalLM.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
    assert sorted(path.name for path in trainer.ckpt_dir.iterdir()) == ["best", "last"]


def test_dev_prompts_are_evaluated_and_the_metrics_are_kept_beside_the_weights(make):
    trainer = make(steps=2, eval_every=2, dev_prompts=(prompt for prompt in ["hi.", "hey"]))
    trainer.train()
    metrics = metrics_of(trainer, "last")
    assert metrics["step"] == 2
    assert metrics["n"] == 2
    assert "conversations" not in metrics
    assert metrics == metrics_of(trainer, "best")
    row = trainer.tracker.rows[1]
    assert row["eval/score"] == metrics["score"]
    assert {"loss", "reward", "grad_norm", "step_time", "rewards/missing"} <= row.keys()
    assert "eval/score" not in trainer.tracker.rows[0]


def test_the_last_attacker_is_saved_even_if_its_step_was_not_evaluated(make):
    trainer = make(steps=3, eval_every=2, evaluator=Scores(0.5))
    trainer.train()
    assert metrics_of(trainer, "last") == {"step": 3}
    assert metrics_of(trainer, "best")["step"] == 2


def test_without_dev_prompts_it_saves_and_does_not_evaluate(make):
    trainer = make(steps=2, eval_every=1)
    trainer.train()
    assert trainer.evaluate() is None
    assert metrics_of(trainer, "last") == {"step": 2}
    assert not (trainer.ckpt_dir / "best").exists()


def test_evaluating_does_not_change_the_training(make):
    def weights(**options):
        trainer = make(steps=3, **options)
        trainer.train()
        return torch.cat([p.flatten() for p in trainer.algorithm.problem.parameters()])

    evaluated = weights(eval_every=1, dev_prompts=["hi.", "hey", "hi."])
    assert torch.equal(weights(eval_every=0), evaluated)


def test_a_failure_while_saving_leaves_the_old_checkpoint_whole(make, monkeypatch):
    trainer = make(steps=1)
    trainer.train()

    def fail(folder):
        raise OSError("disk full")

    monkeypatch.setattr(trainer.algorithm.problem.tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        trainer.save("last", {"step": 9})
    assert metrics_of(trainer, "last") == {"step": 1}
    AutoModelForCausalLM.from_pretrained(trainer.ckpt_dir / "last")
    assert [path.name for path in trainer.ckpt_dir.iterdir()] == ["last"]


def test_by_default_each_step_is_logged_and_so_is_a_new_best(make, caplog):
    with caplog.at_level(logging.INFO, "astra_rl"):
        make(steps=1, eval_every=1, evaluator=Scores(0.25), tracker=None).train()
    assert any("step 1: new best score 0.2500" in message for message in caplog.messages)
    assert any(message.startswith("step 1  ") for message in caplog.messages)


def test_the_tracker_is_closed_at_the_end(make):
    class Closing(HistoryTracker):
        closed = 0

        def close(self):
            self.closed += 1

    trainer = make(steps=2, tracker=Closing())
    trainer.train()
    assert trainer.tracker.closed == 1
    assert len(trainer.tracker.rows) == 2


def test_hooks_of_a_subclass_are_called(make):
    class Mine(HFASTTrainer):
        def evaluate(self):
            return {"score": float(self.completed_steps)}

        def on_step_end(self, step, logs):
            super().on_step_end(step, logs)
            self.should_stop = step == 2

    trainer = make(steps=9, eval_every=1, kind=Mine)
    trainer.train()
    assert (trainer.completed_steps, trainer.best_score) == (2, 2.0)


def test_a_problem_that_saves_itself_is_asked_to(tmp_path):
    class Saving(ToyProblem):
        def save(self, folder):
            (folder / "table.txt").write_text(str(self.attacker.tolist()))

    problem = Saving()
    environment = ASTEnvironment(problem, ["hi"])
    config = HFASTConfiguration(training_steps=2, seed=0)
    HFASTTrainer(config, environment, GRPO(problem), ckpt_dir=tmp_path).train()
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == [
        "SHA256SUMS",
        "metrics.json",
        "table.txt",
    ]


def test_a_problem_that_could_not_be_saved_is_refused_before_it_is_trained(tmp_path):
    problem = ToyProblem()
    with pytest.raises(ConfigurationError, match=r"ToyProblem has neither save\(folder\) nor"):
        HFASTTrainer(
            HFASTConfiguration(), ASTEnvironment(problem, ["hi"]), GRPO(problem), ckpt_dir=tmp_path
        )


@pytest.mark.parametrize("report", [{}, {"score": "high"}, {"score": [1]}])
def test_an_evaluator_without_a_score_is_named(make, report):
    class Scoreless(Scores):
        def evaluate(self, n_rollouts=None, progress=True):
            return report

    with pytest.raises(ContractError, match=r"Scoreless returned .* under 'score'"):
        make(steps=1, eval_every=1, evaluator=Scoreless()).train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev_prompts": []}, "prompts is empty"),
        ({"dev_prompts": "one string"}, "prompts is one string"),
        ({"dev_prompts": ["ok", 1]}, "prompt 1 is a int"),
        ({"dev_prompts": ["ok"], "evaluator": Scores()}, "both given"),
        ({"eval_every": -1}, "eval_every=-1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_construction(make, options, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**options)


def test_the_folder_for_checkpoints_is_made_with_its_parents(make, tmp_path):
    assert make(ckpt_dir=str(tmp_path / "a" / "b")).ckpt_dir.is_dir()


class Failing(GRPO):
    """Its losses are not finite from the experience `after` on."""

    after, experiences = 3, 0

    def prepare(self, steps):
        self.experiences += 1
        return super().prepare(steps)

    def step(self, batch):
        loss, logs = super().step(batch)
        return (loss * math.nan if self.experiences > self.after else loss), logs


def test_training_that_fails_keeps_the_last_good_checkpoint(make):
    trainer = make(Failing, steps=20, eval_every=2, evaluator=Scores(*range(9)))
    with pytest.raises(NonFiniteLossError, match="training step 6") as caught:
        trainer.train()
    assert caught.value.step == 6
    # evaluated, and saved, after the steps 2 and 4; the update of step 4 was skipped
    assert metrics_of(trainer, "last")["step"] == 4
    model = AutoModelForCausalLM.from_pretrained(trainer.ckpt_dir / "last")
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert [row["skipped_updates"] for row in trainer.tracker.rows] == [0, 0, 0, 1, 1]


def test_training_that_fails_before_any_checkpoint_saves_the_last_good_weights(make):
    trainer = make(Failing, steps=20, eval_every=0)
    with pytest.raises(NonFiniteLossError):
        trainer.train()
    assert metrics_of(trainer, "last") == {"step": 5}
    model = AutoModelForCausalLM.from_pretrained(trainer.ckpt_dir / "last")
    for saved, weight in zip(
        model.parameters(), trainer.algorithm.problem.attacker.parameters(), strict=True
    ):
        torch.testing.assert_close(saved, weight.detach())
