"""Values out of range are refused before a model is loaded, by their place in the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from astra_rl.config.loading import parse_config
from astra_rl.config.resolve import check_training, resolve
from astra_rl.errors import ConfigurationError

KEYWORD = {"type": "keyword", "options": {"words": ["leak"]}}
SETTINGS: dict[str, Any] = {
    "attacker": {"model": "not-loaded"},
    "target": {"model": "not-loaded"},
    "moderator": KEYWORD,
}


def algorithm(name: str, **options: Any) -> dict[str, Any]:
    return {"algorithm": {"type": name, "options": options}}


def moderator(name: str, *parts: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"moderator": {"type": name, "options": options, "of": list(parts)}}


REFUSED = [
    (algorithm("grpo", clip_low=2), "algorithm.options.clip_low: 2 given; it must be at most 1."),
    (algorithm("grpo", kl_in_loss=float("inf")), "algorithm.options.kl_in_loss: inf given"),
    (algorithm("grpo", kl_target=0.0), "algorithm.options.kl_target: 0.0 given; it must be above"),
    (algorithm("grpo", credit="trun"), "algorithm.options: credit='trun'; choose from"),
    (algorithm("grpo", format_pattern="("), "format_pattern='(' is not a regular expression"),
    (algorithm("a2c", kl_in_loss=0.1), "A2C sets kl_in_loss to alpha"),
    (algorithm("reinforce", epochs=2), "REINFORCE does not correct for a policy that has moved"),
    (algorithm("a2c", epochs=2), "A2C does not correct for a policy that has moved"),
    (algorithm("grpo", kl_gradient="sequence", kl_corrected=False), "kl_gradient='sequence' with"),
    (algorithm("ppo_lagrangian", constraints={}), "constraints={}; give at least one"),
    (algorithm("trajectory_balance", temperatures=[2.0, 1.0]), "temperatures=[2.0, 1.0]; give"),
    (algorithm("expert_iteration", temperatures=[2.0, 1.0]), "temperatures=[2.0, 1.0]; give"),
    (algorithm("dpo", pairs="alle"), "pairs='alle'; choose from"),
    (algorithm("warm_start", attacks="missing.txt"), "missing.txt"),
    (algorithm("grpo", kl_estimator="k2"), "kl_estimator='k2' is for the penalty in the loss"),
    (algorithm("rloo", kl_in_reward=0.1, kl_gradient="token", kl_corrected=False), "kl_corrected"),
    (algorithm("ppo", kl_in_reward=0.1, kl_horizon=50), "kl_horizon=50 is for an adaptive"),
    (
        {"training": {"sync_ref_model": True}, **algorithm("grpo")},
        "training.sync_ref_model: true given, but grpo has no KL penalty",
    ),
    (
        {"training": {"ref_model_sync_steps": 8}},
        "training: ref_model_sync_steps=8, but sync_ref_model is false",
    ),
    ({"training": {"steps": 5, "warmup_steps": 6}}, "warmup_steps=6 and steps=5"),
    ({"prompts": {"train": ["a", "b"]}}, "give it as prompts.file"),
    ({"device": "gpu"}, "device='gpu'; choose from 'auto', 'cpu', 'cuda'"),
    (algorithm("GRPO"), "no algorithm 'GRPO'. Did you mean 'grpo'?"),
    (
        algorithm("grpo", kl_in_loss=0.1, kl_estimator="k1", kl_corrected=False),
        "the expected gradient of this penalty is zero",
    ),
    ({"training": {"steps": 10**12}}, "training.steps: 1000000000000 given; it must be at most"),
    ({"training": {"optimizer": "torch.optim:LBFGS"}}, "LBFGS takes no weight_decay"),
    ({"training": {"optimizer": "torch.optim:None_"}}, "training.optimizer: "),
    ({"environment": {"tree_width": 10**6, "tree_depth": 9}}, "a training step would play 8e+54"),
    ({"environment": {"options": {"foo": 1}}}, "environment.options.foo: unknown key"),
    ({"environment": {"type": "pruned_tree", "options": {"keep": 0}}}, "environment.options: keep"),
    ({"reward": {"sum": []}}, "reward.sum: the sum is empty"),
    (moderator("keyword"), "moderator.options: give at least one of words and patterns"),
    (moderator("keyword", patterns=["("]), "'(' is not a regular expression"),
    (moderator("weighted", KEYWORD, KEYWORD, weights=[1.0]), "1 weights for 2 moderators"),
    (moderator("weighted", KEYWORD, weights=[0.0]), "not negative and not all zero"),
    (moderator("inverse", KEYWORD, KEYWORD), "InverseModerator transforms one moderator; 2 were"),
    (moderator("majority", KEYWORD, threshold=0), "moderator.options.threshold: 0 given"),
    (moderator("function", function="len"), "moderator.options: 'len'; write it as"),
    (moderator("function", function="math:pi"), "moderator.options: function=3.14"),
    (moderator("canary", quoted=2), "moderator.options.quoted: 2 given; it must be at most 1"),
    (moderator("secret_leak", secret="!"), "moderator.options: secret='!'"),
    (moderator("llm_judge", model_id="m", scale=[1, 0]), "moderator.options: scale=(1.0, 0.0)"),
    (moderator("llm_judge", model_id="m", rubric="none.txt"), "moderator.options: rubric='none"),
    (moderator("detoxify", variant="o"), "moderator.options: variant='o'; choose from"),
    (moderator("wild_guard", judge="me"), "moderator.options: judge='me'; choose from"),
    (moderator("shield_gemma", guideline="x"), "moderator.options: guideline='x'; choose from"),
    (moderator("llama_guard", categories=["S99"]), "moderator.options: category 'S99'"),
    (moderator("llama_guard", batch_size=0), "moderator.options.batch_size: 0 given"),
    (moderator("qwen_guard", controversial=2), "moderator.options.controversial: 2 given"),
    (moderator("openai_moderation", categories=["x"]), "moderator.options: category 'x'"),
    (moderator("hf_classifier", label="x", max_length=0), "moderator.options.max_length: 0"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_value_out_of_range_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("hello there\nwhat is new\n")
    (tmp_path / "test.txt").write_text("good evening\n")
    files = {"prompts": {"file": "train.txt", "test_file": "test.txt"}}
    with pytest.raises(ConfigurationError) as caught:
        check_training(
            resolve(parse_config(yaml.safe_dump({**SETTINGS, **files, **change}), source="f"))
        )
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"clip_low": 2}, "clip_low=2"), ({"epochs": 0}, "epochs=0"), ({"kl_in_loss": -1}, "kl_in")],
)
def test_a_subclass_of_ones_own_is_checked_as_well(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_algorithm.py").write_text(
        "from astra_rl import GRPO\n"
        "class Mine(GRPO):\n"
        "    def __init__(self, problem, **options):\n"
        "        problem.tokenizer  # there is a problem whenever it is constructed\n"
        "        super().__init__(problem, **options)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    test_a_value_out_of_range_is_refused(
        algorithm("my_algorithm:Mine", **options),
        f"algorithm.options.{message.split('=')[0]}",
        tmp_path,
        monkeypatch,
    )
