"""Token ids of a model: whether its tokenizer fits it, and which tokens end its texts."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from astra_rl.errors import ModelError


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Check that the model has an embedding and a logit for every token of the tokenizer.

    Without this check, the first such token ends in an index error (on a GPU, in a failed kernel).
    The padding token is exempt, because padding is never embedded: many tokenizers have one that
    the model does not know.

    Args:
        model: A language model, or a classifier, which has no token logits.
        tokenizer: Its tokenizer.
        name: Name of the model for the message.

    Raises:
        ModelError: The tokenizer has a token without an embedding or logit, or the model can sample
            a token that it cannot embed.
    """
    embeddings = model.get_input_embeddings().weight.shape[0]
    head = model.get_output_embeddings()
    logits = embeddings if head is None else head.weight.shape[0]
    if logits > embeddings:
        raise ModelError(
            f"{name} has {logits} logits but only {embeddings} embeddings, so it can sample tokens "
            "that it cannot read. Resize its embedding and its head to the same size."
        )
    read = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    exempt = {tokenizer.pad_token_id} - read
    unknown = {
        index: token
        for token, index in tokenizer.get_vocab().items()
        if index >= logits and index not in exempt
    }
    if unknown:
        shown = ", ".join(f"{unknown[index]!r} ({index})" for index in sorted(unknown)[:3])
        raise ModelError(
            f"the tokenizer of {name} does not fit the model, which has {embeddings} embeddings "
            f"and {logits} logits: {len(unknown)} of its tokens have larger ids: {shown}"
            f"{', ...' if len(unknown) > 3 else ''}. Use the tokenizer that the model was trained "
            "with, or resize and train its embeddings for the new tokens."
        )


def model_end_ids(model: Any) -> frozenset[int]:
    """Return the tokens that end a text by the generation configuration of a model.

    Many chat models have several, which their tokenizers do not name.

    Raises:
        ModelError: They are no integers.
    """
    size = model.get_input_embeddings().weight.shape[0]
    return end_ids(getattr(model, "generation_config", None), size, model.name_or_path)


def end_ids(generation: Any, size: int, name: str) -> frozenset[int]:
    """Return the tokens that end a text by a generation configuration; see `model_end_ids`.

    Args:
        generation: The ``GenerationConfig``; None if the model has none.
        size: Number of embeddings.
        name: Name of the model, for the message.

    Raises:
        ModelError: They are no integers.
    """
    ends = getattr(generation, "eos_token_id", None)
    listed = ends if isinstance(ends, list | tuple) else [] if ends is None else [ends]
    if not all(type(each) is int for each in listed):
        raise ModelError(
            f"eos_token_id in the generation_config.json of {name or 'a model'} is "
            f"{ends!a}; it must be a token id or a list of token ids. Set it to those of the model."
        )
    return frozenset(each for each in listed if 0 <= each < size)
