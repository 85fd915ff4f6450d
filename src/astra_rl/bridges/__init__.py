"""Use from other tools: Inspect, TRL, promptfoo, PyRIT, garak, OpenTelemetry.

One module per tool; each imports its tool, so import only the one that you use.
"""
