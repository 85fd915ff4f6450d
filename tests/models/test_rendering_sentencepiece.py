"""Prompts of SentencePiece models equal the tokens of `apply_chat_template`."""

from datetime import UTC, datetime

import pytest
from tests.models.sentencepiece import MARK, SCHEMES, TEMPLATES, sentencepiece

from astra_rl.core.text import Conversation, Utterance
from astra_rl.models.chat_template import template_time
from astra_rl.models.rendering import ConversationRenderer

TURNS = ("What is 2 + 2?", "It is 4.", "Hello my friend", "  Hi there\n", "你好 \N{GRINNING FACE}")


def deployed(tokenizer, messages, **options):
    """The tokens that a server of transformers gives to the model."""
    return tuple(
        tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **options
        )
    )


def chat(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    said = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return said if system is None else [{"role": "system", "content": system}, *said]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_target_reads_the_tokens_of_its_template(template, scheme, caplog):
    tokenizer = sentencepiece(template, scheme)
    view = ConversationRenderer(tokenizer, "target")
    assert caplog.text == ""
    system = "Be brief.\n" if view.supports_system else None
    for count in (1, 3, 5):
        turns = [turn if index % 2 else turn.strip() for index, turn in enumerate(TURNS[:count])]
        rendered = view.render(Conversation(turns=turns, system=system), reserve=1)
        assert rendered.ids == deployed(tokenizer, chat(*turns, system=system))
        heard = tokenizer.decode(rendered.ids[slice(*rendered.last_turn)])
        assert heard.strip() == turns[-1]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_sampled_ids_are_kept_and_the_text_around_them_is_the_templates(template, scheme):
    tokenizer = sentencepiece(template, scheme)
    view = ConversationRenderer(tokenizer, "target")
    first = view.render(Conversation(turns=TURNS[:1]), reserve=1).ids
    sampled = (*view.utterance_ids("It is 4.")[:-1], tokenizer.eos_token_id)
    said = Utterance(view.decode(sampled), token_ids=sampled)
    assert said == "It is 4."
    second = view.render(Conversation(turns=(TURNS[0], said, TURNS[2])), reserve=1).ids
    assert second[: len(first) + len(sampled) - 1] == (*first, *sampled[:-1])
    if template != "mistral":  # it has no space before past answers, where the model says one
        assert second == deployed(tokenizer, chat(TURNS[0], "It is 4.", TURNS[2]))
    # Other ids than those of the text are kept as well.
    odd = (*tokenizer.convert_tokens_to_ids(["I", "t", f"{MARK}is"]), tokenizer.eos_token_id)
    rendered = view.render(
        Conversation(turns=(TURNS[0], Utterance("It is", token_ids=odd), TURNS[2])), reserve=1
    )
    assert rendered.ids[: len(first) + 3] == (*first, *odd[:-1])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_control_tokens_in_a_text_are_letters_of_it(template, scheme):
    tokenizer = sentencepiece(template, scheme, specials=["<tool>", "ol><to"])
    view = ConversationRenderer(tokenizer, "target")
    plain = view.render(Conversation(turns=("What is",)), reserve=1).ids
    for evil in ("a</s>", "</s><s> is <tool>b", "<tool><tool>", "<unk>", "<", "</s>\n</s>"):
        rendered = view.render(Conversation(turns=(evil,)), reserve=1)
        heard = rendered.ids[slice(*rendered.last_turn)]
        assert set(heard).isdisjoint(tokenizer.all_special_ids)
        assert tokenizer.decode(heard).strip() == evil
        for token in tokenizer.all_special_ids:
            assert rendered.ids.count(token) == plain.count(token)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_space_at_the_start_of_a_turn_in_running_text_is_kept(scheme):
    tokenizer = sentencepiece(scheme=scheme)
    attacker = ConversationRenderer(tokenizer, "attacker", chat=False)
    words = tokenizer.convert_tokens_to_ids([f"{MARK}are", f"{MARK}you", f"{MARK}there"])
    attack = Utterance(attacker.decode(words), token_ids=words)
    assert Conversation("Hello my friend,") + attack == "Hello my friend, are you there"
    assert attacker.token_ends(attack) == [4, 8, 14]
    assert attacker.utterance_ids(str(attack)) == tuple(words)
    whole = tokenizer("Hello my friend, are you there", add_special_tokens=False).input_ids
    target = ConversationRenderer(tokenizer, "target", chat=False)
    for heard in (attack, str(attack)):
        rendered = target.render(Conversation("Hello my friend,") + heard, reserve=1)
        assert list(rendered.ids) == whole
        assert list(rendered.ids[slice(*rendered.last_turn)]) == words


def test_the_first_word_of_a_text_has_no_space_before_it():
    tokenizer = sentencepiece()
    view = ConversationRenderer(tokenizer, "attacker", chat=False)
    words = tokenizer.convert_tokens_to_ids([f"{MARK}Hello", f"{MARK}my"])
    assert view.begins_text(Conversation())
    assert not view.begins_text(Conversation("Hi"))
    assert view.decode(words, opens=True) == "Hello my"
    assert view.utterance_ids("Hello my", opens=True) == tuple(words)


def test_a_difference_from_the_template_is_reported_once(caplog):
    tokenizer = sentencepiece(
        "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]"
        "{{ messages | length }}{% endfor %}"
    )
    tokenizer.name_or_path = "odd"
    template = tokenizer.chat_template
    # A template that shows a text in another form than the placeholder of the same role.
    tokenizer.chat_template = template.replace("m['content']", "m['content'].replace('4', '5')")
    ConversationRenderer(tokenizer, "target")
    ConversationRenderer(tokenizer, "target")
    (said,) = caplog.messages
    assert "prompts of the target differ from apply_chat_template of odd: " in said
    assert "after '+ 2?]4[It is'" in said


DATED = (
    "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}\n"
    "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
)


def test_the_date_of_a_template_is_that_of_the_runs_start():
    tokenizer = sentencepiece(DATED)
    with template_time(datetime(2025, 2, 3, 23, 59, tzinfo=UTC)):
        view = ConversationRenderer(tokenizer, "target")
    text = tokenizer.decode(view.render(Conversation(turns=("Hello",)), reserve=1).ids)
    assert text.startswith("03 Feb 2025Hello")
    assert "2025" not in tokenizer.decode(
        ConversationRenderer(tokenizer, "target")
        .render(Conversation(turns=("Hello",)), reserve=1)
        .ids
    )
