"""Measures computed from attempts: summary, diversity, likelihood, failure kinds."""
