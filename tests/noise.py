"""Noise heads as after training: at the start of training their last weights are zero."""

import torch


def wake_noise(potential, seed=0, size=1.0):
    """Give the noise columns and the 2e readout of every layer random weights, in place."""
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        for readout in potential.readouts:
            wake_readout(readout, generator, size)
    wake_head(potential, generator, size)
    return potential


def wake_head(potential, generator, size=1.0):
    """Give an evidential head laws that differ from atom to atom and are not isotropic."""
    for name, parameter in potential.named_parameters():
        if name in ("head.network.weights.1", "head.source.weight"):
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                parameter.copy_((size * drawn).to(parameter.dtype))


def wake_readout(readout, generator, size=1.0):
    last, tensor = readout.network.weights[-1], readout.tensor_weight
    with torch.no_grad():
        noise = torch.randn(last[:, 1:].shape, generator=generator, dtype=torch.float64)
        last[:, 1:] = (size * noise).to(last.dtype)
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_((0.5 * size * drawn).to(tensor.dtype))
