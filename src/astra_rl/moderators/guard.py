"""Guard models: language models that say in a fixed form whether a text is harmful.

All of them are asked alike. The text stands in the very prompt that the model was trained on, and
the score is the model's own probability of its verdict, so nothing is sampled and no reply has to
be understood. What attacker and target wrote can neither act as control tokens nor pass for the
prompt's own structure.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from astra_rl.core.contracts import check_length
from astra_rl.core.moderator import Moderator, Score
from astra_rl.core.out_of_memory import in_batches
from astra_rl.core.text import Conversation, Exchange
from astra_rl.errors import ConfigurationError, ModelError
from astra_rl.infra.unicode import well_formed
from astra_rl.models.batching import token_budget_batches
from astra_rl.models.forward import forward_shared_prefix
from astra_rl.models.lm_head import lm_head_logits
from astra_rl.models.loading import load_model, load_tokenizer
from astra_rl.models.rendering import context_window
from astra_rl.moderators.completion import Completer, reason_without_reply
from astra_rl.moderators.identity import weights_of

MAX_BATCH_TOKENS = 16_384

BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
LINE_START = rf"(?:^|(?<=[{BREAKS}]))[^\S{BREAKS}]*"
"""Where a line begins, after whatever ends a line for somebody; for what a text could forge."""

_MARK = "ASTRA{}SLOT"


@dataclass(frozen=True)
class Question:
    """One thing that a guard says.

    Attributes:
        lead: What it writes before the answer. A lead of white space that the prompt already ends
            with is not written again.
        answers: The answers it chooses from, each with the ways to write it, the usual one first.
    """

    lead: str
    answers: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Path:
    """What a guard may have said so far about one prompt, and how likely that is."""

    row: int
    said: str
    chance: float


class GuardModerator(Moderator[str, str], ABC):
    """Scores the last message of a conversation by a guard model's probability of its verdict.

    The score is the sum over the answers to the last question of their probability times their
    weight, where an answer's probability is its share among the answers that the guard may give.
    Earlier answers are summed out, as if the guard had been sampled without end.

    Args:
        questions: What the guard says, in its order, up to the answer that is scored.
        weights: What each answer to the last question counts, in [0, 1].
        model_id: What `astra_rl.models.loading.load_model` takes; unused for what is given below.
        device: As in `load_model`.
        dtype: As in `load_model`.
        batch_size: Prompts that are read together, at most.
        model: A loaded model, in evaluation mode.
        tokenizer: A loaded tokenizer.
        complete: Answers chats instead of a local model, for instance a client of an endpoint that
            serves the guard with its own chat template. Its replies are read with `parse`.

    Raises:
        ConfigurationError: `batch_size` is below 1, or the tokenizer cannot be used.
        ModelError: The model cannot be loaded, or its tokenizer does not tell the verdicts apart.
    """

    forged: re.Pattern[str] | None = None
    """What in a text would pass for the prompt's own structure; it is replaced by ``"> "``."""

    def __init__(
        self,
        questions: Sequence[Question],
        weights: Mapping[str, float],
        model_id: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        complete: Completer | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}; it must be at least 1.")
        self.questions = tuple(questions)
        self.weights = dict(weights)
        self.model_id = model_id
        self.batch_size = batch_size
        self.complete = complete
        self._controls: dict[str, int] = {}
        if complete is not None:
            return
        self.tokenizer = load_tokenizer(model_id) if tokenizer is None else tokenizer
        self._pieces: dict[int, tuple[str, ...]] = {}
        # What cannot be used is refused before the model is loaded.
        skeleton = "".join(self._literals(2))
        self._controls = _control_tokens(self.tokenizer, skeleton)
        self._tokenised(skeleton, self.questions[0])
        self.model = load_model(model_id, device=device, dtype=dtype) if model is None else model
        if not hasattr(self.model, self.model.base_model_prefix) and hasattr(self.model, "model"):
            # Llama 4 as a language model names a part that only its multimodal form has.
            self.model.base_model_prefix = "model"
        self._window = context_window(self.model.config)

    @abstractmethod
    def _render(self, contents: Sequence[str]) -> str:
        """Return the guard's prompt around these messages, up to what it says itself.

        It is only ever given marks in the place of messages, never what a model wrote.
        """

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each exchange or text in [0, 1].

        A plain string is judged as the only message of a user. A conversation that is too long
        loses its oldest turns first. The score is missing if even what is judged does not fit, or
        if the model's output is not finite.
        """
        conversations = [[self._harmless(text) for text in self._contents(item)] for item in x]
        if self.complete is not None:
            return self._read_replies(self.complete, conversations)
        prompts = [self._prompt(contents) for contents in conversations]
        asked = [prompt for prompt in prompts if isinstance(prompt, str)]
        scores = iter(self._scores(asked))
        return [next(scores) if isinstance(prompt, str) else prompt for prompt in prompts]

    def parse(self, reply: str) -> Score:
        """Read what a guard wrote; missing if it gives no verdict in the guard's form.

        After a lead of words the verdict ends its line, and the last such line counts; a guard
        that has none begins its reply with the verdict.
        """
        question = self.questions[-1]
        names = {
            spelling.strip().lower(): name
            for name, spellings in question.answers.items()
            for spelling in spellings
        }
        lead = re.escape(question.lead.strip())
        verdict = "(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")"
        if lead:
            form = rf"^[ \t]*{lead}[ \t]*{verdict}[ \t]*\r?$"
        else:
            form = rf"\A\s*{verdict}[ \t]*(?:[.,:;][ \t]|[.]?\r?$)"
        found = re.findall(form, reply, re.IGNORECASE | re.MULTILINE)
        if not found:
            return Score.missing("unparsable verdict")
        return Score(self.weights[names[found[-1].lower()]])

    def identity_settings(self) -> dict[str, Any]:
        """What the guard is asked, and what its answers count."""
        prompt = None if self.complete is not None else self._literals(2)
        return {"weights": self.weights, "lead": self.questions[-1].lead, "prompt": prompt}

    def identity_weights(self) -> str | None:
        """Which model answers."""
        return weights_of(self if self.complete is None else self.complete)

    def _contents(self, item: str) -> list[str]:
        """Return the messages that stand in the prompt, the user's first."""
        if not isinstance(item, Exchange):
            return [item]
        context = Conversation.of(item.context)
        turns: list[str] = [*context.turns, item.attack, item.response]
        # The opening text and the first attack reach the target together.
        turns[0] = context.separator.join(part for part in (context.prompt, turns[0]) if part)
        return turns

    def _harmless(self, text: str) -> str:
        """Strip a message as the templates do, and break what would pass for their structure."""
        text = well_formed(text).strip()
        if self.forged is not None:
            text = self.forged.sub("> ", text)
        for control in self._controls:
            text = text.replace(control, f"{control[0]} {control[1:]}")
        return text

    def _read_replies(self, complete: Completer, chats: Sequence[Sequence[str]]) -> list[float]:
        asked = [
            [
                {"role": "assistant" if index % 2 else "user", "content": content}
                for index, content in enumerate(contents)
            ]
            for contents in chats
        ]
        replies = complete(asked) if asked else []
        check_length(replies, len(asked), source="complete")
        return [
            self.parse(str(reply))
            if (reason := reason_without_reply(reply)) is None
            else Score.missing(reason)
            for reply in replies
        ]

    def _prompt(self, contents: Sequence[str]) -> str | Score:
        """Return the prompt, or why there is none."""
        while True:
            literals = self._literals(len(contents))
            prompt = "".join(chain.from_iterable(zip(literals, [*contents, ""], strict=True)))
            ids = self._text_ids(prompt)
            # An added token may be matched in another way than letter by letter.
            if self._count_controls(ids) != self._count_controls(self._text_ids("".join(literals))):
                return Score.missing("control token in the text")
            reply = "".join(
                question.lead + max((spelled[0] for spelled in question.answers.values()), key=len)
                for question in self.questions
            )
            if self._window is None or len(self._text_ids(prompt + reply)) <= self._window:
                return prompt
            if len(contents) <= 2:
                return Score.missing("too long for the guard")
            contents = contents[2:]

    def _scores(self, prompts: Sequence[str]) -> list[Score]:
        """Walk through the questions: all prompts, and all answers to earlier ones, together."""
        paths = [_Path(row, "", 1.0) for row in range(len(prompts))]
        *earlier, last = self.questions
        for question in earlier:
            paths = [
                _Path(path.row, path.said + question.lead + spelled[0], path.chance * probability)
                for path, found in self._answered(prompts, paths, question)
                for spelled, probability in zip(question.answers.values(), found, strict=True)
            ]
        totals = [0.0] * len(prompts)
        for path, found in self._answered(prompts, paths, last):
            for name, probability in zip(last.answers, found, strict=True):
                totals[path.row] += path.chance * probability * self.weights[name]
        # Rounding may carry a sum of probabilities past 1.
        return [Score.checked(min(total, 1.0)) for total in totals]

    def _answered(
        self, prompts: Sequence[str], paths: Sequence[_Path], question: Question
    ) -> Iterator[tuple[_Path, list[float]]]:
        """Yield each path with the probabilities of the answers that may follow; they sum to 1."""
        asked = [self._tokenised(prompts[path.row] + path.said, question) for path in paths]
        found: dict[int, list[float]] = {}
        batches = token_budget_batches(
            [len(ids) for ids, _ in asked], max_tokens=MAX_BATCH_TOKENS, max_rows=self.batch_size
        )

        def run(rows: Sequence[int]) -> Tensor:
            return self._next_logits([asked[row][0] for row in rows])

        for rows, logits in in_batches(batches, run, doing="judging"):
            for row, values in zip(rows, logits, strict=True):
                mass = torch.stack([values[tokens].logsumexp(0) for tokens in asked[row][1]])
                found[row] = mass.softmax(0).tolist()
        for row, path in enumerate(paths):
            yield path, found[row]

    @torch.no_grad()
    def _next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the token after each prompt, (B, V), float32."""
        output = forward_shared_prefix(self.model, prompts, [len(prompt) - 1 for prompt in prompts])
        last = output.lengths - 1 - output.suffix_starts
        hidden = output.hidden[torch.arange(len(prompts), device=last.device), last]
        return lm_head_logits(self.model, hidden)

    def _tokenised(self, text: str, question: Question) -> tuple[list[int], list[list[int]]]:
        """Return the ids that an answer follows, and the ids that each answer may begin with."""
        if not (question.lead.isspace() and text.endswith(question.lead)):
            text += question.lead
        # Tokenised with the answer, because what follows on a line break may change its token.
        spelled = [
            [self._text_ids(text + spelling) for spelling in spellings]
            for spellings in question.answers.values()
        ]
        usual = [ids[0] for ids in spelled]
        before = _common_beginning(usual)
        tokens = [
            list(dict.fromkeys(ids[len(before)] for ids in each if _continues(ids, before)))
            for each in spelled
        ]
        if not all(tokens) or len(set(chain(*tokens))) < sum(map(len, tokens)):
            raise ModelError(
                f"the tokenizer does not tell the verdicts {list(question.answers)} apart."
            )
        return before, tokens

    def _literals(self, count: int) -> tuple[str, ...]:
        """Return the prompt's own text around the contents of `count` messages."""
        if count not in self._pieces:
            marks = [_MARK.format(index) for index in range(count)]
            # The capture keeps the marks: each must be there, once, in order.
            pieces = re.split(f"({'|'.join(map(re.escape, marks))})", self._render(marks))
            if pieces[1::2] != marks:
                raise ConfigurationError(
                    f"the chat template of {self.tokenizer.name_or_path or 'this tokenizer'} does "
                    "not show every message of a conversation. Use the tokenizer that comes with "
                    "the guard model."
                )
            self._pieces[count] = tuple(pieces[0::2])
        return self._pieces[count]

    def _text_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _count_controls(self, ids: Sequence[int]) -> int:
        controls = set(self._controls.values())
        return sum(token in controls for token in ids)


