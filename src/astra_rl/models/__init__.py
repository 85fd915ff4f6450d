"""Loading, generation and scoring with causal language models."""
