"""All that runs a language model."""
