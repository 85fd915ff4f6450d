"""Escape text written by models, with one function per output format.

Model text is hostile: it may contain characters that move a cursor, reverse the reading direction,
break lines, or are invisible. `visible_text` replaces them by visible symbols; the other functions
do the same and then escape the syntax of their format.

| format | function |
| --- | --- |
| terminal | `terminal_text`; callers that print with rich escape its markup as well |
| HTML | `visible_text`, and the template engine escapes markup |
| Markdown | `markdown_text` |
| CSV | `csv_cell` |
| XML | `xml_text`, and the XML writer escapes markup |
| SARIF messages | `sarif_text` |
| JSON | `astra_rl.infra.jsonio.json_line`, which preserves every character |
"""

from __future__ import annotations

import html
import re

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
    return _HIDDEN.sub(lambda match: _symbol(match.group()), text)


def terminal_text(text: str) -> str:
    """Return `visible_text` on one line: newlines and tabs become control pictures too."""
    return visible_text(text).replace("\n", "\u240a").replace("\t", "\u2409")


def csv_cell(text: str) -> str:
    """Return text that spreadsheets do not evaluate as a formula.

    A cell that begins like a formula (also after spaces, or with full-width characters) gets a
    leading apostrophe, which marks text. The CSV writer does the quoting.
    """
    text = visible_text(text)
    begins = text.lstrip().removeprefix('"')[:1]
    return f"'{text}" if begins and begins in "=+-@|%\uff1d\uff0b\uff0d\uff20" else text


def markdown_text(text: str) -> str:
    """Return the text as one inline code span, valid in a table cell.

    Code spans contain no links, mentions, images or markup. The fence is longer than any run of
    backticks inside, so the text cannot close it. A pipe becomes a full-width pipe, because one
    after a backslash cannot be escaped in a table.
    """
    text = terminal_text(text).replace("|", "\uff5c")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{each: f"\\{each}" for each in "&%$#_{}"},
}


def latex_text(text: str) -> str:
    """Return the text for LaTeX: no character of it is a command, a comment or an alignment."""
    return "".join(_LATEX.get(each, each) for each in terminal_text(text))


def xml_text(text: str) -> str:
    """Return text that is valid in XML 1.0; the XML writer escapes ``<``, ``>`` and ``&``."""
    return re.sub("[\ufffe\uffff]", "\ufffd", visible_text(text))


def sarif_text(text: str) -> str:
    """Escape text for a SARIF message, in which brackets are links and braces placeholders.

    See SARIF 2.1.0, 3.11.5 and 3.11.6.
    """
    text = re.sub(r"([\\\[\]])", r"\\\1", visible_text(text))
    return text.replace("{", "{{").replace("}", "}}")


def framed_page(page: str, height: int = 700) -> str:
    """Return an element that shows a whole page in a notebook, without access to the notebook.

    Args:
        page: HTML of the page.
        height: Height in pixels.
    """
    return (
        f'<iframe sandbox="allow-scripts" width="100%" height="{height}" '
        f'srcdoc="{html.escape(page, quote=True)}"></iframe>'
    )


def shorten(text: str, most: int) -> str:
    """Return the first `most` characters, followed by the number of characters cut off."""
    return text if len(text) <= most else f"{text[:most]}\u2026 (+{len(text) - most} characters)"


def _symbol(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{{{code:x}}}"
