"""HFASTProblem on tiny random models, in float32 unless said otherwise."""

import contextlib
import copy
import math
from itertools import product

import pytest
import torch
from tests.cases import also, cases
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_rl import (
    DPO,
    GRPO,
    IPO,
    ASTEnvironment,
    ConfigurationError,
    Conversation,
    Exchange,
    FunctionModerator,
    Harness,
    ModelError,
    Trainer,
    TrainingConfiguration,
    Utterance,
)
from astra_rl.ext.transformers import HFASTProblem, HFEvaluationProblem, ModelPair
from astra_rl.models import generation, segments
from astra_rl.models.generation import Sampling
from astra_rl.models.trainable import LoraOptions
from astra_rl.rewards.base import WeightedSum
from astra_rl.rewards.terms import AttackNLL, Harm
from astra_rl.testing import graph_signature, tiny_model
from astra_rl.training.precision import MasterWeightOptimizer

pytestmark = pytest.mark.slow

KINDS = ["gpt2", "gpt2-chat", "llama", "llama-chat"]
LETTERS = "abcdefghijklmnopqrstuvwxyz .,?!:"


def tiny(kind="llama", **options):
    return tiny_model(kind.split("-")[0], chat=kind.endswith("chat"), **options)


def test_gradients_with_checkpointing_are_those_without_it():
    found = []
    for recompute in (False, True):
        problem = problem_of("llama", lora=LoraOptions(rank=2), gradient_checkpointing=recompute)
        with torch.no_grad():
            for parameter in problem.parameters():
                parameter.copy_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
        contexts = ["a long beginning of all"] * 2 + ["another"]
        problem.get_attacker_logprobs(contexts, ["one", "two", "three"]).sum().backward()
        found.append([parameter.grad for parameter in problem.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def share_of_e():
    return FunctionModerator(lambda texts: [text.count("e") / (len(text) + 1) for text in texts])


def problem_of(kind="llama", *, attacker=None, target=None, baseline=None, **options):
    attacker = attacker or tiny(kind, seed=1)
    target = target or tiny(kind, seed=2)
    options = {
        "attacker_sampling": Sampling(max_new_tokens=8),
        "target_sampling": Sampling(max_new_tokens=6),
        **options,
    }
    return HFASTProblem(attacker, target, baseline or attacker, share_of_e(), **options)


def environment_of(problem, **options):
    return ASTEnvironment(problem, ["hello.", "good day"], **options)


def train(problem, make=GRPO, *, steps=2, lr=1e-2, **options):
    config = TrainingConfiguration(
        lr=lr, training_steps=steps, num_episodes_per_experience=2, batch_size=4, seed=0
    )
    trainer = Trainer(config, environment_of(problem, tree_depth=2, **options), make(problem))
    trainer.train()
    return trainer


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Rollouts and scores.


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_graph_whatever_else_is_in_the_batch(kind):
    environment = environment_of(problem_of(kind), tree_width=2, tree_depth=2)
    together = environment.rollouts([5, 0, 9])
    for seed, graph in zip([5, 0, 9], together, strict=True):
        alone = environment.rollout(seed)
        assert graph_signature(alone) == graph_signature(graph)
        for node, other in zip(graph.nodes(), alone.nodes(), strict=True):
            assert node.attack.token_ids == other.attack.token_ids
            assert node.reward == pytest.approx(other.reward, abs=1e-4, nan_ok=True)
    assert graph_signature(together[0]) != graph_signature(together[1])


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_log_probabilities_are_those_sampled_from(kind):
    problem = problem_of(kind)
    nodes = list(environment_of(problem, tree_width=2, tree_depth=3).rollout(0).nodes())
    contexts, attacks = [node.context for node in nodes], [node.attack for node in nodes]
    scored = problem.get_attacker_logprobs(contexts, attacks).detach()
    heard = problem.get_target_logprobs(contexts, attacks)
    for node, row, ear in zip(nodes, scored, heard, strict=True):
        count = len(node.attack.logprobs)
        assert row[:count].tolist() == pytest.approx(node.attack.logprobs, abs=1e-4)
        assert not row[count:].any()
        expected = node.response.heard_logprobs or ()
        assert ear[: len(expected)].tolist() == pytest.approx(expected, abs=1e-4)
        assert not ear[len(expected) :].any()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_log_probabilities_are_those_of_the_model_s_own_forward_pass(family):
    problem = problem_of(family)
    said = [("hello", " you"), ("a much longer opening text, this one", " and why?"), ("x", "")]
    for name, model in (("attacker", problem.attacker), ("target", problem.target)):
        rows = getattr(problem, f"get_{name}_logprobs")([c for c, _ in said], [a for _, a in said])
        for (context, attack), row in zip(said, rows, strict=True):
            ids = problem.tokenizer(context + attack).input_ids
            table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = [
                table[i - 1, ids[i]].item() for i in range(len(ids) - len(attack), len(ids))
            ]
            assert row[: len(attack)].tolist() == pytest.approx(expected, abs=1e-4)
            assert not row[len(attack) :].any()


def test_only_the_attacker_s_scores_carry_gradients():
    problem = problem_of()
    arguments = ["hello"], [" you"]
    assert problem.get_attacker_logprobs(*arguments).requires_grad
    assert not problem.get_target_logprobs(*arguments).requires_grad
    assert not problem.get_baseline_logprobs(*arguments).requires_grad
    with torch.no_grad():
        assert not problem.get_attacker_logprobs(*arguments).requires_grad


def test_a_token_of_probability_one_is_no_padding():
    problem = problem_of("gpt2")
    with torch.no_grad():  # the attacker now says nothing but the letter e
        head = problem.attacker.get_output_embeddings()
        embedding = problem.tokenizer("e").input_ids[0]
        direction = torch.nn.functional.normalize(torch.randn(head.weight.shape[1]), dim=0)
        norm = problem.attacker.transformer.ln_f
        norm.weight.zero_()
        norm.bias.copy_(direction)
        head.weight.zero_()
        head.weight[embedding] = 200 * direction
    row = problem.get_attacker_logprobs(["hello"], ["eee"])[0]
    assert (row < 0).all()
    assert row.sum().item() == pytest.approx(0, abs=1e-6)


def test_no_rows_are_no_trouble():
    problem = problem_of()
    assert list(problem.rollout_prompt_with_attacker([])) == []
    assert list(problem.rollout_prompt_with_target([])) == []
    for name in ("attacker", "target", "baseline"):
        with torch.no_grad():
            assert getattr(problem, f"get_{name}_logprobs")([], []).shape[0] == 0


def test_lists_of_different_lengths_are_refused():
    problem = problem_of()
    for name in ("attacker", "target", "baseline"):
        with pytest.raises(ValueError, match="continuations"):
            getattr(problem, f"get_{name}_logprobs")(["a", "b"], ["x"])


def test_the_baseline_is_not_run_twice_for_the_same_question(monkeypatch):
    problem = problem_of()
    calls = []
    score = problem._attack_logprobs
    monkeypatch.setattr(
        problem, "_attack_logprobs", lambda *given: (calls.append(len(given[2])), score(*given))[1]
    )
    first = problem.get_baseline_logprobs(["a", "b"], [" x", " yy"])
    again = problem.get_baseline_logprobs(["b", "a", "c"], [" yy", " x", " z"])
    assert calls == [2, 1]
    torch.testing.assert_close(again[:2], first.flip(0))


def test_contexts_that_differ_in_what_is_hidden_are_different_questions():
    problem = problem_of("llama-chat")
    contexts = [Conversation("Hi", brief=brief) for brief in ("ask about cats", "be rude")]
    rows = problem.get_baseline_logprobs(contexts, ["hey", "hey"])
    assert not torch.allclose(rows[0], rows[1])


# Who shares what.


def test_an_attacker_that_trains_all_weights_is_a_copy_and_the_frozen_ones_share():
    pair = tiny()
    problem = problem_of(attacker=pair, target=pair, baseline=pair)
    assert problem.target is problem.baseline is pair.model
    shared = {p.data_ptr() for p in pair.model.parameters()}
    assert not shared & {p.data_ptr() for p in problem.attacker.parameters()}
    assert not any(p.requires_grad for p in pair.model.parameters())


@pytest.mark.parametrize("make", [DPO, IPO, lambda p: GRPO(p, kl_in_loss=0.1)])
def test_training_moves_the_attacker_and_nothing_else(make):
    problem = problem_of()
    frozen = [weights(model) for model in (problem.target, problem.baseline)]
    attacker = weights(problem.attacker)
    train(problem, make)
    assert not same(attacker, weights(problem.attacker))
    assert [
        same(a, weights(b)) for a, b in zip(frozen, (problem.target, problem.baseline), strict=True)
    ] == [
        True,
        True,
    ]
    for model in (problem.target, problem.baseline):
        assert all(parameter.grad is None for parameter in model.parameters())


def test_what_a_baseline_of_another_vocabulary_writes_is_trained_on_and_answered_as_its_text():
    """Its ids mean other letters to the attacker and to the target."""
    baseline = tiny(seed=3, letters=LETTERS[::-1])
    problem = problem_of(target=tiny(seed=1), baseline=baseline)
    contexts = ["hello.", "good day"]
    with problem.attacking_untrained():
        attacks = problem.rollout_prompt_with_attacker(contexts)
    texts = [Utterance(str(attack)) for attack in attacks]
    assert torch.equal(
        problem.get_attacker_logprobs(contexts, attacks),
        problem.get_attacker_logprobs(contexts, texts),
    )
    assert torch.equal(
        problem.get_target_logprobs(contexts, attacks),
        problem.get_target_logprobs(contexts, texts),
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_baseline_of_an_adapter_is_the_base_model_before_and_after_training(family):
    pair, untouched = tiny(family, seed=1), tiny(family, seed=1)
    problem = HFASTProblem(
        pair,
        pair,
        pair,
        share_of_e(),
        lora=LoraOptions(rank=2),
        attacker_sampling=Sampling(max_new_tokens=6),
        target_sampling=Sampling(max_new_tokens=6),
    )
    base = HFASTProblem(
        untouched, tiny(family, seed=1), tiny(family, seed=1), share_of_e(),
        target_sampling=Sampling(max_new_tokens=6),
    )  # fmt: skip
    before = ["hello", "good day"], [" you there", " sir"]
    expected = base.get_baseline_logprobs(*before)
    assert torch.equal(problem.get_baseline_logprobs(*before), expected)
    assert torch.equal(problem.get_attacker_logprobs(*before).detach(), expected)  # divergence 0
    assert torch.equal(problem.get_target_logprobs(*before), base.get_target_logprobs(*before))
    train(problem, lr=0.05, steps=3)
    after = ["and now", "good day"], [" again", " madam"]  # questions that were not asked before
    expected = base.get_baseline_logprobs(*after)
    assert torch.equal(problem.get_baseline_logprobs(*after), expected)
    assert torch.equal(problem.get_target_logprobs(*after), base.get_target_logprobs(*after))
    assert (problem.get_attacker_logprobs(*after) - expected).abs().max() > 1e-3


def test_an_adapter_trains_only_itself():
    pair = tiny()
    before = weights(pair.model)
    problem = problem_of(attacker=pair, lora=LoraOptions(rank=2))
    assert all("lora" in name for name, p in problem.attacker.named_parameters() if p.requires_grad)
    train(problem)
    after = {
        name.replace(".base_layer", ""): value
        for name, value in pair.model.state_dict().items()
        if "lora" not in name
    }
    assert same(before, after)


@pytest.mark.parametrize("layers", [1, 2])
def test_an_attacker_that_trains_its_last_layers_shares_the_rest(layers):
    pair = tiny()
    problem = problem_of(attacker=pair, trainable_layers=layers)
    base = dict(pair.model.named_parameters())
    before = weights(pair.model)
    trained, shared = set(), 0
    for name, parameter in problem.attacker.named_parameters():
        if parameter.requires_grad:
            trained.add(name.split("layers.")[1].split(".")[0])
            assert parameter.data_ptr() != base[name].data_ptr()
        else:
            shared += 1
            assert parameter.data_ptr() == base[name].data_ptr()
    assert trained == {"0", "1"} if layers == 2 else trained == {"1"}
    assert shared
    train(problem)
    assert same(before, weights(pair.model))
    for name, parameter in problem.attacker.named_parameters():
        assert torch.equal(parameter, base[name]) == (not parameter.requires_grad)


def test_models_of_one_folder_are_loaded_once(tmp_path):
    save(tiny(), tmp_path / "model")
    problem = HFASTProblem(
        str(tmp_path / "model"), tmp_path / "model", str(tmp_path / "model"), share_of_e(),
        dtype="float32", trainable_layers=1,
    )  # fmt: skip
    assert problem.target is problem.baseline
    assert problem.attacker is not problem.target
    embeddings = problem.attacker.get_input_embeddings(), problem.target.get_input_embeddings()
    assert embeddings[0].weight.data_ptr() == embeddings[1].weight.data_ptr()


def save(pair, folder):
    pair.model.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)
    return folder


# Half precision.


def half(pair):
    return ModelPair(pair.model.to(torch.bfloat16), pair.tokenizer)


def test_an_attacker_in_bfloat16_learns_through_float32_copies():
    problem = problem_of(
        attacker=half(tiny(seed=1)),
        baseline=half(tiny(seed=1)),
        reward=WeightedSum({Harm("exchange"): 1.0}),
        target_sampling=Sampling(max_new_tokens=1),
    )
    environment = environment_of(problem, tree_width=8, tree_depth=1)

    def mean_share():
        nodes = [node for graph in environment.rollouts(range(100, 116)) for node in graph.nodes()]
        return sum(node.attack.count("e") for node in nodes) / sum(
            len(node.attack.token_ids) for node in nodes
        )

    before = mean_share()
    config = TrainingConfiguration(
        lr=1e-2, training_steps=25, num_episodes_per_experience=4, batch_size=32, seed=0
    )
    trainer = Trainer(config, environment, GRPO(problem))
    assert isinstance(trainer.optimizer, MasterWeightOptimizer)
    trainer.train()
    assert all(p.dtype == torch.bfloat16 for p in problem.attacker.parameters())
    assert before < 0.1
    assert mean_share() > 0.5


def test_updates_below_the_last_bit_of_bfloat16_are_not_lost():
    problem = problem_of(attacker=half(tiny(seed=1)), baseline=half(tiny(seed=1)))
    trainer = train(problem, lr=1e-6, steps=3)
    pairs = list(zip(trainer.optimizer.trained, trainer.optimizer.masters, strict=True))
    assert any(not torch.equal(p.float(), master) for p, master in pairs)
    assert all(torch.equal(p, master.to(p.dtype)) for p, master in pairs)


def test_scores_are_float32_whatever_the_weights_are():
    problem = problem_of(attacker=half(tiny(seed=1)), target=half(tiny(seed=2)))
    for name in ("attacker", "target", "baseline"):
        scores = getattr(problem, f"get_{name}_logprobs")(["hello"], [" you"])
        assert scores.dtype == torch.float32


# Different tokenizers.


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("gpt2", DPO),
        also("gpt2", IPO),
        ("gpt2", lambda p: GRPO(p, kl_in_reward=0.01)),
        also("llama-chat", DPO),
        ("llama-chat", IPO),
        also("llama-chat", lambda p: GRPO(p, kl_in_reward=0.01)),
    ],
)
def test_attacker_target_and_baseline_may_have_different_tokenizers(make, kind):
    problem = problem_of(
        kind,
        target=tiny("llama", seed=2, letters=LETTERS[::-1]),
        baseline=tiny(kind, seed=3, letters=LETTERS[5:] + LETTERS[:5] + "0123456789"),
    )
    trainer = train(problem, make, tree_width=3)
    rewards = [node.reward for graph in trainer.harness.graphs for node in graph.nodes()]
    assert any(math.isfinite(reward) for reward in rewards)


