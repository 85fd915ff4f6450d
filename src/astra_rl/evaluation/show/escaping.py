"""Escape text written by models, with one function per output format.

Model text is hostile: it may contain characters that move a cursor, reverse the reading direction,
break lines, or are invisible. `visible_text` replaces them by visible symbols; the other functions
do the same and then escape the syntax of their format.

| format | function |
| --- | --- |
| terminal | `terminal_text`; callers that print with rich escape its markup as well |
| HTML | `visible_text`, and the template engine escapes markup; `html_text` without one |
| Markdown | `markdown_text` |
| CSV | `csv_cell` |
| LaTeX | `latex_text` |
| XML | `xml_text`, and the XML writer escapes markup |
| SARIF messages | `sarif_text` |
| JSON | `astra_rl.infra.jsonio.json_line`, which preserves every character |
"""

from __future__ import annotations

import html
import re

from astra_rl.infra.visible import html_text, visible_text


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


__all__ = [
    "csv_cell",
    "framed_page",
    "html_text",
    "latex_text",
    "markdown_text",
    "sarif_text",
    "shorten",
    "terminal_text",
    "visible_text",
    "xml_text",
]
