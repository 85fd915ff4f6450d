"""A sequence classifier of transformers as a moderator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from astra_rl.core.moderator import Moderator, Score
from astra_rl.core.out_of_memory import in_batches
from astra_rl.errors import ConfigurationError, did_you_mean
from astra_rl.infra.documentation import document_options
from astra_rl.infra.ranges import Count, check_ranges
from astra_rl.infra.registry import named
from astra_rl.infra.unicode import well_formed
from astra_rl.models.loading import LOADING, load_classifier, load_tokenizer
from astra_rl.models.rendering import context_window
from astra_rl.models.vocabulary import check_vocabulary


@named("hf_classifier")
@document_options(LOADING)
class HFClassifierModerator(Moderator[str, str]):
    """Scores texts with a sequence classifier.

    The score is the probability of the harmful class: softmax over the classes, or sigmoid if the
    configuration of the model says ``multi_label_classification`` or it has a single output. A text
    is truncated at the context window of the model.

    Args:
        model_id: Hub id or folder; unused for `model` and `tokenizer` if they are given. Only
            safetensors weights are loaded, and no code of the model's repository is run.
        label: Name or index of the harmful class in the model's ``id2label``, or several: the score
            is then the sum of their softmax probabilities, or the highest of their sigmoids.
        dtype: Dtype of the weights, one of `astra_rl.models.devices.DTYPES` or ``"auto"``. Default:
            'float32', because classifiers are small and scores in bfloat16 are coarse.
        batch_size: Most texts per forward pass.
        max_length: Most tokens per text, if the context window is not smaller.
        model: A loaded classifier, in evaluation mode.
        tokenizer: A loaded tokenizer.

    Raises:
        ConfigurationError: The label is unknown, or `batch_size` or `max_length` is below 1.
        ModelError: The model cannot be loaded, or is not a trained classifier.
    """

    def __init__(
        self,
        model_id: str = "",
        *,
        label: str | int | Sequence[str | int],
        device: str = "auto",
        dtype: str = "float32",
        batch_size: Count = 32,
        max_length: Count | None = None,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        check_ranges(HFClassifierModerator, {"batch_size": batch_size, "max_length": max_length})
        if not model_id and (model is None or tokenizer is None):
            raise ConfigurationError("give a model_id, or both a model and a tokenizer.")
        self.tokenizer = load_tokenizer(model_id) if tokenizer is None else tokenizer
        self.model = (
            load_classifier(model_id, device=device, dtype=dtype) if model is None else model
        )
        check_vocabulary(self.model, self.tokenizer, model_id or "the model in memory")
        self.model_id = model_id
        self.label = label
        id2label = self.model.config.id2label or {}
        self.labels = _label_indices(label, {int(key): name for key, name in id2label.items()})
        config = self.model.config
        self.is_multi_label = (
            config.num_labels == 1 or config.problem_type == "multi_label_classification"
        )
        limits = [max_length, _window(self.model), self.tokenizer.model_max_length]
        self.max_length = min(limit for limit in limits if limit is not None)
        # Some classifiers find the end of a text by the padding token of the model. Without a
        # padding token that the tokenizer shares, texts of different length cannot be batched.
        pad = self.tokenizer.pad_token_id
        self.batch_size = batch_size if pad is not None and pad == config.pad_token_id else 1

    def moderate(self, x: Sequence[str]) -> list[float]:
        """Score each text in [0, 1]; missing if the output of the model is not finite."""
        # Texts of similar length share a batch, to reduce padding.
        order = sorted(range(len(x)), key=lambda row: len(x[row]))
        scores: list[float] = [Score.missing("not scored")] * len(x)
        starts = range(0, len(order), self.batch_size)
        batches = (order[start : start + self.batch_size] for start in starts)

        def run(rows: Sequence[int]) -> Tensor:
            return self._harmful_probabilities([x[row] for row in rows])

        for rows, harmful in in_batches(batches, run, doing="judging"):
            for row, score in zip(rows, harmful.tolist(), strict=True):
                # Rounding may carry a sum of probabilities past 1.
                scores[row] = Score.checked(min(score, 1.0) if score < 1.01 else score)
        return scores

    @torch.no_grad()
    def _harmful_probabilities(self, texts: Sequence[str]) -> Tensor:
        """Probability of the harmful classes, shape (B,), float32."""
        inputs = self.tokenizer(
            [well_formed(text) for text in texts],
            padding=len(texts) > 1,
            truncation=True,
            max_length=self.max_length,
            # "[SEP]" in a text is tokenized as letters, not as the control token.
            split_special_tokens=True,
            return_tensors="pt",
        ).to(self.model.device)
        logits: Tensor = self.model(**inputs).logits.float()
        if self.is_multi_label:
            return logits[:, self.labels].sigmoid().amax(dim=-1)
        return logits.softmax(dim=-1)[:, self.labels].sum(dim=-1)


def _label_indices(label: str | int | Sequence[str | int], id2label: dict[int, str]) -> list[int]:
    names = {name: index for index, name in id2label.items()}
    chosen = [label] if isinstance(label, str | int) else list(label)
    if not chosen:
        raise ConfigurationError(f"label is empty; choose from {list(names)}.")
    for each in chosen:
        if each not in names and each not in id2label:
            raise ConfigurationError(
                f"label={each!r}; choose from {list(names)}.{did_you_mean(str(each), names)}"
            )
    return sorted({each if isinstance(each, int) else names[each] for each in chosen})


def _window(model: PreTrainedModel) -> int | None:
    """Return the context window in tokens; None if there is no limit."""
    for name, module in model.named_modules():
        # RoBERTa-like models number positions from their padding index on, so their window is
        # shorter than the configuration says.
        is_table = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if is_table and module.padding_idx is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    return context_window(model.config)
