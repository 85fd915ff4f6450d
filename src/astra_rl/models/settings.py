"""Settings of local models: sampling, adapters, fine-tuning.

A configuration holds them, and is read where no model is loaded: importing this module imports
neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from astra_rl.errors import ConfigurationError
from astra_rl.infra.ranges import Count, Positive, check_fields

Method = Literal["dpo", "sft"]
"""Methods of fine-tuning a target."""


AttentionImplementation = Literal[
    "auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
]
"""Attention functions of transformers. ``"auto"`` is ``"sdpa"``, but for models in half precision
on the CPU (`astra_rl.models.attention`)."""


@dataclass(frozen=True)
class Loading:
    """How the local models of a run are loaded; see `astra_rl.models.loading.load_model`.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, float32, bfloat16 or float16.
        trust_remote_code: Whether code from model repositories is run.
        attn_implementation: Attention function.
    """

    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    attn_implementation: AttentionImplementation = "auto"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters.

    Attributes:
        max_new_tokens: Maximum number of sampled tokens, the end token included; at least 1.
        temperature: Divisor of the logits, 0 or at least 1e-6; 0 is greedy decoding. On-policy
            algorithms require 1.
        top_k: Sample from the k most likely tokens only; 0 disables it.
        top_p: Nucleus sampling: sample from the smallest set of tokens whose total probability is
            at least this, in (0, 1]; 1 disables it.

    Raises:
        ConfigurationError: A value is out of range.
    """

    max_new_tokens: int = 32
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigurationError(
                f"max_new_tokens={self.max_new_tokens}; it must be at least 1."
            )
        # Dividing logits by a smaller temperature overflows.
        if self.temperature != 0 and not 1e-6 <= self.temperature < float("inf"):
            raise ConfigurationError(
                f"temperature={self.temperature}; it must be 0 (greedy) or at least 1e-6."
            )
        if self.top_k < 0:
            raise ConfigurationError(f"top_k={self.top_k}; it must be 0 (off) or positive.")
        if not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p={self.top_p}; it must be in (0, 1].")

    @property
    def is_exact(self) -> bool:
        """Whether tokens are sampled from the unmodified model distribution (temperature 1)."""
        return self.temperature == 1 and self.top_k == 0 and self.top_p == 1


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Options of a low-rank adapter (LoRA, Hu et al. 2021, arXiv 2106.09685).

    Attributes:
        rank: Rank of the update matrices, at least 1.
        alpha: Scale, positive; the update is multiplied by ``alpha / rank``.
        target_modules: Names of the modules to adapt, or ``"all-linear"``.

    Raises:
        ConfigurationError: A value is out of range.
    """

    rank: Count = 16
    alpha: Positive = 32.0
    target_modules: str | tuple[str, ...] = "all-linear"

    # A configuration holds it as a section.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Options of fine-tuning a target.

    Attributes:
        method: ``"dpo"``: direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290)
            plus the negative log-likelihood of the preferred reply (arXiv 2404.19733). ``"sft"``:
            that likelihood alone.
        beta: Inverse temperature of DPO, above 0.
        lr: Learning rate at the first step; it decays linearly to 0.
        epochs: Passes over the pairs.
        batch_size: Pairs per optimizer step.
        lora: The adapter that is trained.

    Raises:
        ConfigurationError: A value is out of range.
    """

    method: Method = "dpo"
    beta: Positive = 0.1
    lr: Positive = 2e-4
    epochs: Count = 1
    batch_size: Count = 8
    lora: LoraOptions = field(default_factory=LoraOptions)

    # A configuration holds it as a section.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_fields(self)
        if self.method not in get_args(Method):
            raise ConfigurationError(f"method={self.method!r}; choose from {get_args(Method)}.")
