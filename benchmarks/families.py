"""Agreement with transformers by model family and by chat template, as a table for docs/models.md.

    python benchmarks/families.py [Llama Gemma2 ...]

Every family is a tiny model with random weights; the reference is a forward pass of transformers
over each whole text, without a cache or padding. Chat templates are those of released models, with
tiny tokenizers of the same kinds, and with those of the models where an installed package ships
them (`benchmarks/real_tokenizers.py`); the reference is ``apply_chat_template``.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from astra_rl.core.text import Conversation
from astra_rl.errors import AstraError
from astra_rl.models.generation import Sampling, generate
from astra_rl.models.rendering import ConversationRenderer
from astra_rl.models.scoring import continuation_logprobs
from astra_rl.models.trainable import LoraOptions, make_trainable

ROOT = Path(__file__).parent.parent
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "GPTNeo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
    },
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Falcon": {},
    "Phi": {},
    "Phi3": {},
    "Llama": {},
    "Mistral": {"sliding_window": 16},
    "Mixtral": EXPERTS,
    "Llama4": {
        "num_hidden_layers": 4,
        "attention_chunk_size": 8,
        "moe_layers": [],
        "intermediate_size_mlp": 48,
        "head_dim": 8,
    },
    "Qwen2": {},
    "Qwen2Moe": {**EXPERTS, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "Qwen3": {"head_dim": 8},
    "Qwen3Moe": {**EXPERTS, "moe_intermediate_size": 32, "head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"final_logit_softcapping": 2.0, "sliding_window": 16, "head_dim": 8},
    "Gemma3": {"sliding_window": 16, "head_dim": 8},
    "Cohere": {"logit_scale": 0.3},
    "Cohere2": {"sliding_window": 16, "logit_scale": 0.3},
    "Olmo2": {},
    "Granite": {"logits_scaling": 4.0},
    "SmolLM3": {},
    "Starcoder2": {},
    "GptOss": {**EXPERTS, "sliding_window": 16, "head_dim": 8},
    "Mamba": {},
}
"""Settings of each family, in the words of its configuration class."""
TEXT_PARTS = ("Gemma3", "Llama4")
"""Families whose language model is a part of a multimodal model."""
PROMPTS = [[3, 9, 10, 11, 12, 13, 14, 15, 16, 5, 6, 7], [3, 9, 10, 11, 12, 13, 14, 15, 16, 30], [7]]
ANSWERS = [[20, 21, 22], [31], [8, 5, 33, 40, 12]]
TOLERANCE = 1e-4
"""Largest accepted difference, in nats; of gradients relative to the largest one."""


@dataclass(frozen=True)
class Agreement:
    """Largest differences between this library and transformers for one family.

    Attributes:
        scoring: Of log-probabilities of given answers.
        sampling: Between recorded and rescored log-probabilities of sampled tokens.
        greedy: Number of texts that differ in greedy decoding.
        gradient: Of gradients, relative to the largest.
        lora: As `scoring`, with a LoRA adapter.
        refused: Why the family is refused; None if it is supported.
    """

    scoring: float = 0.0
    sampling: float = 0.0
    greedy: int = 0
    gradient: float = 0.0
    lora: float = 0.0
    refused: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether all differences are within `TOLERANCE`."""
        values = (self.scoring, self.sampling, self.gradient, self.lora)
        return self.refused is None and self.greedy == 0 and max(values) < TOLERANCE


def tiny(family: str) -> Any:
    """Return a tiny model of a family whose random weights make every token matter."""
    kind = "TextConfig" if family in TEXT_PARTS else "Config"
    config = getattr(transformers, family + kind)(**{**SIZES, **FAMILIES[family]})
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    return randomize(model.eval().requires_grad_(False))


