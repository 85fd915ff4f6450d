"""The commands, one module each; `astra_rl.cli.main` lists them."""
