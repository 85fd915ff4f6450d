"""What a model wrote, made safe to look at.

Text of a model is hostile input: it may hold characters that move a cursor, reverse the direction
of reading, end a line where none should end, or hide. These functions make such characters visible.
They do not escape markup: HTML is escaped by the template engine, and whoever prints with rich
escapes its markup too.
"""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f"  # C0 controls but tab and newline
    "\x7f-\x9f"  # delete, C1 controls
    "\xad\u061c\u180e\u200b\u200e\u200f"  # soft hyphen, marks of direction, no-width space
    "\u2028\u2029"  # separators that some readers take for the end of a line
    "\u202a-\u202e\u2066-\u2069"  # bidirectional embeddings, overrides and isolates
    "\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # invisible operators and annotations
    "\ud800-\udfff"  # lone surrogates, which no UTF-8 file can hold
    "\U000e0000-\U000e0fff"  # tags: whole sentences that no reader sees and a model reads
    "]"
)
# U+200C and U+200D stay: several scripts and many emoji are spelt with them.


def visible_text(text: str) -> str:
    r"""Replace characters that a reader cannot see by symbols for them.

    Controls become their pictures, such as U+2400 for NUL; all else becomes ``\u{202e}``.
    Newlines and tabs stay.
    """
    return _HIDDEN.sub(lambda match: _symbol(match.group()), text)


def terminal_text(text: str) -> str:
    """Do what `visible_text` does and return one line: newlines and tabs become pictures too."""
    return visible_text(text).replace("\n", "\u240a").replace("\t", "\u2409")


def _symbol(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{{{code:x}}}"
