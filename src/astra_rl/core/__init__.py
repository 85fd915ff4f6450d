"""Interfaces and data; torch and the standard library only."""
