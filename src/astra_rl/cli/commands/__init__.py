"""Commands of ``astra-rl``: one module per command, each with one function of its name."""
