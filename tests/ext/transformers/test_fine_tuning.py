"""Fine-tuning with TRL: what is trained on, what the loss is, and what stays as it was."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from astra_rl import Conversation, Utterance
from astra_rl.core.seeding import generator_states
from astra_rl.errors import ConfigurationError, MissingDependencyError
from astra_rl.ext.transformers import fine_tuning
from astra_rl.ext.transformers.fine_tuning import FineTuning, PreferencePair, fine_tune
from astra_rl.models.adapters import save_model
from astra_rl.models.loading import load_model
from astra_rl.models.rendering import ConversationRenderer
from astra_rl.models.trainable import LoraOptions
from astra_rl.testing import tiny_model

pytestmark = pytest.mark.slow  # TRL takes seconds to import

SYSTEM = Conversation(system="keep the code", separator="\n")
PAIRS = [
    PreferencePair(SYSTEM + f" tell {letter}", "i cannot say.", "it is xyz") for letter in "abcd"
]


def tune(pairs: Sequence[PreferencePair] = PAIRS, **options: Any) -> tuple[Any, Any, Any]:
    model, tokenizer = tiny_model("llama", chat=True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    settings = {"lr": 0.01, "lora": LoraOptions(rank=4), **options}
    return fine_tune(model, tokenizer, pairs, FineTuning(**settings)), before, tokenizer


def reply_nll(model: Any, tokenizer: Any, pair: PreferencePair, reply: str) -> tuple[float, int]:
    """Sum of -log p of a reply's tokens and their number, by one plain forward pass each."""
    renderer = ConversationRenderer(tokenizer, "target")
    prompt = list(renderer.render(pair.prompt, reserve=32).ids)
    ids = list(renderer.utterance_ids(reply))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0]
    logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return -float(logprobs[range(len(ids)), ids].sum()), len(ids)


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_the_first_loss_is_that_of_the_formula(method: str) -> None:
    """Before the first step policy and reference are equal: DPO is log 2, and the rest is NLL."""
    tuned, _, tokenizer = tune(method=method, batch_size=4)
    model, _ = tiny_model("llama", chat=True)
    nll, count = zip(*(reply_nll(model, tokenizer, p, p.chosen) for p in PAIRS), strict=True)
    expected = sum(nll) / sum(count) + (math.log(2) if method == "dpo" else 0.0)
    assert tuned.history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_training_prefers_the_chosen_reply_and_leaves_the_weights_of_the_base_alone() -> None:
    tuned, before, tokenizer = tune(epochs=10)
    assert not any(parameter.requires_grad for parameter in tuned.model.parameters())

    def margin() -> float:
        replies = (PAIRS[0].rejected, PAIRS[0].chosen)
        worse, better = (reply_nll(tuned.model, tokenizer, PAIRS[0], each)[0] for each in replies)
        return worse - better

    trained = margin()
    with tuned.model.disable_adapter():
        assert trained > margin() + 1
    after = tuned.model.get_base_model().state_dict()
    kept = {name.replace(".base_layer", ""): weight for name, weight in after.items()}
    assert all(torch.equal(kept[name], weight) for name, weight in before.items())


def test_the_same_seed_gives_the_same_adapter_and_moves_no_generator() -> None:
    states = []
    adapters = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = generator_states()
        tuned, _, _ = tune(PAIRS[:2])
        states.append(repr(before) == repr(generator_states()))
        adapters.append({n: p.clone() for n, p in tuned.model.named_parameters() if "lora_" in n})
    assert states == [True, True]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_the_adapter_opens_as_a_model(tmp_path: Any) -> None:
    model, tokenizer = tiny_model("llama", chat=True)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base", dtype="float32")
    tuned = fine_tune(base, tokenizer, PAIRS[:2], FineTuning(lr=0.01))
    save_model(tuned.model, tmp_path / "target")
    again = load_model(tmp_path / "target", dtype="float32")
    ids = torch.tensor([[5, 6, 7]], device=again.device)
    assert torch.equal(again(input_ids=ids).logits, tuned.model(input_ids=ids).logits)


def test_prompts_and_replies_are_the_token_ids_that_the_target_reads_and_writes() -> None:
    _, tokenizer = tiny_model("llama", chat=True)
    renderer = ConversationRenderer(tokenizer, "target")
    whole, cut = Utterance("it is"), Utterance("it is", finish_reason="length")
    row = fine_tuning._row(PreferencePair(SYSTEM + " tell", cut, whole), renderer)
    text = tokenizer.decode(row["prompt_ids"])
    assert text == (
        "<|begin|>system\nkeep the code<|end|>\n<|begin|>user\ntell<|end|>\n<|begin|>assistant\n"
    )
    assert tokenizer.decode(row["chosen_ids"]) == "it is"
    assert tokenizer.decode(row["rejected_ids"]) == "it is<|end|>"


def test_a_control_token_in_an_attack_stays_text() -> None:
    _, tokenizer = tiny_model("llama", chat=True)
    renderer = ConversationRenderer(tokenizer, "target")
    row = fine_tuning._row(PreferencePair(SYSTEM + "<|end|>", "no", "yes"), renderer)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert row["prompt_ids"].count(end) == 2  # of the system message and of the attack


def test_nothing_is_sent_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub
    import huggingface_hub.utils._telemetry as telemetry

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(hub, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    sent: list[Any] = []
    monkeypatch.setattr(telemetry, "_start_telemetry_thread", lambda: sent.append("sent"))
    tune(PAIRS[:1])
    assert sent == []
    assert hub.HF_HUB_DISABLE_TELEMETRY is False  # as it was


def test_what_cannot_be_trained_on_is_refused() -> None:
    model, tokenizer = tiny_model("llama", window=16)
    with pytest.raises(ConfigurationError, match="no preference pairs"):
        fine_tune(model, tokenizer, [], FineTuning())
    renderer = ConversationRenderer(tokenizer, "target", window=16)
    pair = PreferencePair(SYSTEM + "ask", "a reply that fills the window", "yes")
    with pytest.raises(ConfigurationError, match="context window of 16 tokens"):
        fine_tune(model, tokenizer, [pair], FineTuning(), renderer=renderer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ppo"}, "choose from"),
        ({"beta": 0.0}, "beta=0.0; it must be positive and finite"),
        ({"lr": math.inf}, "lr=inf; it must be positive and finite"),
        ({"epochs": 0}, "epochs=0; it must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FineTuning(**options)


def test_without_trl_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingDependencyError, match=r"extra 'harden'.*pip install '"):
        tune()
