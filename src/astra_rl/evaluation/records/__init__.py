"""Attempts: the record of one conversation and its outcome."""
