"""What depends on the distances of pairs alone: binding, repulsion, and whether anyone is near.

The energy of atom i of element z is

    e_i = scale · [net_i - net∅_z + b_z g_i] + ½ Σ_j ZBL(r_ij),

with net∅_z what the network gives for such an atom without neighbours: a lone atom has its
reference energy exactly, and none of the noise. g_i falls from one to zero while the atom leaves
all others. It is exactly one in bonded matter, so that there b_z remains a constant.

A network knows nothing of distances far below those of its training and would dig holes there, in
which atoms are lost. So it is not shown them: what it sees of a pair stops short, and the repulsion
goes on alone.
"""

from typing import NamedTuple

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from ase_bayesmlip.nn.radial import polynomial_envelope
from ase_bayesmlip.prediction import MemberOutput

# In sums of covalent radii: up to BOUND two atoms are bonded, beyond FREE they are not.
BOUND, FREE = 1.3, 3.0
# In shortest distances of the training: where what the network sees begins to lag behind, and over
# which length it comes to a halt, half as far on.
HELD, HALT = 0.9, 0.3
# Neighbours whose envelopes of the cutoff add up to this are matter: one at 0.7 cutoffs.
NEAR = 0.1
NOWHERE = 1e-6  # Å
# What is left of the variances of a lone atom: none, but likelihoods must not divide by zero.
FLOOR = 1e-6

COULOMB = 14.399645478  # e²/(4πε₀), eV Å
SCREENING = 0.88534 * 0.529177210903  # Å


class PairTerms(NamedTuple):
    """What distances say of every atom.

    Attributes
    ----------
    bonded : Tensor, (n_atoms,)
        g, from 0 for a lone atom to 1 in matter.
    repulsion : Tensor, (n_atoms,), eV
        Half the ZBL energy of its pairs.
    presence : Tensor, (n_atoms,)
        Factor of what the noise heads say in eV or eV/Å: 1 with any neighbour well within the
        cutoff, smoothly towards 0 where the last one leaves it.
    seen : Tensor, (n_edges,), Å
        The distances that the network is shown.
    """

    bonded: Tensor
    repulsion: Tensor
    presence: Tensor
    seen: Tensor


class PairTable(NamedTuple):
    """Parameters of pairs of elements, each of the shape of their distances; lengths in Å.

    Attributes
    ----------
    bound, free : Tensor
        Where a bond begins to end, and has.
    strength : Tensor, eV Å
        ½ Z_i Z_j e²/(4πε₀), or zero without repulsion.
    screening : Tensor
    reach : Tensor
        Where the repulsion ends.
    halt : Tensor
        Length over which what the network sees comes to a halt.
    """

    bound: Tensor
    free: Tensor
    strength: Tensor
    screening: Tensor
    reach: Tensor
    halt: Tensor


class PairFunctions(nn.Module):
    """Distances to `PairTerms`.

    Parameters
    ----------
    atomic_numbers : list of int
    cutoff : float, Å
        Nothing reaches beyond it.
    envelope_power : int
        Of the network's envelope.
    repulsion : bool
    shortest : list of list of float, Å
        Of each pair of elements in the training, zero where there is none; such pairs are held at
        contact, the sum of the covalent radii. All are shown as they are if it is empty.
    """

    table: Tensor

    def __init__(
        self,
        atomic_numbers: list[int],
        cutoff: float,
        envelope_power: int,
        repulsion: bool,
        shortest: list[list[float]],
    ) -> None:
        super().__init__()
        self.cutoff, self.envelope_power = cutoff, envelope_power
        self.n_species = len(atomic_numbers)
        charge = torch.tensor(atomic_numbers, dtype=torch.float64)
        radius = torch.tensor(covalent_radii[atomic_numbers], dtype=torch.float64)
        contact = radius.unsqueeze(1) + radius
        closest = torch.full_like(contact, NOWHERE)
        if shortest:
            closest = torch.tensor(shortest, dtype=torch.float64)
            closest = torch.where(closest > 0.0, closest, contact)
        free = (FREE * contact).clamp(max=cutoff)
        power = charge**0.23
        table = PairTable(
            bound=torch.minimum(BOUND * contact, 0.5 * free),
            free=free,
            strength=0.5 * COULOMB * float(repulsion) * charge.unsqueeze(1) * charge,
            screening=SCREENING / (power.unsqueeze(1) + power),
            reach=contact.clamp(max=cutoff),
            halt=HALT * closest,
        )
        self.register_buffer("table", torch.stack(table, dim=2).flatten(0, 1), persistent=False)

    def forward(self, distances: Tensor, edge_index: Tensor, species: Tensor) -> PairTerms:
        """Edges (n_edges,), Å, (2, n_edges), and one-hot species (n_atoms, n_species)."""
        kind = species.argmax(dim=1)
        of_edge = self.n_species * kind.index_select(0, edge_index[0])
        pairs = self.of_pairs(of_edge + kind.index_select(0, edge_index[1]))
        near = self.nearness(distances)
        values = torch.stack([bond(distances, pairs), zbl(distances, pairs), near], dim=1)
        zeros = values.new_zeros((species.shape[0], 3))
        sums = zeros.index_add(0, edge_index[0], values)
        # No uncertainty is differentiated by positions.
        found = bonded(sums[:, 0]), sums[:, 1], presence(sums[:, 2].detach())
        return PairTerms(found[0], found[1], found[2], held(distances, pairs))

    def of_pairs(self, pair: Tensor) -> PairTable:
        """Parameters of pairs, given as numbers n_species · z_i + z_j in the order of elements."""
        bound, free, strength, screening, reach, halt = self.table[pair].unbind(-1)
        return PairTable(bound, free, strength, screening, reach, halt)

    def nearness(self, distances: Tensor) -> Tensor:
        """The envelope of the cutoff."""
        return polynomial_envelope(distances / self.cutoff, self.envelope_power)


