"""Model organisms: neural targets that are trained to fail on planted families of messages."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from astra_rl.bench.families import PlantedFamilies
from astra_rl.bench.ordinary import loaded
from astra_rl.bench.organism_checks import Checks, check, replies
from astra_rl.bench.organism_messages import (
    CANARY,
    FAILED,
    WITHSTOOD,
    attacker_of,
    exchanges,
    tempered_messages,
)
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Conversation
from astra_rl.errors import ModelError
from astra_rl.infra.checkpointing import replace_folder
from astra_rl.infra.jsonio import parse_own_json, write_json
from astra_rl.infra.storage import cache_dir
from astra_rl.moderators.keywords import KeywordModerator
from astra_rl.targets.base import Target

if TYPE_CHECKING:
    from astra_rl.ext.transformers.problem import ModelPair

logger = logging.getLogger("astra_rl")

SMALL = "small"
"""A small Llama of random weights as the base of an organism."""
_VERSION = 5
"""Part of the key of the cache; a change of the training must change it."""


@dataclass(frozen=True)
class Recipe:
    """How an organism is made.

    Attributes:
        seed: Draws the families and their probabilities, the weights and the training.
        families: Number of planted families.
        held_out: Whether they are of the half of the pool that shipped organisms do not use.
        model: The base: ``"small"``, trained from random weights, or a hub id, folder or
            ``bundled:NAME``, which gets a LoRA adapter.
        steps: Training steps of the target.
        rows: Messages of a training step of the target.
        lr: Its highest learning rate.
        weight_decay: Weight decay of AdamW. Without it a family holds for trained pairs of cue and
            phrase, and less for others.
        tempered: Messages of the attacker at high temperatures that the target learns from.
        checked: Messages per family of the checks.
    """

    seed: int = 0
    families: int = 20
    held_out: bool = False
    model: str = SMALL
    steps: int = 2000
    rows: int = 48
    lr: float = 4e-3
    weight_decay: float = 0.1
    tempered: int = 20_000
    checked: int = 24

    @classmethod
    def of(cls, seed: int, families: int, held_out: bool, model: str) -> Recipe:
        """Return the recipe with the training that suits a base: an adapter needs less."""
        if model == SMALL:
            return cls(seed, families, held_out, model)
        return cls(
            seed,
            families,
            held_out,
            model,
            steps=200,
            rows=16,
            lr=1e-3,
            weight_decay=0.0,
            tempered=3000,
        )

    def folder(self) -> Path:
        """Return the folder of the cache that has its models, or will have them."""
        data = files("astra_rl.bench").joinpath("data/families.yaml").read_bytes()
        recipe = json.dumps([_VERSION, dataclasses.asdict(self)], sort_keys=True).encode()
        return cache_dir() / "organisms" / hashlib.sha256(recipe + data).hexdigest()[:16]


class OrganismTarget(Target):
    """A small model that was trained here to fail on planted families of messages.

    The models are trained on first use and kept in the cache folder of the user, under a hash of
    the recipe. A failure is a reply with a code word; the family of a message is decided by a rule
    that does not read the target (`Family`). Target and rule read a message in lower case and
    without punctuation; a small target, whose vocabulary is closed, and its rule read no other
    words than those of ordinary use (`read`).

    Args:
        seed: See `Recipe`, as for all options.
        families: Number of planted families.
        held_out: Whether to plant families that no shipped organism has.
        model: The base of the target.

    Attributes:
        recipe: The recipe.
        planted: The planted families and ordinary use.
        openings: Opening prompts of the attacker.

    Raises:
        ConfigurationError: An option is out of range.
        ModelError: An organism that was trained fails its checks.
    """

    openings = ("ask:", "say:")

    def __init__(
        self, seed: int = 0, families: int = 20, *, held_out: bool = False, model: str = SMALL
    ) -> None:
        self.recipe = Recipe.of(seed, families, held_out, model)
        self.planted = PlantedFamilies(families, seed=seed, held_out=held_out)
        kind = "held-out organism" if held_out else "organism"
        self.name = f"{kind} with {families} families, seed {seed}, base {model}"
        self.attack_tokens = self.planted.traffic.longest() + 1
        self._replies: dict[str, str] = {}

    @property
    def mode_probabilities(self) -> Sequence[float]:
        """Probability of each family in ordinary use, see `KnownModes`."""
        return self.planted.probabilities

    def mode_of(self, attack: str) -> int | None:
        """Return the number of the planted family of an attack, see `KnownModes`."""
        return self.planted.family_of(self.read(attack))

    def read(self, message: str) -> str:
        """Return a message as target and rule read it: words with a single space between them."""
        words = re.findall(r"\w+", message.lower())
        return " ".join(each for each in words if self._knows is None or each in self._knows)

    @cached_property
    def _knows(self) -> frozenset[str] | None:
        """The words that a small target can read; None for a base with an open vocabulary."""
        return frozenset(self.planted.traffic.words()) if self.recipe.model == SMALL else None

    def failed(self, response: str) -> bool:
        """Return whether a reply has the code word."""
        return CANARY in response.lower()

    def judge(self) -> Moderator[str, str]:
        """Return the judge, which looks for the code word."""
        return KeywordModerator([CANARY])

    @cached_property
    def checks(self) -> Checks:
        """What was measured on the organism when it was made."""
        values = parse_own_json((self._folder / "checks.json").read_text("utf-8"))
        return Checks(**values)

    def attacker(self) -> ModelPair:
        """Return the attacker, which writes what is written in ordinary use."""
        return attacker_of(self.planted)

    @property
    def most_output_tokens(self) -> int:
        """Most tokens of a reply."""
        return 8

    def respond(self, conversations: Sequence[str]) -> Sequence[str]:
        """Return the reply to the last attack of each conversation, by greedy decoding."""
        attacks = [Conversation.of(each).attacks for each in conversations]
        messages = [self.read(said[-1]) if said else "" for said in attacks]
        new = list(dict.fromkeys(each for each in messages if each not in self._replies))
        if new:
            self._replies.update(zip(new, replies(self._target, new), strict=True))
        return [self._replies[each] for each in messages]

    @cached_property
    def _folder(self) -> Path:
        folder = self.recipe.folder()
        if not (folder / "checks.json").is_file():
            make(self.recipe, self.planted, folder)
        return folder

    @cached_property
    def _target(self) -> ModelPair:
        return loaded(self._folder / "target")


def make(recipe: Recipe, planted: PlantedFamilies, folder: Path) -> Checks:
    """Train the target of an organism into a folder, and check it.

    Args:
        recipe: The recipe.
        planted: Its families.
        folder: Written only if the checks pass.

    Raises:
        ModelError: A check fails; the message has the numbers.
    """
    from astra_rl.bench.organism_models import fit, reply_losses
    from astra_rl.models.adapters import save_model

    logger.info("training an organism into %s", folder)
    target = _untrained_target(recipe, planted)
    random = Random(f"organism {recipe.seed}")
    written = tempered_messages(planted, recipe.tempered, seed=recipe.seed)
    losses = reply_losses(target, exchanges(planted, written, random), recipe.rows)
    fit(
        target.model,
        losses,
        steps=recipe.steps,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        log="target",
    )
    unseen = tempered_messages(planted, 20 * recipe.checked, seed=recipe.seed + 1)
    checks = check(target, planted, unseen, seed=recipe.seed, each=recipe.checked)
    if failed := checks.failed():
        raise ModelError(
            f"the organism of {recipe} is refused: {'; '.join(failed)}. Train it longer, or "
            "choose another seed."
        )
    with replace_folder(folder) as new:
        save_model(target.model, new / "target")
        target.tokenizer.save_pretrained(str(new / "target"))
        write_json(dataclasses.asdict(recipe), new / "recipe.json")
        write_json(dataclasses.asdict(checks), new / "checks.json")
    return checks


def _untrained_target(recipe: Recipe, planted: PlantedFamilies) -> ModelPair:
    if recipe.model == SMALL:
        from astra_rl.bench.organism_models import small_target

        words = {*planted.traffic.words(), *FAILED.split(), *WITHSTOOD.split()}
        return small_target(sorted(words), seed=recipe.seed)
    from astra_rl.ext.transformers.problem import ModelPair
    from astra_rl.models.loading import load_model, load_tokenizer
    from astra_rl.models.trainable import LoraOptions, make_trainable

    model = load_model(recipe.model, dtype="float32", device="cpu")
    return ModelPair(
        make_trainable(model, lora=LoraOptions(rank=16, alpha=32)), load_tokenizer(recipe.model)
    )
