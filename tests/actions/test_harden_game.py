"""Self-play through `harden`: the mixtures it finds are the equilibrium of a game that is known.

An attack is the letter a or b, a reply x or y, and neither side sees what the other plays: the
target's tokenizer reads every letter of an attack as the same unknown token. The success rate is

          x     y
    a     1     0
    b     0    1/2   (half of the prompts)

so at the equilibrium both sides mix 1 to 2. Whoever says anything else loses. The oracle enumerates
the letters: it reads the probabilities of each trained model, and computes best responses in the
game itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from astra_rl import Conversation, Moderator
from astra_rl.actions.harden import Hardened
from astra_rl.core.text import Exchange
from astra_rl.evaluation.stats.zero_sum import exploitability
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.models.rendering import ConversationRenderer
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.testing import tiny_model

pytestmark = pytest.mark.exhaustive

GAME = ((1.0, 0.0, 1.0), (0.0, 0.5, 1.0), (0.0, 0.0, 0.0))
"""Success rate by attack (a, b, another) and reply (x, y, another)."""
ATTACKS, REPLIES = "ab", "xy"
EASY, HARD = "QRS", "TUV"
"""Prompts at which b succeeds against y, and at which it does not; both models read them alike."""


class Game(Moderator[str, str]):
    """Scores an exchange of letters: a reply that is no move loses, as does such an attack."""

    def moderate(self, x: Sequence[str]) -> list[float]:
        return [self.score(each) for each in x]

    @staticmethod
    def score(each: Any) -> float:
        assert isinstance(each, Exchange)
        # What is not found has index -1, which is the last row or column.
        row = -1 if each.attack == "" else ATTACKS.find(each.attack)
        column = -1 if each.response == "" else REPLIES.find(each.response)
        rate = GAME[row][column]
        is_easy = Conversation.of(each.context).prompt[:1] in EASY
        return float(rate == 1 or (rate == 0.5 and is_easy))


class IsMove(Moderator[str, str]):
    """A reply to a benign request that is a move counts as a refusal."""

    def moderate(self, x: Sequence[str]) -> list[float]:
        return [float(text[:1] in tuple(REPLIES)) for text in x]


def teach(model: Any, tokenizer: Any, replies: dict[Conversation, str]) -> None:
    """Train a target until it gives these replies."""
    renderer = ConversationRenderer(tokenizer, "target")
    prompts = [list(renderer.render(each, reserve=1).ids) for each in replies]
    wanted = tokenizer.convert_tokens_to_ids(list(replies.values()))
    model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = sum(
            torch.nn.functional.cross_entropy(
                model(input_ids=torch.tensor([ids])).logits[0, -1:], torch.tensor([reply])
            )
            for ids, reply in zip(prompts, wanted, strict=True)
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("game")
    attacker, tokenizer = tiny_model("llama", letters=ATTACKS)
    attacker.save_pretrained(folder / "attacker")
    tokenizer.save_pretrained(folder / "attacker")
    target, tokenizer = tiny_model("llama", letters=f"{REPLIES}o", seed=1)
    always_x = {Conversation("Q", separator="\n") + "a": "x"}
    benign = {Conversation(separator="\n") + "o" * n: "o" for n in range(1, 5)}
    # It can say y, too; it is never asked for it in these words.
    able = {Conversation(separator="\n") + "y": "y"}
    teach(target, tokenizer, always_x | benign | able)
    target.save_pretrained(folder / "target")
    tokenizer.save_pretrained(folder / "target")
    rows = [
        {"id": f"benign-{n}", "prompt": "o" * n, "split": "train" if n < 3 else "test"}
        for n in range(1, 5)
    ]
    (folder / "benign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    moderator = {"type": f"{__name__}:IsMove"}
    (folder / "benign.yaml").write_text(
        yaml.safe_dump({"prompts": "benign.jsonl", "moderator": moderator})
    )
    (folder / "train.txt").write_text("Q\nT\n")
    (folder / "test.txt").write_text("R\nS\nU\nV\n")
    config = {
        "attacker": {"model": str(folder / "attacker"), "max_new_tokens": 1},
        "target": {"model": str(folder / "target"), "max_new_tokens": 1},
        "moderator": {"type": f"{__name__}:Game"},
        "reward": {"harm": {}},
        "prompts": {"file": str(folder / "train.txt"), "test_file": str(folder / "test.txt")},
        "environment": {"tree_width": 8, "tree_depth": 1},
        "algorithm": {"type": "rloo"},
        "training": {"steps": 20, "episodes_per_step": 4, "batch_size": 32, "lr": 0.01},
        "evaluation": {"before": False, "trials": 128},
        "harden": {
            "rounds": 2,
            "failures": 8,
            "benign": str(folder / "benign.yaml"),
            "safe_replies": list(REPLIES),
            "opponents": "equilibrium",
            "fine_tuning": {
                "lr": 0.01,
                "epochs": 60,
                "batch_size": 16,
                "lora": {"rank": 8, "alpha": 16.0},
            },
        },
        "dtype": "float32",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def probabilities(folder: str | Path, side: str, moves: str) -> list[float]:
    """Probability of each move of a trained model, and of anything else."""
    model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
    said = Conversation("R", separator="\n")
    renderer = ConversationRenderer(tokenizer, side)  # type: ignore[arg-type]
    ids = renderer.render(said if side == "attacker" else said + "a", reserve=1).ids
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].softmax(-1)
    known = [float(found[each]) for each in tokenizer.convert_tokens_to_ids(list(moves))]
    return [*known, 1 - sum(known)]


def mixed(weights: Sequence[float], strategies: Sequence[Sequence[float]]) -> list[float]:
    return [
        sum(weight * each[move] for weight, each in zip(weights, strategies, strict=True))
        for move in range(len(strategies[0]))
    ]


def test_the_mixtures_of_adapters_are_an_equilibrium_of_the_game(hardened: Hardened) -> None:
    result = hardened.result
    attackers = [
        probabilities(path / "checkpoints" / "last", "attacker", ATTACKS)
        for path in hardened.runs.values()
    ]
    targets = [probabilities(path, "target", REPLIES) for path in hardened.targets.values()]
    found = result.equilibrium
    assert found is not None
    pair = mixed(found.attackers, attackers), mixed(found.targets, targets)
    uniform = mixed([1 / 3] * 3, attackers), mixed([1 / 3] * 3, targets)
    assert exploitability(GAME, attackers[0], targets[0]) > 0.9  # before
    assert exploitability(GAME, *pair) <= 0.02  # measured: 0.003
    assert exploitability(GAME, *uniform) > 0.1  # measured: 0.14
    assert found.value == pytest.approx(1 / 3, abs=0.02)


def test_the_record_of_a_training_names_the_target_that_answered_in_each_step(
    hardened: Hardened,
) -> None:
    drawn = json.loads((hardened.path / "round_2" / "drawn_targets.json").read_text())
    assert list(drawn) == ["target 0", "target 1", "target 2"]
    with AttemptLog(hardened.runs["attacker 2"] / "attempts.jsonl") as log:
        attempts = list(log.attempts(phase="training"))
        after = {each.target for each in log.attempts(phase="after")}
    by_step: dict[int | None, set[str]] = {}
    for each in attempts:
        by_step.setdefault(each.step, set()).add(each.target)
    assert all(len(names) == 1 for names in by_step.values())
    names = {name: hardened.targets[name] for name, weight in drawn.items() if weight}
    assert {name for each in by_step.values() for name in each} == set(names.values())
    assert after == {hardened.targets["target 2"]}
