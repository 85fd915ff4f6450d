"""A trained attacker on the Hugging Face Hub, with a card that says what it is and is not for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astra_rl.datasets.yaml_text import dump_yaml
from astra_rl.errors import ConfigurationError, ModelError, first_line
from astra_rl.evaluation.show.escaping import markdown_text
from astra_rl.infra.checkpointing import CHECKSUMS, damage_of
from astra_rl.infra.hub import without_telemetry
from astra_rl.infra.jsonio import parse_json
from astra_rl.infra.redaction import redact_message

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CARD = "README.md"
ADAPTER_CONFIG, _BASE = "adapter_config.json", "base_model_name_or_path"


@dataclass(frozen=True)
class AttackerCard:
    """What the card of a trained attacker says.

    Attributes:
        name: Name of the attacker.
        base_model: Model that it was trained from: hub id, path or ``bundled:NAME``.
        target: Name of the target that it was trained against.
        moderator: Name of the moderator that gave the reward.
        algorithm: Name of the algorithm.
        scenario: Scenario or prompts that conversations began with; empty if unknown.
        results: Lines of the section on measurements, for instance a success rate with its
            interval; none if nothing was measured.
        is_adapter: Whether the folder holds a LoRA adapter only.
    """

    name: str
    base_model: str
    target: str
    moderator: str
    algorithm: str
    scenario: str = ""
    results: Sequence[str] = field(default_factory=tuple)
    is_adapter: bool = False

    def text(self) -> str:
        """Return the card in Markdown, with the metadata of the hub.

        Names are escaped, without folders of this machine, and without credentials.
        """
        about: dict[str, Any] = {
            "library_name": "peft" if self.is_adapter else "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["astra-rl", "red-teaming", "attacker", "not-for-all-audiences"],
        }
        if _HUB_ID.fullmatch(self.base_model) and not Path(self.base_model).exists():
            about["base_model"] = self.base_model
        shown = {
            name: markdown_text(redact_message(_short(getattr(self, name))))
            for name in ("name", "base_model", "target", "moderator", "algorithm", "scenario")
        }
        shown["prompts"] = f" Conversations begin with {shown['scenario']}." * bool(self.scenario)
        results = "\n".join(f"- {markdown_text(redact_message(each))}" for each in self.results)
        shown["results"] = results or "Nothing was measured."
        return f"---\n{dump_yaml(about)}---\n" + _TEXT.format(**shown)


_TEXT = """
# {name}: an attacker

This model writes messages that make another language model fail. It was trained by reinforcement
learning ({algorithm}) with ASTRA-RL from {base_model}, against the target {target}; the reward came
from the moderator {moderator}.{prompts}

## What it is for

- Testing the target, and later versions of it, by its owner or with the owner's permission.
- Measuring how often it fails, comparing versions, and collecting failures to train it against.
- Research on attacks and on defences.

## What it is not for

- It is not an assistant. What it writes may be offensive or harmful: that is what was rewarded.
- Do not use it against systems whose owners have not agreed to be tested, and not to produce
  harmful content.
- It is no proof of safety. It was trained against one target, and a target that withstands it may
  fail under other attacks.
- It is no classifier: that a text is likely under this model says nothing about its harm.

## What was measured

{results}

These numbers hold for the target, prompts and judge above only.

## How to use it

Load it with `AutoModelForCausalLM.from_pretrained`, or evaluate it against another version of the
target with `astra-rl evaluate RUN --target VERSION`, with the folder of its run.
"""


def _short(name: str) -> str:
    """Return a name without the folders of a path: they are of one machine."""
    return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name


def push_attacker(
    folder: str | Path, repo_id: str, card: AttackerCard, *, private: bool = True, api: Any = None
) -> str:
    """Upload a checkpoint and its card to the hub in one commit, over the network.

    Args:
        folder: Folder of the checkpoint; its checksums are verified.
        repo_id: ``"owner/name"``; created if it does not exist.
        card: The card; it replaces one in the folder.
        private: Whether a new repository is private.
        api: A ``huggingface_hub.HfApi``; None is the default one, with the token of
            ``hf auth login`` or HF_TOKEN.

    Returns:
        The address of the repository.

    Raises:
        ConfigurationError: There is no checkpoint, or it has a symbolic link; the name of the
            repository is not valid, or the hub refused.
        ModelError: A file of the checkpoint is damaged.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(folder)
    if not (folder / "config.json").is_file() and not is_adapter(folder):
        raise ConfigurationError(
            f"{folder} holds no attacker; give the folder of a checkpoint, for instance "
            "runs/NAME/checkpoints/last."
        )
    if not _HUB_ID.fullmatch(repo_id):
        raise ConfigurationError(f"repository {repo_id!r}; give OWNER/NAME.")
    if damage := damage_of(folder):
        raise ModelError(f"{damage}; restore the checkpoint, or push another.")
    api = HfApi() if api is None else api
    # The hub has checksums of its own, and adds files that ours would not list.
    left_out = (CARD, CHECKSUMS)
    there = sorted(folder.rglob("*"))
    if links := [each for each in there if each.is_symlink()]:
        raise ConfigurationError(
            f"{links[0]} is a symbolic link, and what it points to would be uploaded; replace it "
            "by a copy, or remove it."
        )
    files = [each for each in there if each.is_file()]
    files = [each for each in files if each.name not in left_out]
    operations = [CommitOperationAdd(str(each.relative_to(folder)), _sent(each)) for each in files]
    operations.append(CommitOperationAdd(CARD, card.text().encode()))
    # Among its bases is that of all errors of the HTTP client, of a lost connection for instance.
    failures: tuple[type[Exception], ...] = (
        ValueError,
        *(
            base
            for base in HfHubHTTPError.__mro__
            if issubclass(base, Exception) and base is not Exception
        ),
    )
    try:
        with without_telemetry():
            repo = api.create_repo(repo_id, private=private, exist_ok=True)
            api.create_commit(repo_id, operations, commit_message="Attacker trained with ASTRA-RL")
    except failures as error:
        raise ConfigurationError(
            f"cannot push {folder} to {repo_id}: {redact_message(first_line(error))} The attacker "
            "is kept on disk. Log in with 'hf auth login', or set HF_TOKEN, and push it again."
        ) from error
    return str(repo)


def _sent(path: Path) -> Path | bytes:
    """Return what is uploaded of a file; an adapter names its base without folders of a path."""
    if path.name != ADAPTER_CONFIG:
        return path
    try:
        settings = parse_json(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path} is no JSON; restore the checkpoint, or push another.") from error
    base = settings.get(_BASE) if isinstance(settings, dict) else None
    if not isinstance(base, str) or base == (short := redact_message(_short(base))):
        return path
    return json.dumps({**settings, _BASE: short}, indent=2).encode()


def is_adapter(folder: Path) -> bool:
    """Return whether a checkpoint is a LoRA adapter without its base model."""
    return (folder / ADAPTER_CONFIG).is_file()


def results_of(metrics: Mapping[str, float]) -> list[str]:
    """Return metrics as lines of a card."""
    return [f"{name}: {value:.4g}" for name, value in metrics.items()]


__all__ = ["AttackerCard", "is_adapter", "push_attacker", "results_of"]
