"""Everything that a run asks, wherever its configuration names it, and what that would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from astra_rl.config.estimate import EstimateRow, estimate
from astra_rl.config.resolve import resolve
from astra_rl.config.schema import RunConfig
from astra_rl.errors import ConfigurationError


def endpoint(model: str, **options: Any) -> dict[str, Any]:
    url = "http://127.0.0.1:9/v1"
    return {"type": "openai", "options": {"model": model, "base_url": url, **options}}


def judge(model: str, **options: Any) -> dict[str, Any]:
    return {"type": "llm_judge", "options": {"complete": endpoint(model, **options)}}


def moderation(**options: Any) -> dict[str, Any]:
    return {"type": "openai_moderation", "options": {"api_key": "k", **options}}


def config(tmp_path: Path, **changes: Any) -> RunConfig:
    """Return a run of 3 steps of 2 episodes of 2 + 4 turns, evaluated twice on 5 of 2 turns."""
    for name, count in (("train", 4), ("test", 5)):
        lines = [f"{name} opening number {number}\n" for number in range(count)]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    files = {"file": f"{tmp_path}/train.txt", "test_file": f"{tmp_path}/test.txt"}
    values = {
        "attacker": {"model": "a", "max_new_tokens": 10},
        "target": {"model": "b", "max_new_tokens": 20},
        "moderator": {"type": "secret_leak", "options": {"secret": "x"}},
        "reward": "harm",
        "prompts": files,
        "environment": {"tree_width": 2, "tree_depth": 2},
        "training": {"steps": 3, "episodes_per_step": 2},
    }
    return RunConfig.model_validate(values | changes)


TRAINED, EVALUATED = 3 * 2 * (2 + 4), 2 * 5 * 2


def rows_of(found: RunConfig) -> dict[str, EstimateRow]:
    return {row.name: row for row in estimate(resolve(found))}


def test_a_local_run_asks_nobody(tmp_path: Path) -> None:
    assert resolve(config(tmp_path)).endpoints == ()
    assert estimate(resolve(config(tmp_path))) == []


@pytest.mark.parametrize(
    "section",
    [
        {"target": endpoint("m", base_url="http://provider.example/v1")},
        {"evaluation": {"judge": moderation(base_url="http://provider.example/v1")}},
        {"evaluation": {"judge": judge("m", base_url="http://provider.example/v1")}},
    ],
)
def test_network_settings_are_checked_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any]
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="variable ALL_PROXY"):
        resolve(config(tmp_path, **section))


def test_a_judge_inside_a_reward_is_asked_about_every_turn(tmp_path: Path) -> None:
    reward = {
        "sum": [
            {"harm": {"moderator": judge("one", max_tokens=7, prices={"output": 1e6})}},
            {
                "gate": {
                    "part": "kl",
                    "when": {"gibberish": {"moderator": judge("two")}},
                    "at_most": 1,
                }
            },
        ]
    }
    found = rows_of(config(tmp_path, reward=reward))
    first = "reward.sum[0].harm.moderator.options.complete"
    second = "reward.sum[1].gate.when.gibberish.moderator.options.complete"
    assert set(found) == {first, second}
    assert found[first].requests == found[second].requests == TRAINED + EVALUATED
    assert found[first].output == found[first].cost == 7 * (TRAINED + EVALUATED)
    assert found[second].cost is None


def test_a_judge_of_an_environment_and_one_in_a_composition_are_asked_too(tmp_path: Path) -> None:
    quality = {"harm": {"moderator": {"type": "max", "of": [judge("one"), moderation()]}}}
    environment = {"type": "pruned_tree", "tree_depth": 1, "options": {"quality": quality}}
    found = rows_of(config(tmp_path, environment=environment))
    place = "environment.options.quality.harm.moderator.of"
    assert set(found) == {f"{place}.0.options.complete", f"{place}.1"}


def test_a_moderation_endpoint_is_asked_in_batches(tmp_path: Path) -> None:
    found = rows_of(config(tmp_path, moderator=moderation(batch_size=3, prices={"input": 1.0})))
    row = found["moderator"]
    # Levels of 4 and of 8 turns in each of 3 steps; two evaluations of levels of 5 turns.
    assert row.requests == 3 * (2 + 3) + 2 * (2 + 2)
    assert row.output == 0
    assert row.input == (TRAINED + EVALUATED) * (10 + 20)
    assert row.cost == pytest.approx(row.input / 1e6)


def test_other_targets_hear_every_attack_and_the_judge_hears_all_of_them(tmp_path: Path) -> None:
    others = [endpoint("one"), "a-model", endpoint("two")]
    reward = {"several_targets": {"others": others, "moderator": judge("three")}}
    found = rows_of(config(tmp_path, reward=reward))
    place = "reward.several_targets"
    assert set(found) == {
        f"{place}.others[0]",
        f"{place}.others[2]",
        f"{place}.moderator.options.complete",
    }
    assert found[f"{place}.others[2]"].requests == TRAINED + EVALUATED
    assert found[f"{place}.moderator.options.complete"].requests == 4 * (TRAINED + EVALUATED)


def test_further_replies_are_further_requests(tmp_path: Path) -> None:
    reward = {"harm": {"replies": 4}}
    found = rows_of(config(tmp_path, reward=reward, target=endpoint("t"), moderator=judge("j")))
    assert found["target"].requests == 4 * (TRAINED + EVALUATED)
    assert found["moderator.options.complete"].requests == 4 * (TRAINED + EVALUATED)


def test_a_judge_of_the_evaluation_is_asked_there_and_where_it_watches(tmp_path: Path) -> None:
    evaluation = {"judge": judge("j"), "watch": 5, "trials": 30}
    found = rows_of(config(tmp_path, evaluation=evaluation))
    row = found["evaluation.judge.options.complete"]
    assert row.requests == 3 * 5 + 2 * 150 * 2


def test_a_budget_of_money_is_content_with_prices_inside_a_reward(tmp_path: Path) -> None:
    def priced(**options: Any) -> RunConfig:
        reward = {"harm": {"moderator": judge("one", **options)}}
        return config(tmp_path, reward=reward, budget={"max_cost": 1.0})

    resolve(priced(prices={"input": 1.0}))
    with pytest.raises(ConfigurationError, match="no target and no judge has prices"):
        resolve(priced())
    resolve(config(tmp_path, moderator=moderation(prices={"input": 1}), budget={"max_cost": 1.0}))


@pytest.mark.parametrize("size", [0, "many", 1.5])
def test_a_batch_size_that_is_none_is_refused_before_it_is_reckoned_with(
    tmp_path: Path, size: Any
) -> None:
    with pytest.raises(ConfigurationError, match=r"moderator.options.batch_size"):
        resolve(config(tmp_path, moderator=moderation(batch_size=size)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"type": "opnai"}, "Did you mean 'openai'"),
        ({"type": "openai", "options": {"modl": "m"}}, "others[0].options.modl: unknown key"),
        ({"modl": "m"}, "reward.several_targets.others[0]"),
        (3, "reward.several_targets.others[0]"),
    ],
)
def test_another_target_that_cannot_be_is_refused_by_its_place(
    tmp_path: Path, other: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(config(tmp_path, reward={"several_targets": {"others": [other]}}))
    assert message in str(caught.value)
