"""The actions on finished runs, one module per command."""
