"""What a run, its parts and its players are called in the record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from astra_rl.config.schema import RunConfig
from astra_rl.evaluation.records.recorder import Labels
from astra_rl.infra.redaction import redact_settings
from astra_rl.runs.folder import RunFolder


def name_of(folder: RunFolder) -> str | None:
    """Return what the attempts of a run are filed under since it was begun.

    It stays when a run is gone on with by force: attempts that are made again replace the first.
    """
    known = folder.read_manifest().get("run") if folder.manifest.is_file() else None
    return known if isinstance(known, str) else None


def labels_of(
    config: RunConfig,
    phase: str,
    *,
    attacker: str | None = None,
    run: str | None = None,
    categories: Mapping[str, str] | None = None,
) -> Labels:
    """Say who plays in a part of a run, and of which kinds its openings are.

    None as `run` names it after the configuration.
    """
    state = {"before": "untrained", "training": "in training"}.get(phase, "trained")
    known = config.without_budget().to_yaml()
    digest = hashlib.blake2b(known.encode(), digest_size=6).hexdigest()
    return Labels(
        run or digest,
        phase,
        attacker or f"{config.attacker.model} ({state})",
        redact_settings(config.target.name),
        categories=categories or {},
    )
