"""Checks of values that user code returns or passes to the library."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from astra_rl.core.row_scoring import score_rows
from astra_rl.core.text import Utterance
from astra_rl.errors import ConfigurationError, ContractError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported where it is used: the command line checks its options without it.


def check_length(values: Sequence[Any], expected: int, *, source: str) -> None:
    """Raise unless `values` has one entry per row of the call.

    Raises:
        ContractError: The message names `source`, the value and what was expected.
    """
    if len(values) != expected:
        raise ContractError(
            f"{source} returned {len(values)} values for {expected} inputs. "
            "Return one value per input, in the same order."
        )


def name_of_function(function: Callable[..., Any]) -> str:
    """Return the name of a function for messages; a callable object has none and shows itself."""
    return str(getattr(function, "__name__", None) or repr(function))


def check_number(name: str, value: Any, is_allowed: Callable[[float], bool], allowed: str) -> None:
    """Raise unless an option is a finite number in its range.

    Args:
        name: Name of the option.
        value: Its value.
        is_allowed: Whether a number is in the range.
        allowed: The range in words, to follow "it must be".

    Raises:
        ConfigurationError: The message names the option, the value and the range.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and is_allowed(value)):
        raise ConfigurationError(f"{name}={value!r}; it must be {allowed}.")


def check_logprobs(logprobs: Tensor, *, batch_size: int, source: str) -> None:
    """Raise unless `logprobs` is a float tensor of shape (batch_size, T).

    Raises:
        ContractError: The message names `source`, the value and what was expected.
    """
    if logprobs.ndim != 2 or logprobs.shape[0] != batch_size or not logprobs.is_floating_point():
        raise ContractError(
            f"{source} returned a tensor of shape {tuple(logprobs.shape)} and dtype "
            f"{logprobs.dtype}; expected a floating ({batch_size}, T). Return one row of per-token "
            "log-probabilities per context, padded on the right with zeros."
        )


def check_loss(loss: Tensor, *, source: str) -> None:
    """Raise unless `loss` is a scalar that requires grad.

    Raises:
        ContractError: The message names `source`, the value and what was expected.
    """
    if loss.numel() != 1 or not loss.requires_grad:
        raise ContractError(
            f"{source} returned a loss of shape {tuple(loss.shape)} with "
            f"requires_grad={loss.requires_grad}; expected a scalar that requires grad. "
            "Compute it from get_attacker_logprobs without detaching."
        )


def checked_logprobs(
    score: Callable[[Sequence[Any], Sequence[Any]], Tensor],
    contexts: Sequence[Any],
    continuations: Sequence[Any],
    *,
    grad: bool,
) -> Tensor:
    """Call a `get_*_logprobs` method of a problem, with or without autograd, and check the result.

    Autograd is disabled here for frozen models, so that a Problem need not do it.

    Returns:
        Log-probabilities, shape (B, T), float32.

    Raises:
        ContractError: The method returned something else.
    """
    import torch

    with torch.set_grad_enabled(grad):
        run = score if grad else partial(score_rows, score)
        logprobs = run(contexts, continuations)
        source = name_of_function(score)
        check_logprobs(logprobs, batch_size=len(contexts), source=source)
        return logprobs.float()


def token_mask(logprobs: Tensor, continuations: Sequence[Any]) -> Tensor:
    """Return which entries of `logprobs` are real tokens, shape (B, T), bool.

    A row ends with its last non-zero entry, because padding is zero. A continuation with token ids
    has at least as many tokens, so that a last token of probability 1 is not mistaken for padding.
    Pass it as a plain `str` if the log-probabilities are of another vocabulary.
    """
    import torch

    if logprobs.shape[1] == 0:
        return logprobs.bool()
    positions = torch.arange(1, logprobs.shape[1] + 1, device=logprobs.device)
    known = [
        len(each.token_ids or ()) if isinstance(each, Utterance) else 0 for each in continuations
    ]
    lengths = ((logprobs.detach() != 0) * positions).amax(dim=1)
    lengths = torch.maximum(lengths, torch.tensor(known, device=logprobs.device))
    return positions <= lengths[:, None]


def is_missing(value: float) -> bool:
    """Whether a score or a reward is missing, that is, not finite."""
    return not math.isfinite(value)


def mean_of_present(values: Iterable[float]) -> float:
    """Return the mean of the values that are not missing; NaN if there are none."""
    present = [value for value in values if not is_missing(value)]
    return math.fsum(present) / len(present) if present else math.nan


def std_of_present(values: Iterable[float]) -> float:
    """Return the sample standard deviation of the values present; NaN for fewer than two."""
    present = [value for value in values if not is_missing(value)]
    return statistics.stdev(present) if len(present) > 1 else math.nan


def check_terms(wanted: Iterable[str], known: Collection[str], *, source: str) -> None:
    """Raise unless a reward has all of these terms.

    Args:
        wanted: Names of the terms.
        known: Names of the terms of the reward.
        source: Where the terms are named, for the message.

    Raises:
        ConfigurationError: A term is missing; the nearest name is suggested.
    """
    for term in wanted:
        if term not in known:
            raise ConfigurationError(
                f"{source}.{term}: the reward has no such term.{did_you_mean(term, known)} "
                f"Known: {', '.join(sorted(known)) or 'none'}."
            )
