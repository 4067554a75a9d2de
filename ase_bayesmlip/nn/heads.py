"""Readouts of the strata and the mean-variance heads.

Every layer has its own readout. Energies of the layers add up; the variance channels are averaged
over layers before they are exponentiated (arXiv 2510.03046).
"""

import math

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.angular import Irrep, component_slices
from ase_bayesmlip.nn.radial import DenseNetwork

# Number of scalars that each form of the force covariance needs beside the energy's two.
COVARIANCE_SCALARS = {"spd": 1, "iso": 1, "cholesky": 6, "none": 0}


class LayerReadout(nn.Module):
    """Scalars by a one-hidden-layer network of the 0e channels, a 2e tensor by a linear map.

    The first scalar is the energy. The others and the tensor belong to the noise: their last
    weights start at zero, so that the likelihood starts from the measured errors exactly.
    """

    def __init__(
        self,
        irreps: list[Irrep],
        channels: int,
        hidden: int,
        n_scalars: int,
        has_tensor: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        slices = dict(zip(irreps, component_slices(irreps), strict=True))
        self.scalar_component = slices[Irrep(0, 1)].start
        self.network = DenseNetwork([channels, hidden, n_scalars], generator)
        with torch.no_grad():
            self.network.weights[-1][:, 1:] = 0.0
        self.factor = 1.0 / math.sqrt(channels)
        tensor = slices.get(Irrep(2, 1)) if has_tensor else None
        self.tensor_start = -1 if tensor is None else int(tensor.start)
        n_weights = channels if tensor is not None else 0
        self.tensor_weight = nn.Parameter(torch.zeros(n_weights))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, components, channels) to scalars (n, n_scalars), tensor (n, 5) or (n, 0) and basis.

        The basis, (n, hidden), is what the scalars are linear in: `basis` @ last weights.
        """
        scalars, basis = self.network.with_basis(features[:, self.scalar_component])
        if self.tensor_start >= 0:
            block = features[:, self.tensor_start : self.tensor_start + 5]
            tensor = (block @ self.tensor_weight) * self.factor
        else:
            tensor = features.new_zeros((features.shape[0], 0))
        return scalars, tensor, basis * self.network.factors[-1]


def linear_tanh(x: Tensor, linear: float = 4.0, limit: float = 5.0) -> Tensor:
    """Damper: the identity up to |x| = linear, then tanh towards ±limit (arXiv 2602.10419)."""
    width = limit - linear
    excess = torch.clamp(x.abs() - linear, min=0.0)
    saturated = torch.sign(x) * (linear + width * torch.tanh(excess / width))
    return torch.where(x.abs() <= linear, x, saturated)


def damp_tensor(t: Tensor, linear: float = 4.0, limit: float = 5.0) -> Tensor:
    """Damp the norm of a (n, 5) tensor, which keeps its direction and so its equivariance."""
    squared = (t * t).sum(dim=1, keepdim=True)
    # The clamp keeps the root away from zero, where its derivative diverges.
    norm = torch.sqrt(torch.clamp(squared, min=linear * linear))
    factor = torch.where(
        squared <= linear * linear, torch.ones_like(norm), linear_tanh(norm, linear, limit) / norm
    )
    return t * factor


def cartesian_components(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """e3nn 2e components (n, 5) to (xx, yy, zz, xy, xz, yz) of a traceless symmetric matrix."""
    r2, r6 = math.sqrt(0.5), math.sqrt(1.0 / 6.0)
    xz, xy, yz = r2 * t[:, 0], r2 * t[:, 1], r2 * t[:, 3]
    xx = -r6 * t[:, 2] - r2 * t[:, 4]
    yy = 2.0 * r6 * t[:, 2]
    zz = -r6 * t[:, 2] + r2 * t[:, 4]
    return xx, yy, zz, xy, xz, yz


def traceless_symmetric(t: Tensor) -> Tensor:
    """e3nn 2e components (n, 5) to traceless symmetric matrices (n, 3, 3), |t|² = tr T²."""
    xx, yy, zz, xy, xz, yz = cartesian_components(t)
    rows = [xx, xy, xz, xy, yy, yz, xz, yz, zz]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def exponential_terms(like: Tensor, half: bool) -> tuple[int, int]:
    """Squarings and order that bring exp(X), |X| ≤ 5, or exp(X/2) to round-off of a precision.

    Relative errors measured over 2·10⁴ tensors: 5e-15 in float64 and, whole and half, 1.8e-6 and
    9e-7 in float32, where every squaring doubles the round-off.
    """
    if like.dtype == torch.float64:
        return (4, 10) if half else (4, 12)
    return (3, 6) if half else (4, 6)


def exponential_coefficients(
    j2: Tensor, j3: Tensor, squarings: int, order: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of exp(X) = a₀ + a₁X + a₂X², each (n,), for traceless symmetric 3×3 X.

    Cayley-Hamilton, X³ = J₂ X + J₃, makes them polynomials of the two invariants. They are found by
    a Taylor series of X/2ᵏ and k squarings in coefficient space. Unlike an eigendecomposition this
    has finite first and second derivatives where eigenvalues coincide, as they do at X = 0.

    Parameters
    ----------
    j2, j3 : Tensor, (n,)
        J₂ = tr X²/2 and J₃ = det X.
    """
    h = 0.5**squarings
    j2, j3 = j2 * h**2, j3 * h**3
    a0, a1, a2 = torch.ones_like(j2), torch.zeros_like(j2), torch.zeros_like(j2)
    for n in range(order, 0, -1):
        a0, a1, a2 = 1.0 + a2 * j3 / n, (a0 + a2 * j2) / n, a1 / n
    for _ in range(squarings):
        p, q = 2.0 * a1 * a2, a2 * a2
        a0, a1, a2 = (
            a0 * a0 + p * j3,
            2.0 * a0 * a1 + p * j2 + q * j3,
            a1 * a1 + 2.0 * a0 * a2 + q * j2,
        )
    return a0, a1 * h, a2 * h * h


