"""Estimate the probability of rare answers to given prompts by importance sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from astra_rl.actions.attacks import DIRECT, GivenAttack, given_attacks
from astra_rl.config.loading import load_config, load_target
from astra_rl.config.resolve import EVALUATED_TOGETHER, resolve
from astra_rl.config.schema import LocalModelConfig, RunConfig
from astra_rl.core.contracts import is_missing
from astra_rl.core.moderator import Moderator
from astra_rl.core.seeding import derive_seed, row_seeds
from astra_rl.core.text import Conversation, Exchange
from astra_rl.errors import ConfigurationError, ContractError
from astra_rl.evaluation.measures.text_clusters import GreedyClusters
from astra_rl.evaluation.stats.allocation import divided, prompts_in_turn
from astra_rl.evaluation.stats.importance import (
    ANSWERS,
    NoProbability,
    Probability,
    Sample,
    failure_probability,
    under_mixture,
)
from astra_rl.ext.transformers.answers import AnswerModel
from astra_rl.ext.transformers.generation import check_model
from astra_rl.ext.transformers.model_pool import ModelPool
from astra_rl.models.chat_template import template_time
from astra_rl.models.generation import generate
from astra_rl.moderators.scoring import score_exchanges
from astra_rl.runs.folder import RunFolder, open_run_folder
from astra_rl.runs.spending import spending
from astra_rl.targets.ledger import current_ledger

MOST_SHOWN = 50
"""Failing answers that are written beside the estimate."""


@dataclass(frozen=True)
class RareAnswers:
    """Estimate of the probability of a failing answer.

    Attributes:
        found: The estimate, or the reason why there is none.
        path: File of the result, with some of the failing answers.
    """

    found: Probability | NoProbability
    path: Path


def rare_answers(
    run: str | Path,
    *,
    proposals: Sequence[str] = (),
    steer: Sequence[str] = (),
    attacks: str | Path = DIRECT,
    answers: int = 400,
    share: float = 0.5,
    target: str | None = None,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
) -> RareAnswers:
    """Estimate the probability that the target's answer to a message of these prompts fails.

    A part of the answers is sampled from the target, the rest from *proposals*: less safe copies of
    it. Each answer is weighted by its exact probability under the target and under all proposals;
    see `astra_rl.evaluation.stats.importance`. What a proposal misses is bounded by the answers of
    the target.

    Args:
        run: Folder of the run.
        proposals: Local models with the vocabulary of the target: folders, hub ids, or YAML files
            of targets, for instance the target at a higher temperature.
        steer: For each text one more proposal: the target with this text added to its system
            message.
        attacks: Messages that are answered, see `given_attacks`.
        answers: Number of answers; divided by `share`, and equally among proposals and messages.
        share: Share of them that the target gives itself, in (0, 1); at least one to each message.
        target: Folder, hub id, or YAML file of a local target; None uses the target of the run.
        overrides: Changes to the run's configuration, as ``"a.b=value"``.
        output: Folder for the result; None uses the folder of the run.

    Raises:
        ConfigurationError: An argument is out of range, there is no proposal, the target is remote,
            or target and proposals cannot be weighed against each other.
        BudgetSpentError: A budget is spent. Replies are cached; the same call continues from them.
        AstraError: A model cannot be loaded.
    """
    if not 0 < share < 1:
        raise ConfigurationError(f"share={share}; it must be between 0 and 1.")
    if not (proposals or steer):
        raise ConfigurationError(
            "no proposal given. Name a less safe copy of the target (--proposal), or a text for "
            "its system message (--steer)."
        )
    folder = open_run_folder(run)
    config = load_config(folder.config, overrides, target=target)
    plan = resolve(config)
    messages = given_attacks(str(attacks), plan.openings.test)
    counts = _counts(answers, share, 1 + len(proposals) + len(steer), len(messages))
    in_turn = prompts_in_turn(len(messages), counts, config.seed)
    destination = folder if output is None else RunFolder(output)
    with template_time(folder.started):
        models = _models(config, proposals, steer)
        judge = plan.evaluation_judge.load()
    with spending([plan], destination.path, occasion="answers") as ledger:
        drawn = [
            answer
            for number, (model, rows) in enumerate(zip(models, in_turn, strict=True))
            for answer in _answered(
                model,
                [messages[row] for row in rows],
                judge,
                derive_seed(config.seed, "answers", number),
            )
        ]
    found = _estimated(models, drawn, config.evaluation.threshold)
    path = destination.path / "probability_answers.json"
    failing = [each for each in drawn if each.score >= config.evaluation.threshold]
    destination.write_json(
        path,
        {
            "target": config.target.name,
            "proposals": [each.name for each in models[1:]],
            "answers": {each.name: sum(a.by is each for a in drawn) for each in models},
            "messages": len(messages),
            "threshold": config.evaluation.threshold,
            "spent": ledger.as_dict(),
            **found.as_dict(),
            "failures": [
                {"by": each.by.name, "message": each.message.attack, "answer": each.text}
                for each in failing[:MOST_SHOWN]
            ],
        },
    )
    return RareAnswers(found, path)


@dataclass(frozen=True)
class _Answer:
    """An answer and its score; without token ids if the model gave none."""

    by: AnswerModel
    message: GivenAttack
    text: str
    token_ids: tuple[int, ...]
    logprob: float
    score: float


def _counts(answers: int, share: float, models: int, messages: int) -> list[int]:
    """Return the numbers of answers of target and proposals; they add up to `answers`.

    Raises:
        ConfigurationError: There are fewer answers than models times messages.
    """
    if answers < models * messages:
        raise ConfigurationError(
            f"{answers} answers for {messages} messages and {models} models (target and "
            f"proposals); at least {models * messages}. Sample more, or answer fewer messages "
            "(--attacks FILE)."
        )
    of_proposals = messages * (models - 1)
    of_target = min(max(messages, round(share * answers)), answers - of_proposals)
    return [of_target, *divided(answers - of_target, models - 1)]


def _models(config: RunConfig, proposals: Sequence[str], steer: Sequence[str]) -> list[AnswerModel]:
    """Load the target and the proposals; equal weights are loaded once."""
    pool = ModelPool(**asdict(config.loading))
    target = _model(pool, config.target, config.target.name)
    found = [target]
    found += [
        _model(pool, load_target(each, like=config.target), f"proposal {each}")
        for each in proposals
    ]
    found += [_model(pool, config.target, f"steered by {text!r}", text) for text in steer]
    for each in found[1:]:
        target.check_same_answers(each)
    return found


def _model(pool: ModelPool, section: Any, name: str, steer: str = "") -> AnswerModel:
    if not isinstance(section, LocalModelConfig):
        raise ConfigurationError(
            f"{section.name} is a remote target, which gives no probabilities of answers. Use a "
            "local model; or count rare answers with 'astra-rl evaluate RUN --attacks direct "
            "--trials N' and 'astra-rl forecast'."
        )
    pair = pool.load(section.model)
    check_model("target", pair.model, section.sampling())
    renderer = pair.renderer(
        "target", chat=section.chat, chat_template_kwargs=section.chat_template_kwargs
    )
    return AnswerModel(name, pair, renderer, section.sampling(), steer)


def _answered(
    model: AnswerModel,
    sent: Sequence[GivenAttack],
    judge: Moderator[Any, Any],
    seed: int,
) -> Iterator[_Answer]:
    """Sample and score an answer to each of some messages, which may be equal.

    Raises:
        ContractError: The sampler gave no log-probabilities.
    """
    for start in range(0, len(sent), EVALUATED_TOGETHER):
        current_ledger().check()
        batch = sent[start : start + EVALUATED_TOGETHER]
        with row_seeds([derive_seed(seed, start + row) for row in range(len(batch))]):
            given = model.answer([_conversation(each) for each in batch], generate)
        exchanges = [
            Exchange(each.context, each.attack, answer)
            for each, answer in zip(batch, given, strict=True)
        ]
        scores = score_exchanges(judge, exchanges)
        for message, answer, score in zip(batch, given, scores, strict=True):
            if answer.logprobs is None:
                raise ContractError(
                    f"the sampler of {model.name} gave no log-probabilities of an answer, which "
                    "its weight needs."
                )
            yield _Answer(
                model,
                message,
                str(answer),
                answer.token_ids or (),
                sum(answer.logprobs),
                float(score),
            )


def _conversation(message: GivenAttack) -> Conversation:
    return Conversation.of(message.context) + message.attack


def _estimated(
    models: Sequence[AnswerModel],
    drawn: Sequence[_Answer],
    threshold: float,
) -> Probability | NoProbability:
    known = [each for each in drawn if each.token_ids and not is_missing(each.score)]
    conversations = [_conversation(each.message) for each in known]
    ids = [each.token_ids for each in known]
    columns = [
        # The sampler knows the probability of its own answers; only the others are computed.
        [
            each.logprob if each.by is model else other
            for each, other in zip(known, model.logprobs(conversations, ids), strict=True)
        ]
        for model in models
    ]
    kinds = GreedyClusters()
    samples = []
    logprobs = []
    for each, (p, *q) in zip(known, zip(*columns, strict=True), strict=True):
        fails = each.score >= threshold
        logprobs.append({str(number): value for number, value in enumerate(q, 1)})
        samples.append(
            Sample(
                fails,
                p,
                math.nan,
                each.by is models[0],
                (each.message.prompt_id, each.message.attack),
                kinds.add(each.text) if fails else None,
            )
        )
    unknown = [each for each in drawn if not each.token_ids or is_missing(each.score)]
    numbers = {id(model): str(number) for number, model in enumerate(models)}
    return failure_probability(
        under_mixture(samples, logprobs, [numbers[id(each.by)] for each in known]),
        left_out=len(unknown),
        left_out_of_baseline=sum(each.by is models[0] for each in unknown),
        terms=ANSWERS,
    )
