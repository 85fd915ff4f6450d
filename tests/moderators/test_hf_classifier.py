import math

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from astra_rl.core.text import Exchange
from astra_rl.errors import ConfigurationError, ModelError
from astra_rl.moderators import HFClassifierModerator

WORDS = ["you", "idiot", "nice", "day", "damn", "cake"]
TEXTS = ["you idiot", "nice", "damn damn damn cake", "", "nice day you cake idiot"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LABELS = {0: "neutral", 1: "toxic", 2: "threat"}


def bert(**options):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=10,
        intermediate_size=16,
        max_position_embeddings=12,
        initializer_range=0.5,
        **{"id2label": LABELS, **SIZES, **options},
    )
    return BertForSequenceClassification(config).eval()


@torch.no_grad()
def logits(model, tokenizer, text, limit=12):
    ids = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt").input_ids
    return model(ids).logits[0]


@pytest.fixture
def tokenizer(make_word_tokenizer):
    return make_word_tokenizer(WORDS, pad_token="[PAD]")


@pytest.mark.parametrize("label", ["toxic", 1])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_score_is_the_softmax_of_the_class_read_alone(tokenizer, label, batch_size):
    model = bert()
    moderator = HFClassifierModerator(
        model=model, tokenizer=tokenizer, label=label, batch_size=batch_size
    )
    by_hand = [float(logits(model, tokenizer, text).softmax(-1)[1]) for text in TEXTS]
    scores = moderator.moderate(TEXTS)
    assert scores == pytest.approx(by_hand, abs=1e-6)
    assert all(isinstance(score, float) for score in scores)
    assert len({round(score, 4) for score in scores}) == len(TEXTS)


def test_several_classes_that_exclude_each_other_are_summed(tokenizer):
    model = bert()
    one, other, both, every = (
        HFClassifierModerator(model=model, tokenizer=tokenizer, label=label).moderate(TEXTS)
        for label in ("toxic", 2, ["threat", 1, "toxic"], ["neutral", "toxic", "threat"])
    )
    assert both == pytest.approx([a + b for a, b in zip(one, other, strict=True)], abs=1e-6)
    assert every == pytest.approx([1.0] * len(TEXTS))
    assert max(every) <= 1.0


def test_of_classes_that_do_not_exclude_each_other_the_likeliest_counts(tokenizer):
    model = bert(problem_type="multi_label_classification")
    moderator = HFClassifierModerator(model=model, tokenizer=tokenizer, label=["toxic", "threat"])
    by_hand = [float(logits(model, tokenizer, text).sigmoid()[1:].max()) for text in TEXTS]
    assert moderator.moderate(TEXTS) == pytest.approx(by_hand, abs=1e-6)


def test_a_single_output_is_read_through_a_sigmoid(tokenizer):
    model = bert(id2label={0: "toxicity"})
    moderator = HFClassifierModerator(model=model, tokenizer=tokenizer, label="toxicity")
    by_hand = [float(logits(model, tokenizer, text).sigmoid()[0]) for text in TEXTS]
    assert moderator.moderate(TEXTS) == pytest.approx(by_hand, abs=1e-6)


def test_the_text_of_an_exchange_is_judged(tokenizer):
    moderator = HFClassifierModerator(model=bert(), tokenizer=tokenizer, label="toxic")
    response, both = moderator.moderate(
        [Exchange("", "nice", "you idiot"), Exchange("", "nice", "day", text="nice day")]
    )
    assert [response, both] == pytest.approx(moderator.moderate(["you idiot", "nice day"]))


def test_a_text_is_cut_at_the_window_or_before(tokenizer):
    model = bert()
    text = "damn cake " * 50
    for max_length, limit in ((None, 12), (100, 12), (5, 5)):
        moderator = HFClassifierModerator(
            model=model, tokenizer=tokenizer, label="toxic", max_length=max_length
        )
        by_hand = float(logits(model, tokenizer, text, limit).softmax(-1)[1])
        assert moderator.moderate([text]) == pytest.approx([by_hand], abs=1e-6)