def test_each_model_hears_the_text_in_its_own_tokens():
    target = tiny("gpt2", seed=2, letters=LETTERS[::-1])
    problem = problem_of("gpt2", target=target, baseline=target)
    attack = Utterance(" abc", token_ids=problem.tokenizer(" abc").input_ids)
    own = problem_of("gpt2", attacker=target, target=target, baseline=target)
    expected = own.get_target_logprobs(["hello"], [" abc"])
    torch.testing.assert_close(problem.get_target_logprobs(["hello"], [attack]), expected)
    torch.testing.assert_close(problem.get_baseline_logprobs(["hello"], [attack]), expected)


def test_what_the_target_said_is_heard_by_the_attacker_as_text():
    target = tiny("gpt2", seed=2, letters=LETTERS[::-1])
    problem = problem_of("gpt2", target=target)
    said = Utterance(" yes", token_ids=target.tokenizer(" yes").input_ids)
    conversation = Conversation("hello") + " you" + said
    plain = Conversation("hello") + " you" + " yes"
    torch.testing.assert_close(
        problem.get_attacker_logprobs([conversation], [" why"]),
        problem.get_attacker_logprobs([plain], [" why"]),
    )


# Long conversations.


@pytest.mark.parametrize("kind", cases(KINDS, by_default=["gpt2-chat", "llama"]))
def test_conversations_that_outgrow_the_window_never_crash(kind):
    problem = HFASTProblem(
        *(tiny(kind, seed=seed, window=64) for seed in (1, 2, 1)),
        share_of_e(),
        attacker_sampling=Sampling(max_new_tokens=12),
        target_sampling=Sampling(max_new_tokens=12),
    )
    environment = ASTEnvironment(problem, ["hi"], tree_width=2, tree_depth=6)
    long = "a long opening. " * 10
    graphs = [*environment.rollouts([0]), *environment.eval_rollouts([long, long])]
    assert any(len(path) == 6 for path in graphs[0].paths())
    for algorithm in (DPO(problem), GRPO(problem, kl_in_loss=0.1, kl_in_reward=0.1)):
        steps = [step for graph in graphs for step in algorithm.flatten(graph)]
        batch = algorithm.collate_fn(algorithm.prepare(steps)[-12:])
        assert torch.isfinite(algorithm.step(batch)[0])


