"""Guard models: language models trained to say in a fixed format whether a text is harmful.

Each guard is given the prompt it was trained on, and the score is the probability that the model
assigns to its verdict. Nothing is sampled and no reply is parsed. Text of the attacker and the
target can neither act as control tokens nor imitate the structure of the prompt.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from astra_rl.core.moderator import Moderator, Score
from astra_rl.core.out_of_memory import in_batches
from astra_rl.core.reasoning import split_reply
from astra_rl.core.text import Conversation, Exchange, judged_text
from astra_rl.errors import ConfigurationError, ModelError
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Count
from astra_rl.infra.unicode import well_formed
from astra_rl.models.batching import token_budget_batches
from astra_rl.models.engines import Engine, engine_logprobs, served_model
from astra_rl.models.forward import forward_shared_prefix
from astra_rl.models.lm_head import lm_head_logits
from astra_rl.models.loading import LOADING, load_model, load_settings, load_tokenizer
from astra_rl.models.rendering import context_window
from astra_rl.models.vocabulary import check_vocabulary
from astra_rl.moderators.completer import Completer, replies_of
from astra_rl.moderators.identity import weights_of

MAX_BATCH_TOKENS = 16_384

BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
LINE_START = rf"(?:^|(?<=[{BREAKS}]))[^\S{BREAKS}]*"
"""Pattern of the start of a line, after any character that some tool treats as a line end; used to
find text that imitates the structure of a prompt."""

_MARK = "ASTRA{}SLOT"


@dataclass(frozen=True)
class Question:
    """One answer that a guard writes.

    Attributes:
        lead: What it writes before the answer. White space that the prompt already ends with is
            not written again.
        answers: The possible answers, each with its spellings, the usual one first.
    """

    lead: str
    answers: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Prefix:
    """A beginning of the guard's reply to one prompt, and its probability."""

    row: int
    text: str
    probability: float


_LOADED_BY_DEFAULT: Any = None


@dataclass(eq=False, repr=False, kw_only=True)
class GuardOptions:
    """Constructor arguments that all guards share."""

    device: str = "auto"
    dtype: str = "auto"
    batch_size: Count = 8
    model: PreTrainedModel = _LOADED_BY_DEFAULT
    tokenizer: PreTrainedTokenizerBase = _LOADED_BY_DEFAULT
    engine: Engine | None = None


GUARD_OPTIONS = {
    **LOADING,
    "batch_size": "Most prompts per forward pass.",
    "model": "A loaded model, in evaluation mode; None loads `model_id`.",
    "tokenizer": "A loaded tokenizer, with the chat template of the guard if it has one; None "
    "loads that of `model_id`.",
    "engine": "Runs `model_id`; its weights are then not loaded here, and `model` is not used.",
}
"""Descriptions of `GuardOptions` and of `model_id`."""
COMPLETE = {
    "complete": "Answers chats instead of a local model, for instance the client of an endpoint "
    "that serves the guard with its own chat template. Its replies are parsed, see "
    "`GuardModerator.parse`.",
}
"""Description of the option of guards that an endpoint may serve."""


