"""Tokenizers that do not fit their model are refused at load, wherever a model is loaded."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from astra_rl import FunctionModerator, ModelError
from astra_rl.ext.transformers import HFASTProblem, ModelPair
from astra_rl.ext.transformers.secondary_target import SecondaryTarget
from astra_rl.models.loading import load_tokenizer
from astra_rl.models.vocabulary import check_vocabulary
from astra_rl.moderators.completion import LocalCompleter
from astra_rl.moderators.hf_classifier import HFClassifierModerator
from astra_rl.testing import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose tokenizer has one token more than the model has embeddings."""
    folder = tmp_path_factory.mktemp("larger")
    model, tokenizer = tiny_model(chat=True)
    tokenizer.add_tokens(["hello"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LARGER = r"tokenizer of .* does not fit .*37 embeddings and 37 logits: 1 of .*'hello' \(37\)"


def problem(attacker, target, baseline):
    return HFASTProblem(attacker, target, baseline, FunctionModerator(lambda x: [0.5] * len(x)))


@pytest.mark.parametrize("role", range(3))
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_tokenizer_with_a_token_more_is_refused_in_every_role(folder, role, in_memory):
    models = [tiny_model()] * 3
    models[role] = ModelPair(tiny_model().model, load_tokenizer(folder)) if in_memory else folder
    with pytest.raises(ModelError, match=LARGER):
        problem(*models)


@pytest.mark.parametrize("load", [SecondaryTarget, LocalCompleter])
def test_it_is_refused_as_a_second_target_and_as_a_judge(folder, load):
    with pytest.raises(ModelError, match=LARGER):
        load(str(folder), device="cpu")


def test_it_is_refused_as_a_classifier(folder):
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=30, intermediate_size=8, **size))
    with pytest.raises(ModelError, match="30 embeddings and 30 logits: 8 of its tokens"):
        HFClassifierModerator(label=1, model=model, tokenizer=load_tokenizer(folder))


def test_a_head_of_another_size_than_the_embedding_is_refused():
    model, tokenizer = tiny_model()
    model.lm_head = torch.nn.Linear(32, 40, bias=False)
    with pytest.raises(ModelError, match="40 logits but only 37 embeddings"):
        check_vocabulary(model, tokenizer, "it")
    model.lm_head = torch.nn.Linear(32, 30, bias=False)
    with pytest.raises(ModelError, match=r"37 embeddings and 30 logits: 7 of its tokens"):
        check_vocabulary(model, tokenizer, "it")


def test_a_padding_token_that_the_model_does_not_know_is_allowed():
    model, tokenizer = tiny_model()
    tokenizer.pad_token = None
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == model.config.vocab_size
    made = problem(*[ModelPair(model, tokenizer)] * 3)
    assert made.get_target_logprobs(["hi [PAD]"], [" you [PAD]"]).isfinite().all()
    tokenizer.eos_token = "[PAD]"
    with pytest.raises(ModelError, match=r"\[PAD\]"):
        check_vocabulary(model, tokenizer, "it")
