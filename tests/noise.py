"""Noise heads as after training: at the start of training their last weights are zero."""

import torch


def wake_noise(potential, seed=0, size=1.0):
    """Give the noise columns and the 2e readout of every layer random weights, in place."""
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        for readout in potential.readouts:
            wake_readout(readout, generator, size)
    return potential


def wake_readout(readout, generator, size=1.0):
    last, tensor = readout.network.weights[-1], readout.tensor_weight
    with torch.no_grad():
        noise = torch.randn(last[:, 1:].shape, generator=generator, dtype=torch.float64)
        last[:, 1:] = (size * noise).to(last.dtype)
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_((0.5 * size * drawn).to(tensor.dtype))
