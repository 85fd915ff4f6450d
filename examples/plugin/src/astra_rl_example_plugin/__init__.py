"""Parts for astra-rl that `pyproject.toml` declares as entry points."""