class ChatGuardModerator(GuardModerator):
    """A guard whose prompt is the chat template of its tokenizer.

    Attributes:
        template_arguments: What the template is given besides the messages.
    """

    template_arguments: Mapping[str, Any] = {}

    def _render(self, contents: Sequence[str]) -> str:
        if not self.tokenizer.chat_template:
            raise ConfigurationError(
                f"the tokenizer has no chat template; {type(self).__name__} needs that of the "
                "guard model."
            )
        texts = [self._apply_template(contents, as_parts) for as_parts in (False, True)]
        # Some templates want a message as a list of parts, and show others in pieces.
        return next((text for text in texts if all(each in text for each in contents)), texts[0])

    def _apply_template(self, contents: Sequence[str], as_parts: bool) -> str:
        messages: list[dict[str, Any]] = [
            {
                "role": "assistant" if index % 2 else "user",
                "content": [{"type": "text", "text": content}] if as_parts else content,
            }
            for index, content in enumerate(contents)
        ]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **self.template_arguments
                )
            )
        except (TemplateError, TypeError, ValueError):  # messages of a form that is not wanted
            return ""


def _control_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> dict[str, int]:
    """Return what structures a prompt: special tokens, and others that stand in the prompt."""
    return {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and (token.special or token.content in prompt)
    }


def _common_beginning(sequences: Sequence[list[int]]) -> list[int]:
    common: list[int] = []
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        common.append(tokens[0])
    return common


def _continues(ids: Sequence[int], before: Sequence[int]) -> bool:
    return len(ids) > len(before) and list(ids[: len(before)]) == list(before)
