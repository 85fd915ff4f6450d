"""ASTRA-RL."""
