"""Output in every encoding, into a pipe, and into a stream that cannot be written to."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.table import Table

from astra_rl.cli import main
from astra_rl.cli.console import SafeConsole, console
from astra_rl.cli.output import Printer, as_text, parse_conditions
from astra_rl.evaluation.measures.summary import summarise

WORDS = "caf\u00e9 \u4e2d \u2014 \U0001f511"

PATIENT = "from astra_rl.cli import activity; activity.SILENCE = 3600\n"
"""On a busy machine the command would say on stderr what it is doing."""


def program(code: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "PYTHONUTF8")}
    return subprocess.run(
        [sys.executable, "-c", PATIENT + code],
        env={**environment, **variables},
        capture_output=True,
        check=False,
    )


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str) -> str:
    """Run a command on a stream of this encoding, and return what was written."""
    stream = io.BytesIO()
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "argv", ["astra-rl", *arguments])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding=encoding))
    with contextlib.suppress(SystemExit):
        main.run()
    sys.stdout.flush()
    return stream.getvalue().decode(encoding)


def show(*_: object) -> None:
    text = as_text(WORDS)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    Printer().table(table)
    Printer().line(text)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_text_that_the_encoding_lacks_is_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr("astra_rl.cli.topics.print_topic", show)
    last = printed(monkeypatch, encoding, "info").splitlines()[-1]
    assert last == WORDS.encode(encoding, "backslashreplace").decode(encoding)


@pytest.mark.slow
def test_so_it_is_where_the_environment_sets_the_encoding() -> None:
    code = f"""
import sys
from unittest import mock
from astra_rl.cli import main
from astra_rl.cli.output import Printer

with mock.patch("astra_rl.cli.topics.print_topic", lambda *_: Printer().line({WORDS!r})):
    sys.argv = ["astra-rl", "info"]
    main.run()
"""
    done = program(code, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    expected = WORDS.encode("cp1252", "backslashreplace").decode("cp1252")
    assert done.stdout.decode("cp1252").splitlines() == [expected]


def test_the_help_prints_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "calibrate" in printed(monkeypatch, "ascii", "--help")


def test_output_that_is_no_terminal_is_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    command = "astra-rl resume " + "/a/long/folder" * 20
    SafeConsole(file=stream).print(command)
    assert stream.getvalue() == f"{command}\n"


def test_a_terminal_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    SafeConsole(file=stream, force_terminal=True, width=40).print("word " * 20)
    assert all(len(line) <= 40 for line in stream.getvalue().splitlines())


@pytest.mark.parametrize("error", [BrokenPipeError(32, "closed"), OSError(28, "no space")])
def test_a_stream_that_cannot_be_written_ends_nothing(error: OSError) -> None:
    class Failing(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    failing = SafeConsole(file=Failing())
    failing.print("one")
    failing.print("two")
    assert failing.quiet


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is full")
@pytest.mark.parametrize(
    "work",
    [
        "sys.argv = ['astra-rl', 'info', 'formats']; run()",
        "sys.argv = ['astra-rl', '--version']; run()",
        "with mock.patch('astra_rl.cli.main._program', lambda: lambda **_: "
        "Printer(as_json=True).data({'asr': 0.5})): run()",
    ],
    ids=["info", "version", "json"],
)
def test_a_result_that_cannot_be_written_fails_the_command(work: str) -> None:
    code = (
        "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        "from unittest import mock\n"
        "from astra_rl.cli import console\n"
        "from astra_rl.cli.main import run\n"
        f"from astra_rl.cli.output import Printer\n{work}"
    )
    done = program(code)
    assert done.returncode == 2, done.stderr
    assert b"cannot write the output: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_a_closed_pipe_does_not_fail_a_command(tmp_path: Path) -> None:
    code = (
        "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1);"
        "sys.argv = ['astra-rl', 'info', 'formats'];"
        "from astra_rl.cli.main import run; run()"
    )
    done = program(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


def test_a_quiet_gate_that_fails_says_which_condition_held(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "quiet", True)
    out = Printer(conditions=parse_conditions(["asr>=0"]))
    with pytest.raises(typer.Exit):
        out.gate(summarise([], planned=0))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "asr>=0" in printed.err