def test_a_baseline_with_a_smaller_window_scores_what_it_can_read():
    problem = problem_of(
        "gpt2",
        baseline=tiny("gpt2", seed=3, window=16),
        attacker_sampling=Sampling(max_new_tokens=15),
    )
    said = "an attack of more letters than the baseline can read"
    row = problem.get_baseline_logprobs(["hello there"], [said])[0]
    assert torch.isfinite(row).all()
    assert 0 < len(row) <= 16


def test_a_conversation_without_room_for_an_attack_ends():
    problem = problem_of("llama-chat", attacker=tiny("llama-chat", window=70))
    brief = Conversation("Hi", brief="x" * 200)
    attack = problem.rollout_prompt_with_attacker([brief])[0]
    assert isinstance(attack, Utterance)
    harness = Harness(
        ASTEnvironment(problem, [brief], tree_depth=3), GRPO(problem), 1, batch_size=8
    )
    for batch in harness.experience(0):
        assert torch.isfinite(harness.step(batch)[0])


# Rewards.


def test_every_term_of_the_reward_is_recorded_on_the_node():
    node = environment_of(problem_of(), tree_depth=1).rollout(0).children[0]
    terms = node.reward_terms
    assert set(terms) == {"harm_response", "harm_exchange", "attack_nll_target"}
    nll = -sum(node.response.heard_logprobs) / len(node.response.heard_logprobs)
    assert terms["attack_nll_target"] == pytest.approx(nll)
    assert terms["harm_response"] == pytest.approx(
        node.response.count("e") / (len(node.response) + 1)
    )
    assert node.reward == pytest.approx(
        terms["harm_response"] + 0.5 * terms["harm_exchange"] - 0.1 * terms["attack_nll_target"]
    )


