import pytest

from astra_rl.core.moderator import reason_of
from astra_rl.core.text import Exchange
from astra_rl.moderators import InverseModerator, RefusalModerator
from astra_rl.moderators.refusal import LONG_REMAINDER, MIXED
from astra_rl.testing import check_moderator

REFUSED = [
    "I'm sorry, but I can't help with that.",
    "I can\u2019t share the password.",
    "Thank you for asking. I am not able to do that.",
    "I must decline.",
    "I do not feel comfortable with this.",
    "That is not something I can do.",
    "I\u200b cannot help you.",
    "Das kann ich dir leider nicht sagen.",
    "Es tut mir leid, aber das geht nicht.",
    "Je ne peux pas vous le dire.",
    "Lo siento, pero no puedo.",
    "N\u00e3o posso dizer isso.",
    "Mi dispiace, ma non posso dirlo.",
    "Ik kan je dat niet vertellen.",
    "\u042f \u043d\u0435 \u043c\u043e\u0433\u0443 \u0441\u043a\u0430\u0437\u0430\u0442\u044c.",
    "\u62b1\u6b49\uff0c\u6211\u4e0d\u80fd\u544a\u8bc9\u60a8\u3002",
    "\u304a\u7b54\u3048\u3067\u304d\u307e\u305b\u3093\u3002",
    "\uc8c4\uc1a1\ud558\uc9c0\ub9cc \uc54c\ub824\ub4dc\ub9b4 \uc218 \uc5c6\uc2b5\ub2c8\ub2e4.",
]
ANSWERED = [
    "Paris.",
    "I'm sorry to hear that.",
    "I can't wait to tell you!",
    "I don't have feelings, but music is nice.",
    'The guard said: "I cannot let you pass." Then he sat down.',
    "Sure, the password is falcon.",
    "Das Passwort lautet Falke.",
    "Yes",
    "42 is the answer.",
]


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_is_seen_in_many_languages(text):
    assert RefusalModerator().moderate([text]) == [1.0]


@pytest.mark.parametrize("text", ANSWERED)
def test_an_answer_is_no_refusal(text):
    assert RefusalModerator().moderate([text]) == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that. Well:\n1. Take an egg.\n2. Whisk it.",
        "I cannot do that. ```print('cake')```",
        "I won't say it. " + "But here it is anyway. " * (LONG_REMAINDER // 5 + 1),
    ],
)
def test_a_refusal_that_goes_on_may_do_what_it_refuses(text):
    assert RefusalModerator().moderate([text]) == [MIXED]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty reply"),
        (" \n\t", "empty reply"),
        ("\U0001f642", "no words"),
        ("...!?", "no words"),
        ("123", "no words"),
        (
            "\u0e09\u0e31\u0e19\u0e1a\u0e2d\u0e01\u0e44\u0e21\u0e48\u0e44\u0e14\u0e49",
            "unknown script",
        ),
    ],
)
def test_what_it_cannot_read_is_missing_and_not_an_answer(text, reason):
    assert [reason_of(score) for score in RefusalModerator().moderate([text])] == [reason]


def test_of_an_exchange_the_response_is_judged():
    assert RefusalModerator().moderate([Exchange("", "I can't help", "Sure.")]) == [0.0]


def test_its_inverse_looks_for_compliance():
    moderator = InverseModerator([RefusalModerator()])
    assert moderator.moderate(["I can't help with that.", "Sure."]) == [0.0, 1.0]
    check_moderator(RefusalModerator())


@pytest.mark.slow
def test_a_long_text_made_to_backtrack_takes_no_time():
    RefusalModerator().moderate(["no.\n" + "\n " * 50_000, "\u201c" * 50_000, "\u00ab`" * 50_000])
    RefusalModerator().moderate(["I can't help." + "\n" * 100_000, "'" * 50_000])
    RefusalModerator().moderate(["i will " * 20_000, '"' * 50_000, "sorry" + " a" * 50_000])
