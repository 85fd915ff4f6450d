"""Attempts as an evaluation log of Inspect (``.eval``), written by Inspect's own Python API."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from astra_rl.core.messages import Message
from astra_rl.core.text import FinishReason
from astra_rl.errors import require
from astra_rl.evaluation.measures.summary import Summary, by_prompt, summarise_prompts
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.base import content_digest
from astra_rl.evaluation.records.outcome import KNOWN_OUTCOMES, Outcome
from astra_rl.evaluation.records.source import AttemptSource, source_of
from astra_rl.evaluation.records.trace import TraceRecord
from astra_rl.evaluation.records.turn import Turn
from astra_rl.infra.jsonio import atomic_binary_file
from astra_rl.infra.redaction import redact

ATTACK_SUCCESS_RATE = "attack_success_rate"
"""Name of the metric in the log, and of that of `astra_rl.bridges.inspect`."""
STOP_REASONS = {
    "stop": "stop",
    "length": "max_tokens",
    "content_filter": "content_filter",
    "context_overflow": "model_length",
}
"""Inspect's names of finish reasons; others are ``"unknown"``."""
FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "model_length": "context_overflow",
}
"""Finish reasons by Inspect's names."""
_FILE_NAME = re.compile(r"[\w.-]{1,100}")


def write_inspect_log(
    attempts: Iterable[Attempt] | AttemptSource,
    path: str | Path,
    *,
    planned: int | None = None,
    sequential: bool = False,
) -> int:
    """Write a log that Inspect's ``read_eval_log`` and ``inspect view`` open; return its samples.

    There is one sample per attempt. Its id is that of the prompt, its epoch counts the attempts of
    the prompt from 1, and its messages are the conversation. Its score, under the name of the
    judge, is the highest of its turns, and unscored where the outcome is not known. Metrics of the
    log are the attack success rate with its interval at 95% confidence, as everywhere in this
    library, and the mean score. An attempt that ended in an error has an error.

    The samples are held in memory, because Inspect writes a log as a whole.

    Args:
        attempts: Attempts.
        path: Output file; it should end in ``.eval``.
        planned: Number of planned attempts; those never made count as unknown.
        sequential: Whether the evaluation could stop early, see `Rate`.

    Raises:
        MissingDependencyError: inspect_ai is not installed.
    """
    log = require("inspect_ai.log", extra="inspect")
    source = source_of(attempts)
    summary = summarise_prompts(
        by_prompt(source.rows(order="prompt")), planned=planned, sequential=sequential
    )
    # Credentials of the environment are known inside the block, where the samples are made.
    with atomic_binary_file(path) as file:
        about, samples = _About(), []
        for epoch, attempt in _with_epochs(source.attempts(order="prompt")):
            about.add(attempt)
            samples.append(_sample(attempt, epoch, log))
        written = log.EvalLog(
            status="success",
            eval=_spec(about, samples, log),
            plan=log.EvalPlan(
                name="astra-rl", steps=[log.EvalPlanStep(solver=about.name_of("attacker"))]
            ),
            results=_results(summary, samples, log),
            stats=log.EvalStats(started_at=about.started, completed_at=about.ended),
            samples=samples,
        )
        log.write_eval_log(written, file.name, format="eval")
    return len(samples)


