"""TRL: rewards and moderators as reward functions, runs as data sets; extra ``harden``.

`as_reward_func` needs no package beside this one. `to_trl_dataset` needs ``datasets``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from astra_rl.agents import answer
from astra_rl.bridges.attacker import conversation_of, openings_of
from astra_rl.config.loading import load_moderator
from astra_rl.config.parts import build_moderator
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Conversation, Exchange, NoAttack, NotAsked
from astra_rl.errors import ConfigurationError, require
from astra_rl.evaluation.show.exports.preferences import (
    SafeReplies,
    write_preference_pairs,
    write_unpaired,
)
from astra_rl.infra.jsonio import parse_json
from astra_rl.methods.prompted_attacker import as_attacker_reads
from astra_rl.moderators.scoring import score_exchanges
from astra_rl.rewards.base import RewardPart, walk
from astra_rl.runs.folder import open_run_folder
from astra_rl.runs.recorded import Recorded
from astra_rl.targets.base import Target, messages_of

if TYPE_CHECKING:
    import datasets

RewardFunction = Callable[..., list[float | None]]
"""A reward function of TRL: called with prompts, completions and the columns of the data set."""
Form = Literal["preference", "unpaired", "prompt_completion", "sft", "attacker"]


def as_reward_func(
    reward: str | Moderator[Any, Any] | RewardPart,
    *,
    target: Target | None = None,
    moderator: str | Moderator[Any, Any] | None = None,
    weight: float = 1.0,
    name: str | None = None,
) -> RewardFunction:
    """Return a reward function for `trl.GRPOTrainer` and the trainers that take the same.

    Without a target, a completion is the response that is scored, and its prompt the conversation
    before it: the trained model is the one under test. With a target, a completion is an attack:
    the target answers it, and the reward is that of the answer. `to_trl_dataset` of the form
    ``"attacker"`` has the prompts and columns for this.

    Prompts and completions may be texts or lists of messages. Columns of the data set that are
    read: ``facts`` (a mapping, for moderators), and with a target ``system`` (its system message)
    and ``opening`` (text before the attack).

    Args:
        reward: A moderator, its name, a YAML file, or a reward term or combination that needs no
            probabilities of a model.
        target: Answers the attacks; None scores the completions.
        moderator: Moderator of a reward with terms that have none of their own.
        weight: Factor of every value; -1 teaches the model under test to avoid what is scored.
        name: Name in TRL's metrics; None is the name of the reward.

    Returns:
        A function with one value per completion; None, which TRL leaves out, where it is missing.

    Raises:
        ConfigurationError: The reward needs probabilities, or responses of a target that is not
            given.
    """
    score, title = scorer_of(reward, target, moderator)

    def reward_function(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Return one reward per completion."""
        exchanges = (
            _answers(prompts, completions, columns)
            if target is None
            else _attacks(completions, columns, target)
        )
        values = [weight * value + 0.0 for value in score(exchanges)]  # 0.0, not -0.0
        return [None if math.isnan(value) else value for value in values]

    reward_function.__name__ = name or title
    return reward_function


Scorer = Callable[[Sequence[Exchange]], Sequence[float]]
"""Scores turns of conversations; NaN is a missing score."""


def scorer_of(
    reward: str | Moderator[Any, Any] | RewardPart,
    target: Target | None,
    moderator: str | Moderator[Any, Any] | None,
) -> tuple[Scorer, str]:
    """Return what scores turns, and its name; the arguments are those of `as_reward_func`."""
    if not isinstance(reward, RewardPart):
        judge = _moderator(reward)
        title = reward if isinstance(reward, str) else type(reward).__name__
        return lambda exchanges: score_exchanges(judge, exchanges), title
    _check(reward, target)
    models = _Models(None if moderator is None else _moderator(moderator), target)
    return (
        lambda exchanges: _in_two_calls(reward, models, exchanges),
        reward.name or type(reward).__name__,
    )


def to_trl_dataset(
    run: str | Path,
    form: Form = "preference",
    *,
    phase: str = "after",
    safe_replies: Mapping[str, str] | None = None,
) -> datasets.Dataset:
    """Return the conversations of a run as a data set for TRL, in its conversational format.

    | form | columns | for |
    | --- | --- | --- |
    | ``preference`` | prompt, chosen, rejected | `DPOTrainer`: see `write_preference_pairs` |
    | ``unpaired`` | prompt, completion, label | `KTOTrainer`: see `write_unpaired` |
    | ``prompt_completion`` | prompt, completion | `SFTTrainer`: replies that did not fail |
    | ``sft`` | messages | `SFTTrainer`: the same as whole conversations |
    | ``attacker`` | prompt, opening, system, facts | `GRPOTrainer` of an attacker: what it reads |

    Args:
        run: Folder of the run.
        form: The form.
        phase: Phase of the run.
        safe_replies: Preferred replies of the target by attack.

    Raises:
        ConfigurationError: The form is unknown, or the phase has no row of it.
        MissingDependencyError: The extra ``data`` is not installed.
    """
    dataset = require("datasets", extra="data").Dataset
    if form == "attacker":
        return dataset.from_list([_attacker_row(each) for each in _openings(run, phase)])
    if form not in ("preference", "unpaired", "prompt_completion", "sft"):
        raise ConfigurationError(
            f"form={form!r}; choose preference, unpaired, prompt_completion, sft or attacker."
        )
    safe = None if safe_replies is None else SafeReplies(safe_replies)
    write = write_preference_pairs if form == "preference" else write_unpaired
    with tempfile.TemporaryDirectory() as folder, Recorded(open_run_folder(run), phase) as found:
        path = Path(folder) / "rows.jsonl"
        write(found, path, safe=safe)
        rows = [parse_json(line) for line in path.read_text("utf-8").split("\n") if line]
    if form in ("preference", "unpaired"):
        return dataset.from_list(rows)
    good = [row for row in rows if row["label"]]
    if not good:
        raise ConfigurationError(
            f"{run}: the target failed in every reply of the phase {phase!r}, so there is no "
            "completion to train on. Give safe_replies, or play each prompt several times."
        )
    if form == "sft":
        return dataset.from_list([{"messages": row["prompt"] + row["completion"]} for row in good])
    return dataset.from_list([{key: row[key] for key in ("prompt", "completion")} for row in good])


