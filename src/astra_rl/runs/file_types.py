"""Types of the JSON files of a run folder, which may come from another person.

A type has the fields that are read, with their ranges; other fields are kept as they are. Fields
that earlier versions did not write are not required. `astra_rl.runs.folder.read_own` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from astra_rl.evaluation.records.base import MAX_COUNT, Count
from astra_rl.targets.accounts import LedgerFile

Amount = Annotated[float, Field(ge=0, le=MAX_COUNT)]
"""A number from 0 to `MAX_COUNT`."""
Real = Annotated[float, Field(ge=-MAX_COUNT, le=MAX_COUNT)]
"""A finite number of any sign."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""
Difference = Annotated[float, Field(ge=-1, le=1)]
"""A difference of two shares."""


class FileOfARun(BaseModel):
    """Base of the types: no conversion, so text is no number and a boolean is no count."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class SourceOfPrompts(FileOfARun):
    """Checksum of a source of prompts."""

    name: str
    sha256: str


class Resumed(FileOfARun):
    """A resume of a run."""

    at_step: Count


class Manifest(FileOfARun):
    """``manifest.json``; fields that are null are not written."""

    run: str | None = None
    title: str | None = None
    command: str = ""
    seed: int | None = None
    started: str = ""
    versions: dict[str, str] = {}
    prompts: list[SourceOfPrompts] = []
    files: dict[str, str] = {}
    seconds: dict[str, Amount] = {}
    continued: list[Resumed] = []
    warnings: list[str] = []
    notes: list[str] = []
    spent: LedgerFile | None = None


class Counts(FileOfARun):
    """A confusion matrix, see `astra_rl.evaluation.stats.classification.Confusion`."""

    true_positives: Count
    false_positives: Count
    true_negatives: Count
    false_negatives: Count


class Quality(FileOfARun):
    """Measured errors of a judge, see `JudgeQuality`."""

    labels: str
    rows: Count
    threshold: Share
    created: str
    counts: Counts
    by_group: list[Annotated[list[Count], Field(min_length=4, max_length=4)]] = []


def _with_counts(quality: Any) -> Any:
    """Return None for the quality of an earlier version, which had no counts."""
    has_none = isinstance(quality, Mapping) and "counts" not in quality
    return None if has_none else quality


class Kinds(FileOfARun):
    """An effective number of kinds of attack, and its lower bound."""

    estimate: Amount | None = None
    low: Amount | None = None


class Diversity(FileOfARun):
    """Diversity of the successful attacks."""

    effective_by_meaning: Kinds | None = None


class EvaluationFile(FileOfARun):
    """``evaluation_*.json``, as far as pages and commands on recorded conversations read it."""

    until: str | None = None
    judge_quality: Annotated[Quality | None, BeforeValidator(_with_counts)] = None
    diversity: Diversity | None = None
    n: Count = 0
    planned: Count | None = None


class PlayedEvaluation(EvaluationFile):
    """``evaluation_*.json``, as far as the results of a resumed run show it."""

    judge: str
    threshold: Share
    mean_attack_nll: Real | None
    effective_attacks: Kinds
    distinct_attacks: Count


class PlayedShard(FileOfARun):
    """``evaluation_*.json`` of a shard, as far as it is merged; the rest is computed again."""

    n: Count
    judge_quality: Quality | None


class JudgeIdentity(FileOfARun):
    """Identity of a judge, see `Identity.as_dict`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str
    weights: str | None
    settings: str


class ShardedEvaluation(FileOfARun):
    """What identifies the evaluation that a shard belongs to."""

    judge: JudgeIdentity
    order: Literal["planned", "random"]


class ShardFile(FileOfARun):
    """``shard_*.json``, see `astra_rl.runs.shards.claim`."""

    number: Annotated[Count, Field(ge=1)]
    count: Annotated[Count, Field(ge=1)]
    evaluation: ShardedEvaluation


class TransferCell(FileOfARun):
    """A cell of ``transfer.json``, see `TransferMatrix.as_dict`."""

    attacker: str
    target: str
    successes: Count
    trials: Count
    unscored: Count = 0
    estimate: Share | None
    low: Share
    high: Share

    @model_validator(mode="after")
    def _measured(self) -> Self:
        # With unknown outcomes there may be none, see `Rate.by_turn`.
        if self.trials and not self.unscored and self.estimate is None:
            raise ValueError("estimate is missing")
        return self


class PlainSampling(FileOfARun):
    """Failures among the conversations at the start of a splitting."""

    successes: Count
    trials: Count


class RareFile(FileOfARun):
    """``probability_rare.json``, see `RareProbability.as_dict`."""

    estimate: Share
    low: Share | None
    high: Share | None
    seen_low: Share | None
    seen_high: Share | None
    relative_error: Amount | None
    runs: list[Share]
    target_calls: Count
    stages: Amount
    plain: PlainSampling
    plain_by_prompt: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] = []


class AnswersEvidence(FileOfARun):
    """Data behind the probability of an answer, see `Evidence.as_dict`."""

    samples: Count
    failures: Count
    effective_failures: Amount
    unseen: Share


class AnswersFile(FileOfARun):
    """``probability_answers.json``, see `rare_answers`."""

    target: str
    proposals: list[str]
    messages: Count
    estimate: Share | None
    low: Share
    high: Share
    seen_low: Share | None
    seen_high: Share | None
    reason: str | None
    evidence: AnswersEvidence


class Named(FileOfARun):
    """A side of a comparison."""

    name: str


class Pairs(FileOfARun):
    """Paired outcomes of a comparison, see `PairedComparison.as_dict`."""

    both: Count
    only_a: Count
    only_b: Count
    neither: Count
    difference: Difference | None
    low: Difference | None
    high: Difference | None
    p_value: Share | None
    sequential: bool = False


class Attacked(FileOfARun):
    """A conversation of a comparison: its attacks."""

    attacks: Annotated[list[str], Field(min_length=1)]


class ComparisonFile(FileOfARun):
    """A file of ``comparisons``, see `Comparison.as_dict`."""

    a: Named
    b: Named
    pairs: Pairs
    only_b: list[Attacked] = []


class Phrase(FileOfARun):
    """A phrase that attacks with a high reward share, see `SharedNgram`."""

    text: str
    high: Share
    others: Share


class WatchRow(FileOfARun):
    """A line of ``reward_watch.jsonl``."""

    moderator: Real | None = Field(None, alias="watch/moderator")
    judge: Real | None = Field(None, alias="watch/judge")
    shared_ngrams: list[Phrase] = []


class CellOfArchive(FileOfARun):
    """A cell of ``archive.json``, see `astra_rl.methods.archive.Archive.as_dict`."""

    risk: str
    style: str
    attack: str | None = None
    score: Real | None = None


class FirstRun(FileOfARun):
    """``first_run.json`` of a hardening."""

    run: str


Drawn = dict[str, Share]
"""``drawn_*.json`` of a hardening: how often each opponent is drawn, by name."""
