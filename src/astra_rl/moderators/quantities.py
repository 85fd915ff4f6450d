"""What a number in an English text is of: a price, a year, a distance, by the words around it."""

from __future__ import annotations

import re
from typing import NamedTuple

AROUND = 60
"""Characters around a number that are looked at."""

_MONTH = (
    "january|february|(?-i:M)arch|april|(?-i:M)ay|june|july|august|september|october|november|december"
    "|jan|feb|(?-i:M)ar|apr|jun|jul|aug|sept?|oct|nov|dec"
)
_TIME = "seconds?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|decades?|centur(?:y|ies)"
_LENGTH = (
    "miles?|km|kilomet(?:er|re)s?|met(?:er|re)s?|m|feet|foot|ft|inch(?:es)?|yards?|cm|mm"
    "|centimet(?:er|re)s?|blocks?"
)
_WEIGHT = "kg|kilograms?|kilos?|grams?|g|tons?|tonnes?|ounces?|oz|lbs?|pounds?"
_MONEY = "dollars?|euros?|pence|cents?|usd|eur|gbp|yen|francs?"
_SIGN = r"[$\u20ac\u00a3\u00a5]"
_STREET = "street|st|road|rd|avenue|ave|lane|drive|way|square"
_NAME = r"\s+(?-i:[A-Z])[\w.]*"


class _Pattern(NamedTuple):
    name: str
    before: re.Pattern[str]
    after: re.Pattern[str]


def _pattern(name: str, *, before: str = "", after: str = "") -> _Pattern:
    return _Pattern(
        name,
        re.compile(f"(?:{before})$" if before else "", re.IGNORECASE),
        re.compile(after, re.IGNORECASE),
    )


_PATTERNS = (
    _pattern("price", before=rf"{_SIGN}\s*"),
    _pattern("price", after=rf"\s*(?:(?:{_MONEY})\b|{_SIGN})"),
    _pattern("phone number", before=r"\bphone\b.{0,20}"),
    _pattern("phone number", after=r"[-. ]\d{3}[-. ]?\d{4}|-\d{4}\b"),
    _pattern("date", before=rf"\b(?:{_MONTH})\.?\s+(?:the\s+)?"),
    _pattern("date", after=rf"(?:st|nd|rd|th)?\s+(?:of\s+)?(?:{_MONTH})\b|[-/]\d\d?[-/]\d+"),
    _pattern("time of day", after=r"\s*(?:[ap]\.?m\b|o.?clock)"),
    _pattern("speed", after=rf"\s*(?:mph|km/h|(?:{_LENGTH}) (?:per|an|a) (?:hour|minute|second))"),
    _pattern("age", after=r"[\s-]*(?:years?|months?|days?)[\s-]*(?:old|of age)"),
    _pattern("duration", after=rf"[\s-]*(?:{_TIME})\b"),
    _pattern("year", after=r"(?:st|nd|rd|th) centur"),
    _pattern("area", after=rf"[\s-]*(?:square|sq\.?|acres?|hectares?)\b|\s*(?:{_LENGTH})[\u00b2^]"),
    _pattern("length", after=rf"[\s-]*(?:{_LENGTH})\b"),
    _pattern("weight", after=rf"[\s-]*(?:{_WEIGHT})\b"),
    _pattern("temperature", after=r"\s*(?:\u00b0|degrees?|celsius|fahrenheit)"),
    _pattern("share", after=r"\s*(?:%|per ?cent)"),
    _pattern("volume", after=r"[\s-]*(?:lit(?:er|re)s?|gallons?|ml|cups?)\b"),
    _pattern("rank", after=r"(?:st|nd|rd|th)\b"),
    _pattern("address", after=rf"(?:{_NAME}){{1,3}}?\s+(?:{_STREET})\b"),
    _pattern("address", before=r"\baddress\b.{0,40}|\blocated at\s+"),
    _pattern("count", after=r",?\s+(?-i:[a-z])\w+"),
)
"""The first that fits is taken."""
_CLOCK = re.compile(r"\d\d?:\d\d(?::\d\d)?")
_YEAR = re.compile(r"1\d{3}|20\d\d")
_BEFORE_A_YEAR = re.compile(r"\b(?:in|since|year|until|around|circa|early|late)\s+$", re.I)


def quantity_of(text: str, start: int, end: int) -> str:
    """Return what a number is of: "price", "year", "length" and so on.

    A number that says how many there are of something is a "count", and one that no pattern fits
    is a "number".

    Args:
        text: The text, with digits of ASCII.
        start: Index of the first digit.
        end: Index after the last digit.
    """
    number = text[start:end]
    before, after = text[max(0, start - AROUND) : start], text[end : end + AROUND]
    if _CLOCK.fullmatch(number):
        return "time of day"
    if _YEAR.fullmatch(number) and _BEFORE_A_YEAR.search(before):
        return "year"
    fitting = (
        each.name for each in _PATTERNS if each.before.search(before) and each.after.match(after)
    )
    return next(fitting, "number")
