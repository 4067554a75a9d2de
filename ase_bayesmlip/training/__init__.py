"""Training of one potential: loss, loop, checkpoints."""
