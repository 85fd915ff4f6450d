"""Evaluation: records of attempts, measures, statistics, judges, reports and exports."""