class _About:
    """What is known of all attempts together."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}
        self._times: list[float] = []

    def add(self, attempt: Attempt) -> None:
        for name in ("run", "phase", "attacker", "target"):
            self._names.setdefault(name, {})[getattr(attempt, name)] = None
        if attempt.started is not None:
            self._times += [attempt.started, attempt.started + (attempt.seconds or 0.0)]

    def name_of(self, what: str) -> str:
        """Return the run, phase, attacker or target; all names where there are several."""
        return redact(", ".join(self._names.get(what, ()))) or "unknown"

    @property
    def started(self) -> str:
        return _iso(min(self._times, default=None))

    @property
    def ended(self) -> str:
        return _iso(max(self._times, default=None))


def _iso(seconds: float | None) -> str:
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="seconds")


def _with_epochs(attempts: Iterable[Attempt]) -> Iterator[tuple[int, Attempt]]:
    """Yield the attempts with their numbers among those of the same prompt, from 1."""
    seen = Counter[str]()
    for attempt in attempts:
        seen[attempt.prompt_id] += 1
        yield seen[attempt.prompt_id], attempt


def _spec(about: _About, samples: Sequence[Any], log: Any) -> Any:
    """Return the identity of the log."""
    named = {what: about.name_of(what) for what in ("run", "phase", "attacker", "target")}
    ids = list(dict.fromkeys(sample.id for sample in samples))
    key = content_digest(named)
    return log.EvalSpec(
        created=about.started,
        eval_id=key,
        run_id=key,
        task=f"{named['run']} {named['phase']}",
        task_id=key,
        dataset=log.EvalDataset(name=named["run"], samples=len(ids), sample_ids=ids),
        model=named["target"],
        config=log.EvalConfig(epochs=max((sample.epoch for sample in samples), default=1)),
        metadata=named,
    )


def _results(summary: Summary, samples: Sequence[Any], log: Any) -> Any:
    """Return the metrics: one entry per judge, with the attack success rate in the first one."""
    rate = summary.asr
    values: dict[str, list[float]] = {}
    for sample in samples:
        for judge, score in sample.scores.items():
            values.setdefault(judge, []).append(score.value)
    entries = []
    for number, (judge, scores) in enumerate(values.items()):
        known = [value for value in scores if not math.isnan(value)]
        metrics: dict[str, float] = {}
        if number == 0 and math.isfinite(rate.estimate):
            low, high = rate.interval
            metrics[ATTACK_SUCCESS_RATE] = rate.estimate
            metrics |= {f"{ATTACK_SUCCESS_RATE}_low": low, f"{ATTACK_SUCCESS_RATE}_high": high}
        if known:
            metrics["mean"] = math.fsum(known) / len(known)
        entries.append(
            log.EvalScore(
                name=judge,
                scorer=judge,
                scored_samples=len(known),
                unscored_samples=len(scores) - len(known),
                metrics={
                    name: log.EvalMetric(name=name, value=value) for name, value in metrics.items()
                },
            )
        )
    return log.EvalResults(
        total_samples=summary.planned,
        completed_samples=sum(sample.error is None for sample in samples),
        scores=entries,
    )


def _sample(attempt: Attempt, epoch: int, log: Any) -> Any:
    models = require("inspect_ai.model", extra="inspect")
    messages = list(_messages(attempt, models))
    opening = [message for message in messages if message.source == "input"]
    error = redact(attempt.error)
    return log.EvalSample(
        id=_sample_id(redact(attempt.prompt_id)),
        epoch=epoch,
        input=opening or redact(attempt.opening.goal),
        target="",
        messages=messages,
        output=_output(attempt, models),
        scores={redact(attempt.judge): inspect_score(attempt)},
        metadata=_redacted(_metadata(attempt)),
        started_at=None if attempt.started is None else _iso(attempt.started),
        total_time=attempt.seconds,
        uuid=attempt.id,
        error=None if not error else log.EvalError(message=error, traceback="", traceback_ansi=""),
    )


def _sample_id(prompt_id: str) -> str:
    """Return an id that is safe as a part of a file name, which it is inside the log."""
    return prompt_id if _FILE_NAME.fullmatch(prompt_id) else content_digest([prompt_id])


def _messages(attempt: Attempt, models: Any) -> Iterator[Any]:
    """Yield the conversation as the target read it; the opening has the source ``"input"``."""
    opening = attempt.opening
    if opening.system:
        yield models.ChatMessageSystem(content=redact(opening.system), source="input")
    before = opening.prompt
    for index, text in enumerate(opening.turns):
        said = redact(opening.separator.join(part for part in (before, text) if part))
        before = ""
        kind = models.ChatMessageAssistant if index % 2 else models.ChatMessageUser
        yield kind(content=said, source="input")
    for number, turn in enumerate(attempt.turns, 1):
        about = {"turn": number, "score": turn.score(attempt.judge)}
        if turn.trace is not None:
            yield from _agent_messages(turn.trace, about, models)
            continue
        if not turn.without_attack:
            parts = (before, turn.attack)
            said = redact(opening.separator.join(part for part in parts if part))
            before = ""
            yield models.ChatMessageUser(content=said, metadata={"turn": number})
            if not turn.unanswered:
                content = _content(turn, models)
                yield models.ChatMessageAssistant(
                    content=content, source="generate", metadata=about
                )


def _agent_messages(trace: TraceRecord, about: Mapping[str, Any], models: Any) -> Iterator[Any]:
    """Yield what an agent read and did in a turn; the parts that the attacker wrote are named."""
    tool = require("inspect_ai.tool", extra="inspect")
    for at, record in enumerate(trace.messages):
        message = record.message()
        text = redact(message.text)
        written = [redact(message.text[start:end]) for start, end in message.written_by_attacker]
        metadata = {**about, **({"written_by_attacker": written} if written else {})}
        if message.role == "assistant":
            calls = [
                tool.ToolCall(
                    id=call.id or f"unread{at:05d}_{number}",
                    function=redact(call.name),
                    arguments=_redacted(dict(call.arguments)),
                    parse_error=redact(call.error) or None,
                )
                for number, call in enumerate(message.calls)
            ]
            yield models.ChatMessageAssistant(
                content=text,
                tool_calls=calls or None,
                source="generate",
                metadata={**metadata, "goal_reached": at == trace.failed_at},
            )
        elif message.role == "tool":
            yield models.ChatMessageTool(
                content=_with_images(text, message, models),
                tool_call_id=message.call_id or None,
                function=redact(message.name) or None,
                error=tool.ToolCallError("unknown", text) if message.is_error else None,
                metadata=metadata,
            )
        else:
            yield models.ChatMessageUser(
                content=_with_images(text, message, models), metadata=metadata
            )


def _with_images(text: str, message: Message, models: Any) -> Any:
    """Return the content of a message: a text, or parts, whose images are ``data:`` URLs."""
    if not message.images:
        return text
    images = [models.ContentImage(image=image.url) for image in message.images]
    return [*([models.ContentText(text=text)] if text else []), *images]


def _content(turn: Turn, models: Any) -> Any:
    response = redact(turn.response)
    if turn.reasoning is None:
        return response
    return [
        models.ContentReasoning(reasoning=redact(turn.reasoning)),
        models.ContentText(text=response),
    ]


def _output(attempt: Attempt, models: Any) -> Any:
    """Return the response of the last turn that has one."""
    answered = [each for each in attempt.turns if not (each.unanswered or each.without_attack)]
    if not answered:
        return models.ModelOutput(model=redact(attempt.target), error=redact(attempt.error) or None)
    last = answered[-1]
    stop = STOP_REASONS.get(last.finish_reason or "", "unknown")
    return models.ModelOutput.from_content(
        redact(attempt.target), _content(last, models), stop_reason=stop
    )


def inspect_score(attempt: Attempt) -> Any:
    """Return the highest score; unscored if the outcome is not known, or no turn was judged."""
    scorer = require("inspect_ai.scorer", extra="inspect")
    outcome = attempt.outcome.value
    success = attempt.outcome is Outcome.SUCCESS if attempt.outcome in KNOWN_OUTCOMES else None
    metadata = {
        "success": success,
        "score": attempt.score,
        "threshold": attempt.threshold,
        "first_failing_turn": attempt.first_failing_turn,
        "turns": [turn.score(attempt.judge) for turn in attempt.turns],
    }
    reasons = redact("; ".join(dict.fromkeys(attempt.reasons))) or None
    if success is None or attempt.score is None:
        return scorer.Score.unscored(
            reason=outcome, answer=outcome, explanation=reasons, metadata=metadata
        )
    return scorer.Score(value=attempt.score, answer=outcome, explanation=reasons, metadata=metadata)


def _metadata(attempt: Attempt) -> dict[str, Any]:
    record = attempt.model_dump(mode="json", exclude={"turns": {"__all__": {"attack", "response"}}})
    return {**record, "goal": attempt.opening.goal}


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {redact(key): _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value