def exp_traceless_symmetric(matrix: Tensor, squarings: int = 4, order: int = 10) -> Tensor:
    """Matrix exponential of traceless symmetric 3×3 matrices, smooth everywhere.

    Parameters
    ----------
    matrix : Tensor, (n, 3, 3), |X| up to about 5
    squarings, order : int
        See `exponential_terms`.
    """
    square = torch.bmm(matrix, matrix)
    j2 = 0.5 * square.diagonal(dim1=1, dim2=2).sum(1)
    # det X = tr X³/3 for traceless X.
    j3 = (square * matrix).sum(dim=(1, 2)) / 3.0
    a0, a1, a2 = exponential_coefficients(j2, j3, squarings, order)
    identity = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    return a0.view(-1, 1, 1) * identity + a1.view(-1, 1, 1) * matrix + a2.view(-1, 1, 1) * square


def exp_traceless_trace(t: Tensor) -> Tensor:
    """Trace of exp(T), (n,), from the 2e components (n, 5): no matrix is built."""
    xx, yy, zz, xy, xz, yz = cartesian_components(t)
    j2 = 0.5 * (t * t).sum(dim=1)
    j3 = xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
    squarings, order = exponential_terms(t, False)
    a0, _, a2 = exponential_coefficients(j2, j3, squarings, order)
    # tr (a₀ + a₁T + a₂T²), tr T = 0.
    return 3.0 * a0 + 2.0 * j2 * a2


def exp_half(log_scale: Tensor, tensor: Tensor, sign: float) -> Tensor:
    """exp(±(s + T)/2), (n, 3, 3): a root of exp(s + T) or of its inverse. Nothing is damped here.

    Parameters
    ----------
    log_scale : Tensor, (n,)
    tensor : Tensor, (n, 5)
    sign : 1.0 or -1.0
    """
    squarings, order = exponential_terms(tensor, True)
    traceless = exp_traceless_symmetric(
        (0.5 * sign) * traceless_symmetric(tensor), squarings, order
    )
    return traceless * torch.exp((0.5 * sign) * log_scale).view(-1, 1, 1)


def exp_symmetric(log_scale: Tensor, tensor: Tensor) -> Tensor:
    """exp(s + T) as H Hᵀ with H = exp((s + T)/2), (n, 3, 3): semi-definite to the last bit."""
    half = exp_half(log_scale, tensor, 1.0)
    return torch.bmm(half, half.transpose(1, 2))


