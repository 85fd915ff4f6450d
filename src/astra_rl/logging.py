"""The library's logger. It has no handler of its own: what is shown is the application's choice."""

from __future__ import annotations

import logging

logger = logging.getLogger("astra_rl")
logger.addHandler(logging.NullHandler())
