"""What a model wrote, made safe to look at: one function for each language it is put into.

Text of a model is hostile input: it may hold characters that move a cursor, reverse the direction
of reading, end a line where none should end, or hide. `visible_text` makes such characters visible,
and the other functions do so too and then escape what means something in their language.

| language | function |
| --- | --- |
| terminal | `terminal_text`; whoever prints with rich escapes its markup too |
| HTML | `visible_text`, and the template engine escapes markup |
| Markdown | `markdown_text` |
| CSV | `csv_cell` |
| XML | `xml_text`, and the writer of XML escapes markup |
| SARIF messages | `sarif_text` |
| JSON | `astra_rl.infra.jsonio.json_line`, which keeps every character |
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


def csv_cell(text: str) -> str:
    """Return text that no spreadsheet takes for a formula.

    A cell that begins like a formula, after spaces or in full-width characters too, gets an
    apostrophe before it, which spreadsheets take for "this is text". The CSV writer does the
    quoting.
    """
    text = visible_text(text)
    begins = text.lstrip().removeprefix('"')[:1]
    return f"'{text}" if begins and begins in "=+-@|%\uff1d\uff0b\uff0d\uff20" else text


def markdown_text(text: str) -> str:
    """Return the text as one inline code span that can stand in a table.

    In code nothing is a link, a mention, an image or markup. The fence is longer than any run of
    backticks inside, so that the text cannot close it. A pipe becomes its full-width twin: one that
    follows a backslash cannot be escaped in a table.
    """
    text = terminal_text(text).replace("|", "\uff5c")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"


def xml_text(text: str) -> str:
    """Return text that XML 1.0 can hold; the writer of XML escapes ``<``, ``>`` and ``&``."""
    return re.sub("[\ufffe\uffff]", "\ufffd", visible_text(text))


def sarif_text(text: str) -> str:
    """Return text for a SARIF message, where brackets are links and braces are placeholders.

    See SARIF 2.1.0, 3.11.5 and 3.11.6.
    """
    text = re.sub(r"([\\\[\]])", r"\\\1", visible_text(text))
    return text.replace("{", "{{").replace("}", "}}")


def shorten(text: str, most: int) -> str:
    """Return the first characters, and how many more there are; for outputs with a size limit."""
    return text if len(text) <= most else f"{text[:most]}\u2026 (+{len(text) - most} characters)"


def _symbol(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{{{code:x}}}"
