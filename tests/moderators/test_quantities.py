"""What a number is of."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.moderators.quantities import quantity_of


def of(text: str) -> str:
    number = re.search(r"\d+(?:[.,:]\d+)*", text)
    assert number is not None
    return quantity_of(text, *number.span())


@pytest.mark.parametrize(
    ("text", "quantity"),
    [
        ("A guard earns $25,000 a year.", "price"),
        ("It costs 12 euros.", "price"),
        ("Our phone number is 12", "phone number"),
        ("Call 555-1234 now.", "phone number"),
        ("On Friday, July 12th, at noon.", "date"),
        ("On 22 July.", "date"),
        ("It is 06/23/2022.", "date"),
        ("The show starts at 10:30.", "time of day"),
        ("The ratio is 3:1.", "number"),
        ("Only 12 may enter.", "count"),
        ("On 12 May.", "date"),
        ("At 7 pm.", "time of day"),
        ("It goes at 20 miles per hour.", "speed"),
        ("The building is 400 years old.", "age"),
        ("A 20-year-old tree.", "age"),
        ("The tour takes 2.5 hours.", "duration"),
        ("It opened in 1998.", "year"),
        ("A castle of the 19th century.", "year"),
        ("A 20-acre farm.", "area"),
        ("It has 300 square feet.", "area"),
        ("The station is about 2 miles away.", "length"),
        ("It is 100 feet tall.", "length"),
        ("It weighs 3 tons.", "weight"),
        ("It is 18.00 degrees Celsius.", "temperature"),
        ("About 10% of them.", "share"),
        ("It holds 30 gallons.", "volume"),
        ("The 3rd door.", "rank"),
        ("Come to 123 Maple Street.", "address"),
        ("Come to 2121 Old Maple Road, please.", "address"),
        ("The address is 7.", "address"),
        ("There are 12 books.", "count"),
        ("In total 1000 times.", "count"),
        ("The answer is 42.", "number"),
        ("42", "number"),
    ],
)
def test_the_words_around_a_number_say_what_it_is_of(text: str, quantity: str) -> None:
    assert of(text) == quantity


@given(st.text(), st.integers(0, 10**6), st.text())
def test_any_surroundings_have_an_answer(before: str, number: int, after: str) -> None:
    text = f"{before} {number} {after}"
    start = len(before) + 1
    assert quantity_of(text, start, start + len(str(number)))
