"""The published force covariance, from six invariants: kept to reproduce and to compare."""

import torch
from torch import Tensor, nn


def cholesky_covariance(q: Tensor) -> Tensor:
    """Σ = L Lᵀ, (n, 3, 3), with L built from (xx, yy, zz, yz, xz, xy), (n, 6).

    It does not rotate with the structure: Σ(QR) = Σ(R).
    """
    zero = torch.zeros_like(q[:, 0])
    diagonal = torch.exp(q[:, :3])
    xx, yy, zz = diagonal[:, 0], diagonal[:, 1], diagonal[:, 2]
    rows = [xx, zero, zero, q[:, 5], yy, zero, q[:, 4], q[:, 3], zz]
    factor = torch.stack(rows, dim=1).view(-1, 3, 3)
    return torch.bmm(factor, factor.transpose(1, 2))


class CholeskyNoise(nn.Module):
    """In the place of `heads.SpdNoise`, with the published floor of 1e-3 (eV/Å)²."""

    n_scalars, has_tensor = 6, False

    def forward(self, raw: Tensor, tensor: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG002
        """Raw scalars (n, 6) to (n, 3, 3), (eV/Å)²; the tensor is not read."""
        identity = torch.eye(3, dtype=raw.dtype, device=raw.device)
        return scale * cholesky_covariance(raw) + 1e-3 * identity