@torch.no_grad()
def randomize(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(0, 0.2, generator=generator)
    return model


def plain_logprobs(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Return the log-probabilities of an answer from one forward pass of the whole text."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
    targets = torch.tensor(answer)
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, targets[:, None]).squeeze(1)


def measure(family: str) -> Agreement:
    """Compare a family with transformers."""
    model = tiny(family)
    try:
        return Agreement(
            scoring=_scoring(model),
            sampling=_sampling(model),
            greedy=_greedy(model),
            gradient=_gradient(copy.deepcopy(model)),
            lora=_scoring(
                randomize(make_trainable(copy.deepcopy(model), lora=LoraOptions(rank=2)))
            ),
        )
    except AstraError as error:
        return Agreement(refused=str(error).split(": ")[0].split(". ")[0])


@torch.no_grad()
def _scoring(model: Any) -> float:
    together = continuation_logprobs(model, PROMPTS, ANSWERS)
    return max(
        float((row[: len(answer)] - plain_logprobs(model, prompt, answer)).abs().max())
        for row, prompt, answer in zip(together, PROMPTS, ANSWERS, strict=True)
    )


@torch.no_grad()
def _sampling(model: Any) -> float:
    samples = generate(model, PROMPTS, Sampling(max_new_tokens=12), [1, 2, 3], stop_ids=frozenset())
    return max(
        float(
            (torch.tensor(sample.logprobs) - plain_logprobs(model, prompt, list(sample.token_ids)))
            .abs()
            .max()
        )
        for sample, prompt in zip(samples, PROMPTS, strict=True)
    )


@torch.no_grad()
def _greedy(model: Any) -> int:
    sampling = Sampling(max_new_tokens=8, temperature=0)
    samples = generate(model, PROMPTS, sampling, [0] * len(PROMPTS), stop_ids=frozenset())
    different = 0
    for sample, prompt in zip(samples, PROMPTS, strict=True):
        ids = list(prompt)
        for _ in range(8):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        different += ids[len(prompt) :] != list(sample.token_ids)
    return different


def _gradient(model: Any) -> float:
    model.requires_grad_(True)
    gradients = []
    for total in (
        continuation_logprobs(model, PROMPTS, ANSWERS).sum(),
        torch.cat(
            [plain_logprobs(model, *each) for each in zip(PROMPTS, ANSWERS, strict=True)]
        ).sum(),
    ):
        model.zero_grad()
        total.backward()
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat([each.flatten() for each in found]))
    ours, theirs = gradients
    return float((ours - theirs).abs().max() / theirs.abs().max())


def templates() -> dict[str, Any]:
    """Return tokenizers with the chat templates of released models, by name."""
    from tests.models.sentencepiece import TEMPLATES, sentencepiece
    from tests.models.test_reading import TOKENIZERS

    return {**{name: sentencepiece(name) for name in TEMPLATES}, **TOKENIZERS}


def real_templates(names: list[str]) -> dict[str, Any]:
    """Return tokenizers with real vocabularies, by name; those of missing packages are left out."""
    from benchmarks.real_tokenizers import REAL, missing

    return {name: REAL[name][1]() for name in names if not missing(name)}


CONVERSATIONS: list[tuple[str | None, tuple[str, ...]]] = [
    (None, ("What is 2 + 2?", "It is 4.", "Hello my friend")),
    ("You are a helpful assistant.", ("Hello",)),
    ("Sei kurz.\n\n- 日本語", ("Grüße aus Köln 🙂🙂", "¿Qué?\tOne and  two  spaces", "x\n\n\ny")),
    (None, ("def f(x):\n    return x  # 'ok'", "🤖", "مرحبا", "नमस्ते", "1234567890 _#*`[/] ...")),
    (None, ("a", "b", "c", "d", "'s I'll don't", "\u200bzero\u00a0width", "ﬁ ½ é e\u0301")),
]
"""System message and turns; white space around a turn is not sent."""


def compare_template(tokenizer: Any) -> tuple[bool, str]:
    """Return whether all prompts equal `apply_chat_template`, and what ends an answer."""
    view = ConversationRenderer(tokenizer, "target")
    is_same = all(_is_as_template(tokenizer, view, *each) for each in CONVERSATIONS)
    return is_same, " ".join(tokenizer.convert_ids_to_tokens(sorted(view.stop_ids)))


def _is_as_template(
    tokenizer: Any, view: ConversationRenderer, system: str | None, turns: tuple[str, ...]
) -> bool:
    messages = [
        {"role": "assistant" if at % 2 else "user", "content": turn}
        for at, turn in enumerate(turns)
    ]
    messages[:0] = [] if system is None else [{"role": "system", "content": system}]
    try:
        expected = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
    except Exception:
        return system is not None  # a template may refuse system messages
    return list(view.render(Conversation(turns=turns, system=system), reserve=1).ids) == expected


def family_rows(families: list[str]) -> list[str]:
    """Return the rows of the table of families."""
    rows = []
    for family in families:
        found = measure(family)
        if found.refused is not None:
            rows.append(f"| {family} | refused | | | | |")
            continue
        same = "same" if found.greedy == 0 else f"{found.greedy} differ"
        rows.append(
            f"| {family} | {found.scoring:.0e} | {found.sampling:.0e} | {same} | "
            f"{found.gradient:.0e} | {found.lora:.0e} |"
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    print("| family | scoring | sampling | greedy | gradient | LoRA |")
    print("| --- | --- | --- | --- | --- | --- |")
    for family in sys.argv[1:] or FAMILIES:
        print(*family_rows([family]), sep="\n", flush=True)
    print("\n| chat template | prompt | end of an answer |\n| --- | --- | --- |")
    from benchmarks.real_tokenizers import REAL, missing

    for name in REAL:
        if left_out := missing(name):
            print(f"{name} is left out: {left_out} are not installed", file=sys.stderr)
    for name, tokenizer in (templates() | real_templates(list(REAL))).items():
        is_same, ends = compare_template(tokenizer)
        ends = ends.replace("|", "\\|")  # it would end the cell
        print(f"| {name} | {'same' if is_same else 'differs'} | `{ends}` |")


if __name__ == "__main__":
    main()
