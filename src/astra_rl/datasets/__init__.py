"""Prompts and scenarios."""