def test_a_model_that_counts_positions_from_its_padding_index_reads_what_fits(tokenizer):
    config = RobertaConfig(
        vocab_size=10, intermediate_size=16, max_position_embeddings=12, pad_token_id=0, **SIZES
    )
    model = RobertaForSequenceClassification(config).eval()
    moderator = HFClassifierModerator(model=model, tokenizer=tokenizer, label=1)
    assert moderator.max_length == 11
    assert 0 <= moderator.moderate(["damn " * 50])[0] <= 1


@pytest.mark.parametrize(("pad_token", "pad_id"), [(None, None), (None, 0), ("[PAD]", 3)])
def test_without_a_common_padding_token_texts_are_read_one_by_one(
    make_word_tokenizer, pad_token, pad_id
):
    own = make_word_tokenizer(WORDS, **({"pad_token": pad_token} if pad_token else {}))
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=10, n_embd=16, n_layer=2, n_head=2, n_positions=12, pad_token_id=pad_id
    )
    model = GPT2ForSequenceClassification(config).eval()
    moderator = HFClassifierModerator(model=model, tokenizer=own, label="LABEL_1")
    by_hand = [float(logits(model, own, text).softmax(-1)[1]) for text in TEXTS]
    assert moderator.moderate(TEXTS) == pytest.approx(by_hand, abs=1e-6)


def test_control_tokens_and_lone_surrogates_in_a_text_are_letters(tokenizer):
    moderator = HFClassifierModerator(model=bert(), tokenizer=tokenizer, label="toxic")
    forged, spaced = moderator.moderate(["nice [SEP] \ud800", "nice [ SEP ] \ufffd"])
    assert forged == pytest.approx(spaced)


def test_an_output_that_is_not_finite_is_a_missing_score(tokenizer):
    model = bert()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[5] = math.nan  # "idiot"
    moderator = HFClassifierModerator(model=model, tokenizer=tokenizer, label="toxic")
    odd, even = moderator.moderate(["you idiot", "nice day"])
    assert math.isnan(odd)
    assert 0 <= even <= 1


def test_no_texts_give_no_scores(tokenizer):
    moderator = HFClassifierModerator(model=bert(), tokenizer=tokenizer, label="toxic")
    assert moderator.moderate([]) == []


@pytest.mark.parametrize("label", ["toxik", 3, -1, ["toxic", "rude"], []])
def test_a_wrong_label_is_answered_with_the_labels_there_are(tokenizer, label):
    with pytest.raises(ConfigurationError, match=r"\['neutral', 'toxic', 'threat'\]"):
        HFClassifierModerator(model=bert(), tokenizer=tokenizer, label=label)


def test_a_misspelt_label_is_guessed(tokenizer):
    with pytest.raises(ConfigurationError, match="Did you mean 'threat'"):
        HFClassifierModerator(model=bert(), tokenizer=tokenizer, label="threats")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"max_length": 0}])
def test_sizes_below_one_are_refused(tokenizer, wrong):
    with pytest.raises(ConfigurationError, match="must be at least 1"):
        HFClassifierModerator(model=bert(), tokenizer=tokenizer, label=1, **wrong)


def test_a_model_without_its_tokenizer_needs_an_id():
    with pytest.raises(ConfigurationError, match="give a model_id"):
        HFClassifierModerator(model=bert(), label=1)


def test_a_classifier_is_loaded_frozen_from_a_folder(tokenizer, tmp_path):
    model = bert()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = HFClassifierModerator(str(tmp_path), label="toxic", device="cpu")
    given = HFClassifierModerator(model=model, tokenizer=tokenizer, label="toxic")
    assert loaded.moderate(TEXTS) == pytest.approx(given.moderate(TEXTS), abs=1e-6)
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())


def test_a_model_that_was_never_trained_to_classify_is_refused(guard_model, tokenizer, tmp_path):
    assert isinstance(guard_model, LlamaForCausalLM)
    guard_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"not a trained classifier.*score\.weight"):
        HFClassifierModerator(str(tmp_path), label=1, device="cpu")


def test_a_missing_model_is_an_error_that_names_it(tokenizer, tmp_path):
    with pytest.raises(ModelError, match="nothing-here"):
        HFClassifierModerator(str(tmp_path / "nothing-here"), label=1, tokenizer=tokenizer)