def _openings(run: str | Path, phase: str) -> list[Conversation]:
    return [each.conversation() for each in openings_of(run, phase)]


def _attacker_row(opening: Conversation) -> dict[str, Any]:
    return {
        "prompt": [dict(each) for each in messages_of(as_attacker_reads(opening))],
        "opening": opening.prompt,
        "system": opening.system or "",
        # A mapping would get every key of every row, with None where a row has it not.
        "facts": [list(pair) for pair in opening.facts.items()],
    }


def _moderator(given: str | Moderator[Any, Any]) -> Moderator[Any, Any]:
    return given if isinstance(given, Moderator) else build_moderator(load_moderator(given))


def _check(reward: RewardPart, target: Target | None) -> None:
    """Raise if a reward needs what TRL does not give."""
    for part in walk(reward):
        what = part.name or type(part).__name__
        if part.reads_model:
            raise ConfigurationError(
                f"the reward term {what} needs probabilities of a model, which a reward function "
                "of TRL has not. Leave it out; TRL has a KL penalty of its own (beta)."
            )
        if part.replies_per_turn and target is None:
            raise ConfigurationError(f"the reward term {what} samples responses; give a target.")


class _NoModerator(Moderator[Any, Any]):
    def moderate(self, x: Sequence[Any]) -> NoReturn:
        raise ConfigurationError("the reward has terms that need a moderator; give one.")


class _Models:
    """What a reward may use besides the exchanges; see `RewardModels`."""

    samples_exactly = True

    def __init__(self, moderator: Moderator[Any, Any] | None, target: Target | None) -> None:
        self.moderator = _NoModerator() if moderator is None else moderator
        self._target = target

    def rollout_prompt_with_target(self, contexts: Sequence[Any]) -> Sequence[Any]:
        if self._target is None:
            self._none()
        return answer(contexts, self._target.respond)

    def _none(self, *arguments: Any) -> NoReturn:
        raise ConfigurationError("a reward function of TRL has no models to ask.")

    get_attacker_logprobs = get_target_logprobs = get_baseline_logprobs = _none
    get_response_logprobs = embed = _none


def _in_two_calls(
    reward: RewardPart, models: _Models, exchanges: Sequence[Exchange]
) -> list[float]:
    """Evaluate a reward; turns without an attack come in a call of their own."""
    values = [math.nan] * len(exchanges)
    for without in (False, True):
        rows = [
            row
            for row, each in enumerate(exchanges)
            if isinstance(each.response, NotAsked) is without
        ]
        if rows:
            found, _ = reward.evaluate(models, [exchanges[row] for row in rows])
            for row, value in zip(rows, found, strict=True):
                values[row] = value
    return values


def _answers(
    prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
) -> list[Exchange]:
    """Return completions as responses to the last message of their prompts."""
    found = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        facts = _facts(columns, row)
        if isinstance(prompt, str):
            context, attack = Conversation(facts=facts), prompt
        else:
            # The response stands in for that of the model, so that the chat is complete.
            chat = [*prompt, {"role": "assistant", "content": ""}]
            whole = conversation_of(chat, Conversation(facts=facts, separator="\n"))
            attack = whole.turns[-2] if whole.turns else ""
            context = Conversation(
                turns=whole.turns[:-2], system=whole.system, facts=facts, separator="\n"
            )
        found.append(Exchange(context, attack, _text(completion)))
    return found


def _attacks(
    completions: Sequence[Any], columns: Mapping[str, Any], target: Target
) -> list[Exchange]:
    """Return completions as attacks, with the responses of the target."""
    contexts = [
        Conversation(
            _cell(columns, "opening", row),
            system=_cell(columns, "system", row) or None,
            facts=_facts(columns, row),
            separator="\n",
        )
        for row in range(len(completions))
    ]
    attacks = [_text(each) for each in completions]
    asked = [row for row, attack in enumerate(attacks) if attack.strip()]
    replies = iter(answer([contexts[row] + attacks[row] for row in asked], target.respond))
    return [
        Exchange(context, attack, next(replies))
        if attack.strip()
        else Exchange(context, NoAttack(written=attack), NotAsked())
        for context, attack in zip(contexts, attacks, strict=True)
    ]


def _text(completion: Any) -> str:
    """Return the text of a completion: a text, or messages whose last one has it."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    return content if isinstance(content, str) else ""


def _cell(columns: Mapping[str, Any], name: str, row: int) -> str:
    values = columns.get(name)
    return "" if values is None else str(values[row] or "")


def _facts(columns: Mapping[str, Any], row: int) -> dict[str, str]:
    """Return the facts of a row: a mapping, or pairs of name and value."""
    given = (columns.get("facts") or {}) and columns["facts"][row]
    pairs = given.items() if isinstance(given, Mapping) else given
    return {str(name): str(value) for name, value in pairs or () if value is not None}


__all__ = ["RewardFunction", "as_reward_func", "to_trl_dataset"]