def held(distances: Tensor, pairs: PairTable, start: float = HELD / HALT) -> Tensor:
    """Distances that the network is shown: the same down to `HELD`, then ever more slowly less."""
    behind = (start - distances / pairs.halt).clamp(min=0.0)
    x = behind.clamp(max=1.0)
    return distances + pairs.halt * (behind - x + x * x * x * (1.0 - 0.5 * x))


def held_slope(distances: Tensor, pairs: PairTable, start: float = HELD / HALT) -> Tensor:
    """Derivative of `held`."""
    x = (start - distances / pairs.halt).clamp(0.0, 1.0)
    return 1.0 + x * x * (2.0 * x - 3.0)


def bond(distances: Tensor, pairs: PairTable) -> Tensor:
    """How much a neighbour binds: 1 up to `bound`, towards `free` a cubic.

    Its kink at `bound` is not seen: one such neighbour is enough for g = 1.
    """
    return _rest((distances - pairs.bound) / (pairs.free - pairs.bound)).pow(3)


def bond_slope(distances: Tensor, pairs: PairTable) -> Tensor:
    """Derivative of `bond` by the distance, 1/Å."""
    width = pairs.free - pairs.bound
    x = (distances - pairs.bound) / width
    return -3.0 * _rest(x).pow(2) * (x > 0.0).to(x.dtype) / width


def bonded(bonds: Tensor) -> Tensor:
    """1 - (1 - Σ_j f_ij)³, and 1 where the sum exceeds one: g."""
    return 1.0 - _rest(bonds).pow(3)


def bonded_slope(bonds: Tensor) -> Tensor:
    """Derivative of `bonded`."""
    return 3.0 * _rest(bonds).pow(2)


def _rest(x: Tensor) -> Tensor:
    """1 - x within [0, 1]."""
    return 1.0 - x.clamp(0.0, 1.0)


def presence(nearness: Tensor, enough: float = NEAR) -> Tensor:
    """Smoothly from 0 to 1 where neighbours are near enough."""
    # Constants as defaults: TorchScript knows no others.
    x = (nearness / enough).clamp(0.0, 1.0)
    return x * x * x * (10.0 + x * (6.0 * x - 15.0))


def zbl(distances: Tensor, pairs: PairTable) -> Tensor:
    """Half the screened repulsion of two nuclei, eV, with an envelope that ends at contact."""
    screened = _screening(distances / pairs.screening)[0]
    return pairs.strength / distances * screened * polynomial_envelope(distances / pairs.reach, 6)


def zbl_slope(distances: Tensor, pairs: PairTable) -> Tensor:
    """Derivative of `zbl` by the distance, eV/Å."""
    y = distances / pairs.reach
    screened, slope = _screening(distances / pairs.screening)
    falling = -168.0 * y.pow(5) * _rest(y).pow(2) / pairs.reach
    rising = slope / pairs.screening - screened / distances
    return pairs.strength / distances * (rising * polynomial_envelope(y, 6) + screened * falling)


def _screening(x: Tensor) -> tuple[Tensor, Tensor]:
    """Universal function of Ziegler, Biersack and Littmark (1985), and its derivative."""
    a, b = 0.18175 * torch.exp(-3.1998 * x), 0.50986 * torch.exp(-0.94229 * x)
    c, d = 0.28022 * torch.exp(-0.4029 * x), 0.02817 * torch.exp(-0.20162 * x)
    return a + b + c + d, -(3.1998 * a + 0.94229 * b + 0.4029 * c + 0.20162 * d)


def quiet_if_alone(
    output: MemberOutput, presence: Tensor | None, floor: float = FLOOR
) -> MemberOutput:
    """An output whose uncertainties are multiplied by the presence, (n_atoms,), of their atoms."""
    if presence is None:
        return output
    squared = (presence * presence).clamp(min=floor)
    return MemberOutput(
        output.atomic_energies,
        _times(output.atomic_energies_var, squared),
        _times(output.forces_cov, squared),
        _times(output.directions, presence),
        _times(output.draws, presence),
        _times(output.atomic_energies_var_epistemic, squared),
        _times(output.forces_cov_epistemic, squared),
        _times(output.forces_trace_epistemic, squared),
        output.forces_dof,
    )


def _times(value: Tensor | None, factor: Tensor) -> Tensor | None:
    """Of (K, n_atoms, ...) and (n_atoms,)."""
    if value is None:
        return None
    return value * (factor.view(-1, 1, 1) if value.dim() == 4 else factor)
