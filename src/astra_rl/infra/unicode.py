"""Text that can be encoded."""

from __future__ import annotations


def well_formed(text: str) -> str:
    """Return `text` with U+FFFD for lone surrogates, which no tokenizer and no file can encode."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
