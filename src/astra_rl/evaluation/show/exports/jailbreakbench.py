"""Attempts as a JailbreakBench artifact (Chao et al., arXiv 2404.01318)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Literal

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.evaluation.stats.rates import Rate
from astra_rl.infra.jsonio import write_json


def write_jailbreakbench(
    attempts: Iterable[Attempt] | AttemptSource,
    path: str | Path,
    *,
    method: str | None = None,
    attack_type: Literal["white_box", "black_box", "transfer", "manual"] = "white_box",
    provider: str = "local",
    parameters: Mapping[str, str | int | float] | None = None,
) -> int:
    """Write one entry per prompt: its first success, or its last attempt; return the number.

    The goal is that of the opening, else its prompt; the id of the prompt is the behavior. In
    conversations of several turns, ``prompt`` and ``response`` are of the first successful turn, or
    of the last turn. The format has no unknown outcome, so a prompt without a success of which an
    outcome is unknown is left out, and ``method_parameters`` has ``prompts_left_out``.

    Args:
        attempts: Attempts of one attacker against one target.
        path: Output file.
        method: Name of the attack; None means the attacker's name.
        attack_type: Knowledge of the target that the attack uses.
        provider: Provider of the target.
        parameters: Settings of the attack.

    Raises:
        ConfigurationError: There are no attempts, or several attackers or targets.
    """
    source = source_of(attempts)
    index: dict[str, int] = {}
    pairs = set()
    for row in source.rows():
        index.setdefault(row.prompt_id, len(index))
        pairs.add((row.attacker, row.target))
    if len(pairs) != 1:
        raise ConfigurationError(
            f"these attempts have {len(pairs)} pairs of attacker and target; a JailbreakBench "
            "artifact has exactly one. Export each pair by itself."
        )
    attacker, target = pairs.pop()
    groups = groupby(source.attempts(order="prompt"), key=attrgetter("prompt_id"))
    entries = [_entry(index[prompt], group) for prompt, group in groups]
    jailbreaks = sorted((each for each in entries if each), key=itemgetter("index"))
    unknown = {"prompts_left_out": left} if (left := len(entries) - len(jailbreaks)) else {}
    won = sum(entry["jailbroken"] for entry in jailbreaks)
    data = {
        "parameters": {
            "method": method or attacker,
            "model": target,
            "attack_type": attack_type,
            "defense": None,
            "attack_success_rate": Rate(won, len(jailbreaks)).estimate,
            "total_number_of_jailbreaks": won,
            "number_of_submitted_prompts": len(jailbreaks),
            "total_number_of_queries": _total(jailbreaks, "number_of_queries"),
            "total_prompt_tokens": _total(jailbreaks, "prompt_tokens"),
            "total_response_tokens": _total(jailbreaks, "response_tokens"),
            "evaluation_date": datetime.now(UTC).date().isoformat(),
            "evaluation_llm_provider": provider,
            "method_parameters": {**(parameters or {}), **unknown},
        },
        "jailbreaks": jailbreaks,
    }
    write_json(data, path)
    return len(jailbreaks)


def _entry(index: int, attempts: Iterable[Attempt]) -> dict[str, Any] | None:
    """Return the entry of a prompt, from its attempts in the order of their trials.

    None if it is not known whether one of them succeeded.
    """
    queries = 0
    is_known = True
    to_jailbreak: int | None = None
    attack_tokens: list[int | None] = []
    response_tokens: list[int | None] = []
    for each in attempts:
        if to_jailbreak is None:
            attempt = each  # the first success, or else the last attempt
            if each.failing_turn:
                to_jailbreak = queries + each.queries_per_turn * (each.first_failing_turn or 0)
        is_known &= each.outcome in KNOWN_OUTCOMES
        queries += each.queries_per_turn * len(each.sent)
        attack_tokens += [turn.attack_tokens for turn in each.turns]
        response_tokens += [turn.response_tokens for turn in each.turns]
    if to_jailbreak is None and not is_known:
        return None
    shown = attempt.failing_turn or (attempt.turns[-1] if attempt.turns else None)
    return {
        "index": index,
        "goal": attempt.opening.goal,
        "behavior": attempt.prompt_id,
        "category": attempt.category,
        "prompt": shown.attack if shown else None,
        "response": shown.response if shown else None,
        "number_of_queries": queries,
        "queries_to_jailbreak": to_jailbreak,
        "prompt_tokens": _sum(attack_tokens),
        "response_tokens": _sum(response_tokens),
        "jailbroken": to_jailbreak is not None,
    }


def _total(entries: Sequence[Mapping[str, Any]], key: str) -> int | None:
    return _sum([entry[key] for entry in entries])


def _sum(values: Sequence[int | None]) -> int | None:
    """Return the sum; None if any value is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
