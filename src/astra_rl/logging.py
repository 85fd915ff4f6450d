"""The logger of the library. It has a NullHandler: the application configures the output."""

from __future__ import annotations

import logging

logger = logging.getLogger("astra_rl")
logger.addHandler(logging.NullHandler())
