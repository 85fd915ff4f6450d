"""Check that a model computes in segments what it computes at once.

Families differ in position ids, cache layout, attention masks and post-processing of logits. For a
family that `astra_rl.models.segments` does not handle, all probabilities would be silently wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from astra_rl.errors import AstraError, ModelError, first_line
from astra_rl.logging import logger
from astra_rl.models.attention import fused_attention
from astra_rl.models.lm_head import lm_head_logits
from astra_rl.models.positions import Boundary, boundaries, rescaled_positions, shortened
from astra_rl.models.prefix_plan import Level
from astra_rl.models.segments import backbone, forward_levels, hidden_states, unwrap_peft

SHORT = 4
"""Length, in tokens, to which boundaries are moved for the check at first use."""

MAX_OPERATIONS = {"cpu": 2e10}
"""Most operations of a check at the true length at first use, by type of device; about a second."""

MAX_OPERATIONS_OF_ACCELERATOR = 2e14
"""The same for all other devices."""

ROUNDING = 4.0
"""How many times as far as by rounding the embeddings differently logits may differ."""
ROUNDINGS = 4

# transformers 5.17 and 5.20 to 5.22 have no DummyLayer: there, layers without a cache of their own
# are not in the cache.
_SUPPORTED_LAYERS = {
    DynamicLayer,
    DynamicSlidingWindowLayer,
    getattr(cache_utils, "DummyLayer", DynamicLayer),
}

_unchecked: WeakKeyDictionary[nn.Module, list[Boundary]] = WeakKeyDictionary()
"""Boundaries of each supported model that are checked when a text first exceeds them."""

_of_kind: dict[Hashable, list[Boundary]] = {}
"""The same by what decides how a model computes, so that a copy of a model is not checked again."""


@torch.no_grad()
def check_supported(model: PreTrainedModel) -> None:
    """Check once per kind of model that segmented computation reproduces the model's own logits.

    Models are of one kind if they differ in their weights only.

    Sampling is also compared with one forward pass across every length at which the attention or
    the positions of the model change (`positions.boundaries` and `positions.rescaled_positions`).
    At the true length this would cost as much as reading a text of this length, so it is done for
    a copy of the settings in which the boundaries lie at `SHORT` tokens, and at the true length
    within `MAX_OPERATIONS`, else when a text first exceeds it (`check_boundaries`).

    Raises:
        ModelError: The cache layers are not attention layers, the segmented pass fails, or its
            logits differ from those of ``model.forward``.
    """
    inner = unwrap_peft(model)
    if inner in _unchecked or model.training:
        return
    kind = _kind(inner)
    if kind is not None and kind in _of_kind:
        _unchecked[inner] = _of_kind[kind]  # what one of them has checked, all have
        return
    name = type(inner).__name__
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    unknown = kinds - _SUPPORTED_LAYERS
    if unknown:
        names = sorted(kind.__name__ for kind in unknown)
        raise ModelError(
            f"{name} is not supported: its cache layers {names} cannot be shared or padded. Use a "
            "model with attention layers only."
        )
    try:
        segmented, reference = _segmented_logits(model), _own_logits(model)
    except AstraError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name} is not supported: it does not run on cached segments with explicit positions "
            f"({first_line(error)})."
        ) from error
    if not torch.isfinite(reference).all():
        return  # sampling reports non-finite weights, with advice
    _compare(model, segmented, reference, lambda: _own_logits(model), "")
    for position in sorted(rescaled_positions(model.config)):
        where = f" across position {position}, from which positions are rescaled,"
        _check_sampling(model, 8, [2], where, first=position - 4)
    found = boundaries(model)
    if found and not _is_exact_if_shortened(model):
        logger.warning(
            "%s: sampling across its %s could not be checked on a short text; it is checked on a "
            "text of this length%s",
            name,
            found[0].what,
            "" if _is_affordable(model, found[0]) else " when one first occurs",
        )
    affordable = [each for each in found if _is_affordable(model, each)]
    for boundary in affordable:
        _check_boundary(model, boundary)
    _unchecked[inner] = [each for each in found if each not in affordable]
    if kind is not None:
        _of_kind[kind] = _unchecked[inner]


def _kind(model: PreTrainedModel) -> Hashable:
    """Return what decides how a model computes, apart from its weights.

    None for one with hooks or methods of its own, which may compute anything.
    """
    modules = list(model.modules())
    for each in modules:
        if each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each):
            return None
    settings = {**model.config.to_dict(), "_name_or_path": None}
    return (
        tuple(map(type, modules)),
        json.dumps(settings, sort_keys=True, default=str),
        model.config._attn_implementation,
        model.dtype,
        model.device.type,
    )


@torch.no_grad()
def check_boundaries(model: PreTrainedModel, length: int) -> None:
    """Check sampling across each boundary below `length` that was too expensive at first use.

    Raises:
        ModelError: The logits differ from those of one forward pass.
    """
    waiting = _unchecked.get(unwrap_peft(model), [])
    while waiting and waiting[0].size < length and not model.training:
        _check_boundary(model, waiting[0])
        del waiting[0]


def _is_exact_if_shortened(model: PreTrainedModel) -> bool:
    """Return whether sampling is exact across boundaries that were moved to `SHORT` tokens.

    False if it is not, which may be because the family holds a boundary in other places too.
    """
    inner = unwrap_peft(model)
    if not any(each.names for each in boundaries(model)):
        return True
    try:
        with shortened(inner, SHORT) as is_short:
            if is_short:  # a prompt below the length, and one beyond it
                _check_sampling(model, 2 * SHORT + 2, [SHORT - 2, 2 * SHORT - 1], "")
            return is_short
    except Exception:
        return False


def _is_affordable(model: PreTrainedModel, boundary: Boundary) -> bool:
    limit = MAX_OPERATIONS.get(model.device.type, MAX_OPERATIONS_OF_ACCELERATOR)
    config = model.config.get_text_config()
    weights = sum(each.numel() for each in unwrap_peft(model).parameters())
    # Per token, with one key and one value of each earlier token.
    attention = 2 * boundary.size * int(config.hidden_size) * int(config.num_hidden_layers)
    operations = 2 * 2 * boundary.size * (int(weights) + attention)  # two passes; product and sum
    return bool(operations <= limit)


def _check_boundary(model: PreTrainedModel, boundary: Boundary) -> None:
    start = max(1, boundary.size - 2)
    _check_sampling(model, boundary.size + 4, [start], f" across its {boundary.what}")


def _check_sampling(
    model: PreTrainedModel, count: int, starts: Sequence[int], where: str, *, first: int = 0
) -> None:
    """Compare tokens that are appended to the cache one by one with one forward pass.

    Args:
        model: The model.
        count: Number of tokens of the text.
        starts: For each comparison, the number of tokens that are read before.
        where: Where in the text, for the error.
        first: Position of the first token.
    """
    vocabulary = model.config.get_text_config().vocab_size
    whole = torch.tensor([[(7 * index + 3) % vocabulary for index in range(count)]])
    whole = whole.to(model.device)
    positions = torch.arange(first, first + count, device=model.device)[None]

    def own(start: int) -> Tensor:
        given: dict[str, Any] = {"position_ids": positions} if first else {}
        with fused_attention(model):
            states = backbone(model)(
                input_ids=whole, attention_mask=torch.ones_like(whole), **given
            ).last_hidden_state[0]
        return lm_head_logits(model, states[start:])

    reference = own(min(starts))
    for start in starts:
        head = Level([whole[0, :start].tolist()], [first], None)
        kv_cache = forward_levels(model, [head], reserve=count - start).kv_cache
        steps = [
            hidden_states(
                model,
                whole[:, index : index + 1],
                torch.ones_like(whole[:, : index + 1]),
                positions[:, index : index + 1],
                kv_cache,
            )[0]
            for index in range(start, count)
        ]
        _compare(
            model,
            lm_head_logits(model, torch.cat(steps)),
            reference[start - min(starts) :],
            partial(own, start),
            where,
        )


def _compare(
    model: PreTrainedModel,
    segmented: Tensor,
    reference: Tensor,
    own: Callable[[], Tensor],
    where: str,
) -> None:
    """Compare logits, shape (tokens, vocabulary), with those of `own`, the model's forward pass.

    In half precision the logits of some tokens of real models depend on rounding: two ways to
    compute the same differ by half of their range. A larger difference is allowed at a token where
    the model's own logits move as far if its embeddings are rounded differently.
    """
    is_exact = model.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    tolerance = (1e-3 if is_exact else 0.1) * float(reference.max() - reference.min())
    gaps = (segmented - reference).abs().amax(-1)
    allowed = torch.full_like(gaps, tolerance)
    if not is_exact and not bool((gaps <= allowed).all()):
        allowed = allowed.maximum(ROUNDING * _sensitivity(model, reference, own))
    if not bool((gaps <= allowed).all()):
        raise ModelError(
            f"{type(unwrap_peft(model)).__name__} is not supported: logits computed in "
            f"segments{where} differ from those of its own forward pass by up to "
            f"{float(gaps.max()):.3g}. Use a model of another family."
        )


def _sensitivity(model: PreTrainedModel, reference: Tensor, own: Callable[[], Tensor]) -> Tensor:
    """Return how far the logits of each token move if the embeddings are rounded differently.

    The largest of a few changes of every embedding by one unit in the last place, up or down.
    """
    step = torch.finfo(model.dtype).eps
    generator = torch.Generator().manual_seed(0)
    moved = torch.zeros(len(reference), device=reference.device)

    def round_differently(module: nn.Module, given: Any, embedded: Tensor) -> Tensor:
        signs = torch.randint(0, 2, embedded.shape, generator=generator) * 2 - 1
        return embedded * (1 + step * signs.to(embedded))

    hook = unwrap_peft(model).get_input_embeddings().register_forward_hook(round_differently)
    try:
        for _ in range(ROUNDINGS):
            moved = moved.maximum((own() - reference).abs().amax(-1))
    finally:
        hook.remove()
    return moved


HEADS_AND_TAILS = (
    ([[1, 2, 3], [4, 5]], [[6], [7, 8], [9]]),
    ([[1], [4]], [[6]] * 3),
)
"""Texts of the check, ragged and of equal lengths: their beginnings, and continuations of them."""
PARENTS = (0, 0, 1)
"""The beginning of each continuation."""


def _texts(model: PreTrainedModel) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    vocabulary = model.config.get_text_config().vocab_size
    for parts in HEADS_AND_TAILS:
        heads, tails = (
            [[token % vocabulary for token in segment] for segment in segments]
            for segments in parts
        )
        yield heads, tails


def _segmented_logits(model: PreTrainedModel) -> Tensor:
    """Logits of the continuations, shape (tokens, vocabulary), computed in segments."""
    found = []
    for heads, tails in _texts(model):
        starts = [len(heads[parent]) for parent in PARENTS]
        levels = [Level(heads, [0, 0], None), Level(tails, starts, list(PARENTS))]
        output = forward_levels(model, levels)
        for tail, hidden in zip(tails, output.hidden, strict=True):
            found.append(lm_head_logits(model, hidden[: len(tail)]))
    return torch.cat(found)


def _own_logits(model: PreTrainedModel) -> Tensor:
    """The same from ``model.forward``, each text alone."""
    found = []
    for heads, tails in _texts(model):
        for tail, parent in zip(tails, PARENTS, strict=True):
            whole = torch.tensor([heads[parent] + tail], device=model.device)
            with fused_attention(model):
                result = model(input_ids=whole, attention_mask=torch.ones_like(whole))
            found.append(result.logits[0, -len(tail) :].float())
    return torch.cat(found)
