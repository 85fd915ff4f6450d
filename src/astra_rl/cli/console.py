"""What reaches the terminal: no character that acts on it, and no credential."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from astra_rl.evaluation.show.escaping import visible_text
from astra_rl.infra.redaction import redact_message


class SafeConsole(Console):
    """A console that shows every string as text, whoever it came from.

    Characters that would move the cursor, hide text or turn its direction become visible symbols,
    credentials are replaced. Markup of rich still counts: text that may hold some is escaped, or
    printed with ``markup=False``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a string; rich does this to all that is printed and to the cells of tables."""
        return super().render_str(visible_text(redact_message(text)), **options)


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.console = console
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as one paragraph."""
        try:
            text = self.format(record)
            self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def logs_on(console: Console) -> Iterator[None]:
    """Show warnings, of this library and of others, on a console inside the block."""
    root, handler = logging.getLogger(), _ConsoleHandler(console)
    show = warnings.showwarning

    def log(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        logging.getLogger("py.warnings").warning("%s: %s", category.__name__, message)

    root.addHandler(handler)
    warnings.showwarning = log
    try:
        yield
    finally:
        warnings.showwarning = show
        root.removeHandler(handler)


def quiet_libraries() -> None:
    """Silence the progress bars of transformers, and let its warnings be shown as ours are."""
    from transformers.utils import logging as its_logging

    its_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    its_logging.disable_default_handler()
    its_logging.enable_propagation()
