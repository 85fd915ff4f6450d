"""Embedders by name, with a small encoder that is made here."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from astra_rl.errors import ConfigurationError
from astra_rl.rewards.embedding import (
    HashingEmbedder,
    TransformersEmbedder,
    Vectors,
    named_embedder,
)
from astra_rl.testing import tiny_model

WORDS = ["[PAD]", "[UNK]", "hello", "there", "good", "evening", "a", "b"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder without a pooler, as many are saved."""
    folder = tmp_path_factory.mktemp("encoder")
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, "[UNK]"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=12
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_vector_is_the_mean_hidden_state_whatever_the_batch(encoder):
    embed = named_embedder(f"transformers:{encoder}")
    texts = ["hello there", "good evening a b hello", "unknown", ""]
    together = embed(texts)
    assert together.shape == (4, 16)
    assert not together[3].any()
    for row, text in zip(together, texts, strict=True):
        torch.testing.assert_close(embed([text])[0], row, rtol=1e-4, atol=1e-6)
    model = BertModel.from_pretrained(encoder, add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = model(torch.tensor([[2, 3]])).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(together[0], expected, rtol=1e-4, atol=1e-6)
    assert embed(["hello " * 40]).isfinite().all()  # longer than the model reads
    assert embed([]).shape == (0, 16)


def test_a_causal_model_without_a_padding_token_embeds_too(tmp_path):
    pair = tiny_model("gpt2")
    pair.model.save_pretrained(tmp_path)
    pair.tokenizer.pad_token = None
    pair.tokenizer.save_pretrained(tmp_path)
    found = TransformersEmbedder(str(tmp_path))(["hello", "a much longer text"])
    alone = TransformersEmbedder(str(tmp_path))(["hello"])
    torch.testing.assert_close(found[:1], alone, rtol=1e-4, atol=1e-5)


def test_names_are_checked(encoder):
    assert isinstance(named_embedder("hashing"), HashingEmbedder)
    with pytest.raises(ConfigurationError, match="choose from hashing, transformers:MODEL"):
        named_embedder("hasing")
    with pytest.raises(ConfigurationError, match="baseline"):
        Vectors("bsaeline")
    unit = Vectors(f"transformers:{encoder}")(None, ["hello there"])
    assert float(unit.norm()) == pytest.approx(1.0)
