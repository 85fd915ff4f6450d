import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.evaluation.show.escaping import terminal_text, visible_text

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ("\0", "\u2400"),
        ("\x1b[31m", "\u241b[31m"),
        ("\r", "\u240d"),
        ("\x7f", "\u2421"),
        ("\x9b31m", "\\u{9b}31m"),
        ("\u202e", "\\u{202e}"),
        ("\u2066", "\\u{2066}"),
        ("\u200f", "\\u{200f}"),
        ("\u2028", "\\u{2028}"),
        ("\u200b", "\\u{200b}"),
        ("\ufeff", "\\u{feff}"),
        ("\U000e0041", "\\u{e0041}"),
        ("\ud800", "\\u{d800}"),
    ],
)
def test_what_a_reader_cannot_see_becomes_a_symbol(hidden, shown):
    assert visible_text(f"a{hidden}b") == f"a{shown}b"
    assert terminal_text(f"a{hidden}b") == f"a{shown}b"


def test_ordinary_text_of_any_script_is_left_alone():
    text = "Grüße, 世界! שלום \N{THUMBS UP SIGN} 👩\u200d🚀 क्\u200dष <b>&amp;</b>"
    assert visible_text(text) == text


def test_newlines_and_tabs_stay_on_a_page_and_become_pictures_on_a_terminal():
    assert visible_text("a\n\tb") == "a\n\tb"
    assert terminal_text("a\n\tb") == "a\u240a\u2409b"


@given(any_text)
def test_no_control_surrogate_or_direction_mark_is_left_and_utf8_can_hold_the_rest(text):
    shown = terminal_text(text)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
    directions = {unicodedata.bidirectional(character) for character in shown}
    assert not directions & {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1


@given(any_text)
def test_making_text_visible_twice_changes_nothing_more(text):
    assert visible_text(visible_text(text)) == visible_text(text)
    assert terminal_text(terminal_text(text)) == terminal_text(text)
