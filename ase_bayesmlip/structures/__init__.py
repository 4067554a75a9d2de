"""All that reads, checks and writes structures."""
