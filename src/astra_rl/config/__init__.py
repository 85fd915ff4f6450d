"""Configurations: schema, loading, presets, and construction of objects."""
