"""The served file: `export` writes it, `runtime` loads it. `torch.jit` appears nowhere else."""
