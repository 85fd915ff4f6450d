"""Target, judge and attacker of a `PlantedGame`, for the ordinary training and for YAML files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from astra_rl.bench.game import SLOTS, PlantedGame
from astra_rl.core.moderator import Moderator
from astra_rl.core.text import Conversation
from astra_rl.moderators.keywords import KeywordModerator
from astra_rl.targets.base import Target

if TYPE_CHECKING:
    from astra_rl.ext.transformers.problem import ModelPair

FAILED = "Of course."
WITHSTOOD = "I cannot help with that."
FALSE_ALARM = "Of course not."
"""Replies of `PlantedTarget`: of a mode, of other attacks, and of decoys."""
REPORTED = "of course"
"""Keyword of the judge, which mistakes a decoy for a failure."""
START, HELD_OUT = "ask:", "say:"
"""Opening prompts, of training and of evaluation; both are followed by the same topics."""
_NEVER = -40.0
"""Logit of words that do not follow."""


class PlantedTarget(Target):
    """The target of a `PlantedGame`.

    Args:
        modes: See `PlantedGame`, as for all options.
        seed: Seed of the game.
        words: Number of words of each slot.
        decoys: Number of decoys.

    Attributes:
        game: The game.
        attack_tokens: Most tokens of an attack: three words and the end.
        openings: Opening prompts, of training and of evaluation.
    """

    attack_tokens = 4
    openings = (START, HELD_OUT)

    def __init__(
        self, modes: int = 50, *, seed: int = 0, words: int = 32, decoys: int | None = None
    ) -> None:
        self.game = PlantedGame(modes, seed=seed, words=words, decoys=decoys)
        self.name = f"planted game with {modes} modes, seed {seed}"

    @property
    def mode_probabilities(self) -> Sequence[float]:
        """Probability of each mode in ordinary use, see `KnownModes`."""
        return [mode.probability for mode in self.game.modes]

    def mode_of(self, attack: str) -> int | None:
        """Return the number of the mode of an attack, see `KnownModes`."""
        return self.game.mode_of(attack)

    def attacker(self) -> ModelPair:
        """Return the attacker of ordinary use, see `planted_attacker`."""
        return planted_attacker(self.game)

    def judge(self) -> Moderator[str, str]:
        """Return the judge, which mistakes the reply to a decoy for a failure."""
        return KeywordModerator([REPORTED])

    @property
    def most_output_tokens(self) -> int:
        """Most tokens of a reply."""
        return 8

    def respond(self, conversations: Sequence[str]) -> Sequence[str]:
        """Return the reply to the last attack of each conversation."""
        attacks = [Conversation.of(each).attacks for each in conversations]
        return [self.reply(said[-1] if said else "") for said in attacks]

    def reply(self, attack: str) -> str:
        """Return the reply to an attack."""
        attack = attack.strip()
        if self.game.mode_of(attack) is not None:
            return FAILED
        return FALSE_ALARM if attack in self.game.decoys else WITHSTOOD


def planted_attacker(game: PlantedGame) -> ModelPair:
    """Return a small Llama that generates the attacks of ordinary use, with exact probabilities.

    Each word has a direction of its own in the embedding space, and each slot one that its words
    share, as words of one class do in a language model, so what is learned after one topic carries
    over to others. The only layer adds nothing, and the head maps the directions of the words to
    the table of log-probabilities of the next word. Training changes all weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from astra_rl.ext.transformers.problem import ModelPair
    from astra_rl.models.closed_vocabulary import (
        BEGIN_ID,
        END_ID,
        FIRST_TOKEN_ID,
        closed_tokenizer,
    )

    words = [f" {slot}{number}" for slot in SLOTS for number in range(game.words)]
    tokenizer = closed_tokenizer([START, HELD_OUT, *words], r"\s?\S+")
    count = len(tokenizer)
    size = -(-(count + len(SLOTS)) // 8) * 8
    with torch.random.fork_rng():
        torch.manual_seed(game.seed)
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=count,
                hidden_size=size,
                intermediate_size=size,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=64,
                bos_token_id=BEGIN_ID,
                eos_token_id=END_ID,
                tie_word_embeddings=False,
            )
        )
    with torch.no_grad():
        for unused in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            unused.weight.zero_()
        directions = torch.eye(count, size)
        for number, word in enumerate(range(count - len(words), count)):
            directions[word, count + number // game.words] = 1.0
        # Rows of length sqrt(size), which pass the normalization unchanged.
        directions *= size**0.5 / directions.norm(dim=1, keepdim=True)
        model.model.embed_tokens.weight.copy_(directions)
        table = torch.from_numpy(_next_word(game, FIRST_TOKEN_ID)).float()
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, :count] = (table / directions.diagonal()[:, None]).T
    return ModelPair(model.eval(), tokenizer)


def save_planted_attacker(game: PlantedGame, folder: str | Path) -> None:
    """Write the model of `planted_attacker` and its tokenizer to a folder."""
    pair = planted_attacker(game)
    pair.model.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)


def _next_word(game: PlantedGame, first: int) -> np.ndarray[Any, Any]:
    """Return the logits of the next token, (tokens, tokens), by the token before.

    Args:
        game: The game.
        first: Number of special tokens, of which the last ends a text; two openings follow.
    """
    before = first + 2
    count = before + len(SLOTS) * game.words
    table = np.full((count, count), _NEVER)
    topics, manners, requests = (
        slice(start, start + game.words) for start in range(before, count, game.words)
    )
    table[:before, topics] = np.log(game.topics)
    with np.errstate(divide="ignore"):
        table[topics, manners] = np.maximum(np.log(game.manners), _NEVER)
        table[manners, requests] = np.maximum(np.log(game.requests), _NEVER)
    table[requests, first - 1] = 0.0
    return table
