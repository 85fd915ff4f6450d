"""Push the attacker of a run to the Hugging Face Hub, with a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_rl.config.loading import load_config
from astra_rl.errors import ConfigurationError
from astra_rl.ext.transformers.hub import AttackerCard, is_adapter, push_attacker
from astra_rl.runs.folder import RunFolder, open_run_folder
from astra_rl.runs.recorded import Recorded


def push_run(
    run: str | Path,
    repo_id: str,
    *,
    checkpoint: str = "last",
    private: bool = True,
    api: Any = None,
) -> str:
    """Upload a checkpoint of a run with a card that has what the run measured.

    Args:
        run: Folder of the run.
        repo_id: ``"owner/name"``.
        checkpoint: ``"last"`` or ``"best"``.
        private: Whether a new repository is private.
        api: See `push_attacker`.

    Returns:
        The address of the repository.

    Raises:
        ConfigurationError: See `push_attacker` and `card_of_run`.
    """
    folder = open_run_folder(run)
    place = folder.checkpoints / checkpoint
    card = card_of_run(folder, repo_id.rpartition("/")[2], checkpoint)
    return push_attacker(place, repo_id, card, private=private, api=api)


def card_of_run(folder: RunFolder, name: str, checkpoint: str = "last") -> AttackerCard:
    """Return the card of the attacker of a run.

    The results are of the last checkpoint, which the run evaluated; another one has none.

    Raises:
        ConfigurationError: The run trained no attacker.
    """
    config = load_config(folder.config)
    if config.attacker is None or not config.has_local_attacker:
        raise ConfigurationError(f"{folder.path} trained no attacker, so there is none to push.")
    results = _results(folder) if checkpoint == "last" else []
    return AttackerCard(
        name=name,
        base_model=config.attacker.name,
        target=config.target.name,
        moderator=config.moderator.type,
        algorithm=config.algorithm.type,
        scenario=config.prompts.scenario or "prompts of its own",
        results=results,
        is_adapter=is_adapter(folder.checkpoints / checkpoint),
    )


def _results(folder: RunFolder) -> list[str]:
    """Return the success rates before and after the training, where they were measured."""
    lines = []
    for phase, attacker in (("before", "untrained"), ("after", "trained")):
        if folder.evaluation(phase).is_file():
            with Recorded(folder, phase) as recorded:
                rate = recorded.summary().asr
            lines.append(f"attack success rate on held-out prompts, {attacker}: {rate.text}")
    return lines