def test_the_likelihood_heard_and_the_likelihood_scored_agree():
    problem = problem_of("llama-chat")
    nodes = list(environment_of(problem, tree_depth=2).rollout(1).nodes())
    heard = [Exchange(node.context, node.attack, node.response) for node in nodes]
    deaf = [Exchange(node.context, node.attack, str(node.response)) for node in nodes]
    term = AttackNLL("target")
    for a, b in zip(term(problem, heard), term(problem, deaf), strict=True):
        assert a == pytest.approx(b, abs=1e-4, nan_ok=True)


# Checkpoints.


@pytest.mark.parametrize("options", [{}, {"trainable_layers": 1}])
def test_a_saved_attacker_opens_in_transformers_and_holds_only_safetensors(tmp_path, options):
    problem = problem_of(**options)
    train(problem)
    problem.save(tmp_path / "ckpt")
    assert {path.suffix for path in (tmp_path / "ckpt").iterdir()} <= {
        ".safetensors",
        ".json",
        ".jinja",
    }
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ckpt")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ckpt")
    assert same(weights(model), weights(problem.attacker))
    assert tokenizer.get_vocab() == problem.tokenizer.get_vocab()


def test_a_saved_adapter_opens_as_the_trained_attacker(tmp_path):
    base = str(save(tiny(seed=1), tmp_path / "base"))
    problem = HFASTProblem(
        base, base, base, share_of_e(), dtype="float32", lora=LoraOptions(rank=2),
        attacker_sampling=Sampling(max_new_tokens=6), target_sampling=Sampling(max_new_tokens=6),
    )  # fmt: skip
    train(problem, lr=0.05)
    problem.save(tmp_path / "ckpt")
    again = HFEvaluationProblem(tmp_path / "ckpt", base, share_of_e(), dtype="float32")
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "ckpt"), torch.nn.Module)
    asked = ["hello"], [" you there"]
    expected = problem.get_attacker_logprobs(*asked).detach()
    torch.testing.assert_close(again.get_attacker_logprobs(*asked).detach(), expected)
    assert (expected - again.get_baseline_logprobs(*asked)).abs().max() > 1e-3


