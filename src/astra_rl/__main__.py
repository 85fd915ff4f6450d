"""``python -m astra_rl`` is ``astra-rl``."""

from astra_rl.cli.main import run

run()
