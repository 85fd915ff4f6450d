"""Text in which nothing is invisible, and its form in HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f"  # C0 controls but tab and newline
    "\x7f-\x9f"  # delete, C1 controls
    "\xad\u061c\u180e\u200b\u200e\u200f"  # soft hyphen, direction marks, zero-width space
    "\u2028\u2029"  # separators that some programs treat as line ends
    "\u202a-\u202e\u2066-\u2069"  # bidirectional embeddings, overrides and isolates
    "\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # invisible operators and annotations
    "\ud800-\udfff"  # lone surrogates, which no UTF-8 file can hold
    "\U000e0000-\U000e0fff"  # tags: text that is invisible to people but not to models
    "]"
)
# U+200C and U+200D are kept: several scripts and many emoji need them.


def visible_text(text: str) -> str:
    r"""Replace invisible characters by visible symbols.

    C0 controls become control pictures, such as U+2400 for NUL; others become escapes such as
    ``\u{202e}``. Newlines and tabs are kept.
    """
    if text.isascii() and text.isprintable():
        return text
    return _HIDDEN.sub(lambda match: _symbol(match.group()), text)


def html_text(text: object) -> str:
    """Return `visible_text` in which no character is markup, also inside an attribute."""
    return html.escape(visible_text(str(text)), quote=True)


def html_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table, for a notebook; the cells are text, see `html_text`."""

    def row(cells: Sequence[object], tag: str) -> str:
        style = "text-align:left;vertical-align:top;white-space:pre-wrap"
        inner = "".join(f'<{tag} style="{style}">{html_text(each)}</{tag}>' for each in cells)
        return f"<tr>{inner}</tr>"

    return f"<table>{row(header, 'th')}{''.join(row(each, 'td') for each in rows)}</table>"


def _symbol(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{{{code:x}}}"