def spd_covariance(log_scale: Tensor, tensor: Tensor) -> Tensor:
    """Σ = exp(s + T): symmetric, positive definite and equivariant.

    Parameters
    ----------
    log_scale : Tensor, (n,)
        s = tr(log Σ)/3, damped here.
    tensor : Tensor, (n, 5)
        The 2e part of log Σ, damped here.

    Returns
    -------
    Tensor, (n, 3, 3)
        H Hᵀ with H = exp(T/2) e^{s/2}, positive semi-definite to the last bit.
    """
    return exp_symmetric(linear_tanh(log_scale), damp_tensor(tensor))


def cholesky_covariance(q: Tensor) -> Tensor:
    """The published form from six invariants: Σ = L Lᵀ, L built from (xx, yy, zz, yz, xz, xy).

    It does not rotate with the structure, Σ(QR) = Σ(R): kept to reproduce and to compare.

    Parameters
    ----------
    q : Tensor, (n, 6)

    Returns
    -------
    Tensor, (n, 3, 3)
    """
    zero = torch.zeros_like(q[:, 0])
    diagonal = torch.exp(q[:, :3])
    xx, yy, zz = diagonal[:, 0], diagonal[:, 1], diagonal[:, 2]
    rows = [xx, zero, zero, q[:, 5], yy, zero, q[:, 4], q[:, 3], zz]
    factor = torch.stack(rows, dim=1).view(-1, 3, 3)
    return torch.bmm(factor, factor.transpose(1, 2))


def energy_variance(raw: Tensor, scale: Tensor) -> Tensor:
    """Raw log-variance to eV², in units of `scale`."""
    return scale * torch.exp(linear_tanh(raw))


def force_covariance(kind: str, raw: Tensor, tensor: Tensor, scale: Tensor) -> Tensor:
    """Raw scalars (n, k) and tensor (n, 5) to (n, 3, 3), (eV/Å)².

    Parameters
    ----------
    kind : "spd", "cholesky" or "iso"
    scale : Tensor, () or (n, 1, 1), (eV/Å)²
    """
    if kind == "spd":
        return scale * spd_covariance(raw[:, 0], tensor)
    identity = torch.eye(3, dtype=raw.dtype, device=raw.device)
    if kind == "cholesky":
        # The published floor, 1e-3 (eV/Å)²; the other forms have none.
        return scale * cholesky_covariance(raw) + 1e-3 * identity
    return scale * torch.exp(linear_tanh(raw[:, 0])).view(-1, 1, 1) * identity


class NoiseHeads(nn.Module):
    """Raw variance channels to the aleatoric variance of energies and covariance of forces.

    `energy_scale` and `force_scale` set the zero of the logarithms. Training puts the errors of
    its warm-up there, so that the likelihood starts with error bars of the right size.

    Parameters
    ----------
    covariance : "spd", "cholesky", "iso" or "none"
    """

    energy_scale: Tensor
    force_scale: Tensor

    def __init__(self, covariance: str) -> None:
        super().__init__()
        self.covariance = covariance
        self.register_buffer("energy_scale", torch.ones(()))
        self.register_buffer("force_scale", torch.ones(()))

    def set_scales(self, energy_variance: float, force_variance: float) -> None:
        """Set the variances that raw zeros stand for.

        Parameters
        ----------
        energy_variance : float, eV²
            Of one atom's share, or of the whole energy where its noise is the "mean".
        force_variance : float, (eV/Å)²
            Of a component.
        """
        self.energy_scale.fill_(energy_variance)
        self.force_scale.fill_(force_variance)

    def energy_variance(self, raw: Tensor) -> Tensor:
        """(n,) raw log-variance to (n,) eV²."""
        return energy_variance(raw, self.energy_scale)

    def force_covariance(self, raw: Tensor, tensor: Tensor) -> Tensor:
        """(n, k) raw scalars and (n, 5) tensor to (n, 3, 3), (eV/Å)²."""
        return force_covariance(self.covariance, raw, tensor, self.force_scale)