def test_a_problem_for_evaluation_trains_nothing():
    problem = HFEvaluationProblem(tiny(seed=1), tiny(seed=2), share_of_e())
    assert list(problem.parameters()) == []
    assert problem.baseline is problem.target
    assert environment_of(problem, tree_depth=1).eval_rollout(0).children
    with pytest.raises(ConfigurationError, match="nothing to train"):
        Trainer(TrainingConfiguration(), environment_of(problem), DPO(problem))


# What cannot be is refused at construction.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": LoraOptions(), "trainable_layers": 1}, "mutually exclusive"),
        ({"trainable_layers": 0}, "trainable_layers=0; this model has 2 layers"),
        ({"trainable_layers": 3}, "trainable_layers=3"),
        ({"attacker_chat": True}, "the attacker's tokenizer has no chat template"),
        ({"target_chat": True}, "the target's tokenizer has no chat template"),
        ({"attacker_sampling": Sampling(max_new_tokens=128)}, "attacker's context window of 128"),
        ({"target_sampling": Sampling(max_new_tokens=500)}, "target's context window of 128"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        problem_of(**options)


def test_an_attack_that_the_baseline_could_never_read_is_refused():
    with pytest.raises(ConfigurationError, match="baseline's context window of 8"):
        problem_of(baseline=tiny(window=8))


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"cannot load the .*model .*empty"):
        HFASTProblem(*[str(tmp_path / "empty")] * 3, share_of_e())


