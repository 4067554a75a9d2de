"""Members evaluated together, for a compiler."""
