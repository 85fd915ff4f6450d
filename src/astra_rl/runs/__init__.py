"""Runs: folder, attempt log, phases, budget, training, resume, report."""
