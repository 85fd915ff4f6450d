"""Evidence: statistics, diversity, reports."""
