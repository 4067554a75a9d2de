"""The laws of evidential networks."""
