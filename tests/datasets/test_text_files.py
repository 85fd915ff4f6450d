"""Prompts from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from astra_rl.datasets.text_files import load_prompts
from astra_rl.errors import ConfigurationError


def test_every_line_that_is_not_empty_is_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("Hello\r\n\n  Grüße \n".encode())
    assert load_prompts(file) == ["Hello", "Grüße"]


def test_a_line_that_is_not_utf8_is_named_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(ConfigurationError, match="line 2: not UTF-8"):
        load_prompts(file)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="holds no prompt"):
        load_prompts(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the prompts"):
        load_prompts(tmp_path / "none.txt")