@document_options(GUARD_OPTIONS)
class GuardModerator(GuardOptions, Moderator[str, str], ABC):
    """Scores the last message of a conversation by a guard model's probability of its verdict.

    The score is the sum over the answers to the last question of probability times weight. The
    probability of an answer is its share among the possible answers. Answers to earlier questions
    are summed out.

    A subclass is a dataclass (``@dataclass(eq=False, repr=False)``). It declares `model_id` and its
    own options as fields, and the questions as class attributes; it inherits `GuardOptions`,
    whose descriptions in `GUARD_OPTIONS` the decorator `document_options` adds to its docstring.

    Attributes:
        questions: What the guard answers, in its order, up to the answer that is scored.
        weights: Value of each answer to the last question, in [0, 1].
        structure: Pattern of text that imitates the structure of the prompt; each match is replaced
            by ``"> "``. None if there is no such text.
        complete: Answers chats instead of a local model; its replies are parsed by `parse`.

    Raises:
        ConfigurationError: `batch_size` is below 1, or the tokenizer cannot be used.
        ModelError: The model cannot be loaded, or its tokenizer does not tell the verdicts apart.
    """

    questions: Sequence[Question]
    weights: Mapping[str, float]
    structure: ClassVar[re.Pattern[str] | None] = None
    takes_engine: ClassVar[bool] = True
    model_id: str
    complete: Completer | None = None

    def __post_init__(self) -> None:
        """Load the tokenizer and the model, unless `complete` replaces them."""
        self.check_options(**{each.name: getattr(self, each.name) for each in fields(self)})
        if self.complete is not None and self.engine is not None:
            raise ConfigurationError("give either complete or engine, not both.")
        self._controls: dict[str, int] = {}
        if self.complete is not None:
            return
        self.tokenizer = self.tokenizer or load_tokenizer(self.model_id)
        self._pieces: dict[int, tuple[str, ...]] = {}
        # A tokenizer that cannot be used is reported before the model is loaded.
        skeleton = "".join(self._template_pieces(2))
        self._controls = _control_tokens(self.tokenizer, skeleton)
        self._answer_tokens(skeleton, self.questions[0])
        if self.engine is not None:
            settings = load_settings(self.model_id)
            self.identity = served_model(self.model_id, settings)
            window = context_window(settings.config)
            self._window = None if window is None else window - 1  # an engine samples a token more
            return
        if self.model is None:
            self.model = load_model(self.model_id, device=self.device, dtype=self.dtype)
            check_vocabulary(self.model, self.tokenizer, self.model_id)
        self._window = context_window(self.model.config)

    @abstractmethod
    def _render(self, contents: Sequence[str]) -> str:
        """Return the guard's prompt around these messages, up to the start of its reply.

        It is only called with placeholders for messages, never with text of a model.
        """

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each exchange or text in [0, 1].

        A plain string is judged as the only message of a user. The oldest turns of a conversation
        that is too long are dropped. The score is missing if the last exchange alone is too long,
        or if the model's output is not finite.
        """
        conversations = [[self._neutralized(text) for text in self._contents(item)] for item in x]
        if self.complete is not None:
            return self._parsed_replies(self.complete, conversations)
        prompts = [self._prompt(contents) for contents in conversations]
        scores = iter(self._scores([prompt for prompt in prompts if isinstance(prompt, str)]))
        return [next(scores) if isinstance(prompt, str) else prompt for prompt in prompts]

    def parse(self, reply: str) -> Score:
        """Parse a reply of the guard; missing if it has no verdict in the guard's format.

        If the question has a lead such as ``"Safety:"``, the verdict follows it and ends the line,
        and the last such line counts. Otherwise the reply must begin with the verdict.
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
        answer = split_reply(reply).answer or ""  # a draft in unfinished reasoning is no verdict
        found = re.findall(form, answer, re.IGNORECASE | re.MULTILINE)
        if not found:
            return Score.missing("unparsable verdict")
        return Score(self.weights[names[found[-1].lower()]])

    def identity_settings(self) -> dict[str, Any]:
        """Return the prompt, the question that is scored and the weights of its answers."""
        prompt = None if self.complete is not None else self._template_pieces(2)
        return {"weights": self.weights, "lead": self.questions[-1].lead, "prompt": prompt}

    def identity_weights(self) -> str | None:
        """Return the model that answers."""
        return weights_of(self if self.complete is None else self.complete)

    def _contents(self, item: str) -> list[str]:
        """Return the messages of the prompt, beginning with one of the user."""
        if not isinstance(item, Exchange):
            return [item]
        context = Conversation.of(item.context)
        turns = [judged_text(each) for each in (*context.turns, item.attack, item.response)]
        # The opening text and the first attack reach the target together.
        turns[0] = context.separator.join(part for part in (context.prompt, turns[0]) if part)
        return turns

    def _neutralized(self, text: str) -> str:
        """Strip a message as templates do; break control tokens and imitated structure."""
        text = well_formed(text).strip()
        if self.structure is not None:
            text = self.structure.sub("> ", text)
        for control in self._controls:
            text = text.replace(control, f"{control[0]} {control[1:]}")
        return text

    def _parsed_replies(self, complete: Completer, chats: Sequence[Sequence[str]]) -> list[float]:
        messages = [
            [
                {"role": "assistant" if index % 2 else "user", "content": content}
                for index, content in enumerate(contents)
            ]
            for contents in chats
        ]
        replies = replies_of(complete, messages)
        return [reply if isinstance(reply, Score) else self.parse(reply) for reply in replies]

    def _prompt(self, contents: Sequence[str]) -> str | Score:
        """Return the prompt, or a missing score with the reason why there is none."""
        while True:
            pieces = self._template_pieces(len(contents))
            prompt = "".join(chain.from_iterable(zip(pieces, [*contents, ""], strict=True)))
            ids = self._text_ids(prompt)
            # A tokenizer may match an added token in other ways than letter by letter.
            if self._count_controls(ids) != self._count_controls(self._text_ids("".join(pieces))):
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
        """Score all prompts, summing over the answers to the earlier questions."""
        prefixes = [_Prefix(row, "", 1.0) for row in range(len(prompts))]
        *earlier, last = self.questions
        for question in earlier:
            prefixes = [
                _Prefix(
                    prefix.row,
                    prefix.text + question.lead + spellings[0],
                    prefix.probability * probability,
                )
                for prefix, found in self._answer_probabilities(prompts, prefixes, question)
                for spellings, probability in zip(question.answers.values(), found, strict=True)
            ]
        totals = [0.0] * len(prompts)
        for prefix, found in self._answer_probabilities(prompts, prefixes, last):
            for name, probability in zip(last.answers, found, strict=True):
                totals[prefix.row] += prefix.probability * probability * self.weights[name]
        # Rounding may carry a sum of probabilities past 1.
        return [Score.checked(min(total, 1.0)) for total in totals]

    def _answer_probabilities(
        self, prompts: Sequence[str], prefixes: Sequence[_Prefix], question: Question
    ) -> Iterator[tuple[_Prefix, list[float]]]:
        """Yield each prefix with the probabilities of the answers that follow; they sum to 1."""
        tokens = [
            self._answer_tokens(prompts[prefix.row] + prefix.text, question) for prefix in prefixes
        ]
        found: dict[int, list[float]] = {}
        batches = token_budget_batches(
            [len(ids) for ids, _ in tokens], max_tokens=MAX_BATCH_TOKENS, max_rows=self.batch_size
        )

        def run(rows: Sequence[int]) -> list[list[Tensor]]:
            return self._next_scores([tokens[row] for row in rows])

        for rows, scores in in_batches(batches, run, doing="judging"):
            for row, values in zip(rows, scores, strict=True):
                mass = torch.stack([each.logsumexp(0) for each in values])
                found[row] = mass.softmax(0).tolist()
        for row, prefix in enumerate(prefixes):
            yield prefix, found[row]

    def _next_scores(
        self, tokens: Sequence[tuple[list[int], list[list[int]]]]
    ) -> list[list[Tensor]]:
        """Return for each prompt, and each answer, the scores of the tokens it may begin with.

        They are logits, or log-probabilities from an engine, which differ by a constant per prompt.

        Args:
            tokens: See `_answer_tokens`.
        """
        if self.engine is None:
            logits = self._next_logits([ids for ids, _ in tokens])
            return [
                [values[first] for first in answers]
                for values, (_, answers) in zip(logits, tokens, strict=True)
            ]
        asked = [(ids, token) for ids, answers in tokens for token in chain.from_iterable(answers)]
        scored = engine_logprobs(
            self.engine, [ids for ids, _ in asked], [[token] for _, token in asked]
        )
        known = iter(scored[:, 0])
        return [
            [torch.stack([next(known) for _ in first]) for first in answers]
            for _, answers in tokens
        ]

    @torch.no_grad()
    def _next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the token after each prompt, (B, V), float32."""
        output = forward_shared_prefix(self.model, prompts, [len(prompt) - 1 for prompt in prompts])
        last = output.lengths - 1 - output.suffix_starts
        hidden = output.hidden[torch.arange(len(prompts), device=last.device), last]
        return lm_head_logits(self.model, hidden)

    def _answer_tokens(self, text: str, question: Question) -> tuple[list[int], list[list[int]]]:
        """Return the ids before an answer, and the ids that each answer may begin with."""
        if not (question.lead.isspace() and text.endswith(question.lead)):
            text += question.lead
        # Tokenized with the answer, because the text after a line break may change its token.
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

    def _template_pieces(self, count: int) -> tuple[str, ...]:
        """Return the template's own text around `count` messages."""
        if count not in self._pieces:
            marks = [_MARK.format(index) for index in range(count)]
            # The group keeps the placeholders in the result: each must occur once, in order.
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
        template_arguments: Arguments of the template besides the messages.
    """

    template_arguments: Mapping[str, Any] = {}

    def _render(self, contents: Sequence[str]) -> str:
        if not self.tokenizer.chat_template:
            raise ConfigurationError(
                f"the tokenizer has no chat template; {type(self).__name__} needs the one of the "
                "guard model. Use the tokenizer that comes with it."
            )
        texts = [self._apply_template(contents, as_parts) for as_parts in (False, True)]
        # Some templates expect the content of a message as a list of parts.
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
        except Exception:  # a template can raise anything on a form that it does not expect
            return ""


def _control_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> dict[str, int]:
    """Return the tokens that structure a prompt: special ones, and added ones that occur in it."""
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