@pytest.mark.parametrize("options", [{"device": "abacus"}, {"dtype": "float33"}])
def test_a_device_or_dtype_that_does_not_exist_names_what_does(tmp_path, options):
    folder = str(save(tiny(), tmp_path / "model"))
    with pytest.raises(ConfigurationError, match="choose from"):
        HFASTProblem(folder, folder, folder, share_of_e(), **options)


def test_truncated_sampling_says_that_it_is_not_exact():
    assert problem_of().samples_exactly
    truncated = problem_of(attacker_sampling=Sampling(max_new_tokens=4, top_k=5))
    assert not truncated.samples_exactly
    with pytest.raises(ConfigurationError, match="temperature 1"):
        GRPO(truncated)
    DPO(truncated)


def test_a_model_in_memory_is_left_as_it_was():
    pair = tiny()
    before, mode = weights(pair.model), copy.deepcopy(pair.model.config.to_dict())
    problem = problem_of(attacker=pair, target=pair)
    train(problem)
    assert same(before, weights(pair.model))
    assert pair.model.config.to_dict() == mode


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_of_a_conversation_changes_no_token_of_it(kind, monkeypatch):
    def play():
        problem = problem_of(kind)
        graphs = environment_of(problem, tree_width=2, tree_depth=3).rollouts([0, 1, 2])
        assert problem._prefix_caches == {}
        return problem, graphs

    read = []
    original = segments.hidden_states
    monkeypatch.setattr(
        segments, "hidden_states", lambda *args: read.append(args[1].numel()) or original(*args)
    )
    _, remembered = play()
    with_memory = sum(read)
    read.clear()
    monkeypatch.setattr(HFASTProblem, "conversing", lambda self: contextlib.nullcontext())
    _, plain = play()
    assert [graph_signature(graph) for graph in remembered] == [
        graph_signature(graph) for graph in plain
    ]
    assert with_memory < sum(read)


@pytest.mark.parametrize(
    ("rows", "kind"),
    cases(
        product([1, 3, 7], KINDS),
        by_default={(1, "llama-chat"), (3, "gpt2"), (3, "llama"), (7, "gpt2-chat")},
    ),
)
def test_cutting_an_experience_into_batches_changes_no_token_of_it(kind, rows, monkeypatch):
    def play():
        problem = problem_of(kind)
        return environment_of(problem, tree_width=2, tree_depth=3).rollouts([0, 1, 2])

    whole = play()
    monkeypatch.setattr(generation, "MAX_BATCH_ROWS", rows)
    cut = play()
    for graph, other in zip(whole, cut, strict=True):
        ids = [[node.attack.token_ids for node in each.nodes()] for each in (graph, other)]
        assert ids[0] == ids[1]
        assert graph_signature(graph) == graph_signature(other)
