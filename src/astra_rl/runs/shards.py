"""Shards: one evaluation divided over processes or machines, and put together again.

Planned conversations are played in batches of `EVALUATED_TOGETHER`. A shard plays whole batches,
every n-th one, so that each is computed as in one process, to the last bit. It records in a folder
of its own, with a file that identifies the evaluation; `merging` accepts the complete set only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from astra_rl.config.resolve import EVALUATED_TOGETHER
from astra_rl.core.problem import Problem
from astra_rl.core.weights import fingerprint, weights_of
from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.from_graphs import Labels
from astra_rl.moderators.identity import Identity
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.file_types import PlayedShard, ShardFile
from astra_rl.runs.folder import RunFolder, file_stem, read_own
from astra_rl.targets.accounts import LedgerFile

FOLDER = "shards"
"""Folder of the shards inside the folder of the results."""
Key = tuple[str, int]
"""Prompt id and trial of a planned conversation."""


@dataclass(frozen=True, order=True)
class Shard:
    """One of the parts of an evaluation.

    Attributes:
        number: Number of the shard, from 1.
        count: Number of shards.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read a shard as the command line gives it, for instance ``"2/8"``.

        Raises:
            ConfigurationError: It is none.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigurationError(
                f"--shard {text!r}; it must be i/n with 1 <= i <= n, for instance 2/8."
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        """Return it as on the command line."""
        return f"{self.number}/{self.count}"

    def folder(self, results: Path) -> Path:
        """Return the folder of the shard inside the folder of the results."""
        return results / FOLDER / f"{self.number}-of-{self.count}"

    def places(self, planned: int) -> list[int]:
        """Return which of the planned conversations it plays, by their place in the plan.

        Raises:
            ConfigurationError: There are fewer batches than shards.
        """
        batches = -(-planned // EVALUATED_TOGETHER)
        if self.count > batches:
            raise ConfigurationError(
                f"--shard {self}: {planned} conversations are played in batches of "
                f"{EVALUATED_TOGETHER}, and a shard has at least one, so there can be at most "
                f"{batches}. Use fewer shards, or more --trials."
            )
        return [
            place
            for place in range(planned)
            if place // EVALUATED_TOGETHER % self.count == self.number - 1
        ]

    def share(self, planned: int) -> Fraction:
        """Return the part of the planned conversations that it plays."""
        return Fraction(len(self.places(planned)), planned)


def models_of(problem: Problem[str, str]) -> dict[str, str | None]:
    """Return what identifies the models of an evaluation: fingerprints of weights, or names."""
    found = {role: getattr(problem, role, None) for role in ("attacker", "target", "baseline")}
    return {
        role: fingerprint(model) if isinstance(model, nn.Module) else weights_of(model)
        for role, model in found.items()
    }


def shard_file(folder: RunFolder, phase: str) -> Path:
    """Return the file that identifies a shard of a phase."""
    return folder.path / f"shard_{file_stem(phase)}.json"


def order_of(folders: Iterable[Path], phase: str) -> str | None:
    """Return the order of play of the shards in these folders; None if there are none."""
    for path in folders:
        folder = RunFolder(path)
        if shard_file(folder, phase).is_file():
            kept = read_own(shard_file(folder, phase), ShardFile)
            return str(kept["evaluation"]["order"])
    return None


def claim(folder: RunFolder, phase: str, shard: Shard, identity: Mapping[str, Any]) -> None:
    """Write what a shard belongs to, or check it against what an interrupted one has written.

    Raises:
        ConfigurationError: The folder has a shard of another evaluation.
    """
    path = shard_file(folder, phase)
    if path.is_file():
        kept = read_own(path, ShardFile)
        different = _differences(kept["evaluation"], identity)
        if different or (kept["number"], kept["count"]) != (shard.number, shard.count):
            raise ConfigurationError(
                f"{folder.path} holds a shard of another evaluation ({different or 'its number'}). "
                "Remove the folder, or choose another with --output."
            )
    folder.write_json(
        path,
        {
            "schema_version": 1,
            "number": shard.number,
            "count": shard.count,
            "evaluation": dict(identity),
        },
    )


def kept_attempts(path: Path, keys: Sequence[Key], labels: Labels, *, whole: int) -> list[Attempt]:
    """Return the attempts of an interrupted shard, in whole batches.

    Args:
        path: Its log; it may be missing.
        keys: The conversations that it plays, in order.
        labels: Those of its attempts.
        whole: Number of conversations of a batch.
    """
    found: list[Attempt] = []
    if path.is_file():
        with AttemptLog(path) as log:
            for attempt, key in zip(log.attempts(), keys, strict=False):
                if _key(attempt) != key or not _has(attempt, labels):
                    break
                found.append(attempt)
    return found if len(found) == len(keys) else found[: len(found) // whole * whole]


@dataclass(frozen=True)
class Merged:
    """The shards of an evaluation, checked.

    Attributes:
        attempts: All attempts, in the order of the plan.
        judge: Identity of the judge, see `Identity.as_dict`.
        quality: Its measured errors, see `JudgeQuality.as_dict`; None if it is not calibrated.
        ledgers: What each shard spent.
    """

    attempts: Sequence[Attempt]
    judge: Mapping[str, str | None]
    quality: Mapping[str, Any] | None
    ledgers: Sequence[LedgerFile]


def merged(
    places: Sequence[Path],
    phase: str,
    keys: Sequence[Key],
    known: Mapping[str, Any],
    labels: Labels,
) -> Merged:
    """Read the shards of an evaluation and check that they are all of it and nothing else.

    Args:
        places: Folders of results that have shards.
        phase: Name of the phase.
        keys: All planned conversations, in order.
        known: What is known of the evaluation without its models; the rest has to be the same in
            all shards.
        labels: Those of its attempts.

    Raises:
        ConfigurationError: A shard is missing, doubled, unfinished, or of another evaluation.
    """
    shards = _complete(places, phase)
    first = shards[0]
    reference = {**first.evaluation, **known}
    judge = reference["judge"]
    labels = replace(labels, judge_id=Identity(**judge).digest)
    found: dict[Key, Attempt] = {}
    for each in shards:
        _check_same(each, first, reference)
        own = {keys[at] for at in each.shard.places(len(keys))}
        attempts = each.attempts(own, labels)
        if len(attempts) != each.result["n"]:
            raise ConfigurationError(
                f"{each} has {len(attempts)} attempts, and its result was computed from "
                f"{each.result['n']}: it is damaged. Play it again."
            )
        found |= attempts
    return Merged(
        [found[key] for key in keys if key in found],
        judge,
        first.result["judge_quality"],
        [each.ledger for each in shards if each.ledger is not None],
    )


@dataclass(frozen=True)
class _Played:
    """A shard that was played.

    Attributes:
        shard: Which one.
        folder: Its folder.
        phase: Name of the phase.
        evaluation: What identifies its evaluation.
    """

    shard: Shard
    folder: RunFolder
    phase: str
    evaluation: Mapping[str, Any]

    def __str__(self) -> str:
        return f"shard {self.shard} ({self.folder.path})"

    @cached_property
    def result(self) -> Mapping[str, Any]:
        """The metrics of the shard."""
        return read_own(self.folder.evaluation(self.phase), PlayedShard)  # type: ignore[no-any-return]

    @property
    def ledger(self) -> LedgerFile | None:
        """What it spent; None if it called no endpoint."""
        path = self.folder.path / f"ledger_{self.phase}.json"
        return LedgerFile.of(read_own(path, LedgerFile)) if path.is_file() else None

    def attempts(self, keys: AbstractSet[Key], labels: Labels) -> dict[Key, Attempt]:
        """Return the attempts, each of which has to be one that the shard plays."""
        found: dict[Key, Attempt] = {}
        with AttemptLog(self.folder.attempts_of(self.phase)) as log:
            if log.health.unreadable or log.health.torn:
                raise ConfigurationError(
                    f"{self} is damaged: {log.path} has lines without records."
                )
            for attempt in log.attempts():
                key = _key(attempt)
                if key not in keys or not _has(attempt, labels):
                    raise ConfigurationError(
                        f"{self} has an attempt that is not its own ({attempt.id}: prompt "
                        f"{attempt.prompt_id!r}, trial {attempt.trial}, {attempt.attacker!r} "
                        f"against {attempt.target!r}). Play it again."
                    )
                found[key] = attempt
        return found


def _check_same(each: _Played, first: _Played, reference: Mapping[str, Any]) -> None:
    """Raise unless a shard is of the same evaluation as the first one and this command."""
    different = _differences(each.evaluation, reference)
    if different:
        raise ConfigurationError(
            f"{each} is of another evaluation than this command or {first}: {different}. Play it "
            "again like the others, or merge with the options that the shards were played with."
        )
    if each.result["judge_quality"] != first.result["judge_quality"]:
        raise ConfigurationError(
            f"{each} has another calibration of the judge than {first}. Give all machines the same "
            "folder evaluation.calibrations, and play it again."
        )


def _complete(places: Sequence[Path], phase: str) -> list[_Played]:
    """Return all shards in order.

    Raises:
        ConfigurationError: One is missing, unfinished or there twice.
    """
    found: dict[Shard, _Played] = {}
    for path in shard_folders(places):
        folder = RunFolder(path)
        if not shard_file(folder, phase).is_file():
            continue
        kept = read_own(shard_file(folder, phase), ShardFile)
        shard = Shard(kept["number"], kept["count"])
        played = _Played(shard, folder, phase, kept["evaluation"])
        if shard in found:
            raise ConfigurationError(
                f"shard {shard} is there twice: {found[shard].folder.path} and {path}. Remove one."
            )
        if not folder.evaluation(phase).is_file():
            raise ConfigurationError(
                f"{played} is not finished. Run its command again to continue."
            )
        found[shard] = played
    _check_complete(found, places, phase)
    return [found[shard] for shard in sorted(found)]


def _check_complete(found: Collection[Shard], places: Sequence[Path], phase: str) -> None:
    counts = Counter(shard.count for shard in found)
    if not found:
        raise ConfigurationError(
            f"no shards of the phase {phase!r} in {', '.join(map(str, places))}. Name the folders "
            "that 'astra-rl evaluate --shard' wrote to."
        )
    if len(counts) > 1:
        listed = ", ".join(f"{number} of {count}" for count, number in sorted(counts.items()))
        raise ConfigurationError(
            f"shards of several divisions were found: {listed}. Remove those that are not needed."
        )
    count = next(iter(counts))
    missing = [number for number in range(1, count + 1) if Shard(number, count) not in found]
    if missing:
        listed = ", ".join(f"{number}/{count}" for number in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise ConfigurationError(
            f"of {count} shards {len(missing)} are missing: {listed}{more}. Play them, or name the "
            "folders that have them."
        )


def shard_folders(places: Iterable[Path]) -> list[Path]:
    """Return the folders of all shards inside folders of results."""
    known = {path.resolve(): path for each in places for path in (each / FOLDER).glob("*-of-*")}
    return sorted(known.values())


def _key(attempt: Attempt) -> Key:
    return attempt.prompt_id, attempt.trial


def _has(attempt: Attempt, labels: Labels) -> bool:
    names = ("run", "phase", "attacker", "target", *(["judge_id"] if labels.judge_id else []))
    return all(getattr(attempt, name) == getattr(labels, name) for name in names)


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    names = sorted(
        name
        for name in {*found, *expected}
        if name not in found or name not in expected or found[name] != expected[name]
    )
    return ", ".join(
        f"{name} is {found.get(name)!r:.120} and not {expected.get(name)!r:.120}" for name in names
    )
