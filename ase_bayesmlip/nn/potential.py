"""The trainable potential: embedding, layers and readouts, graph -> `MemberOutput`.

The site energy is stratified: e_i = Σ_t o_i^(t), one readout per layer, and each further layer of
message passing adds a stratum of higher body order (arXiv 2510.03046, Figure 1). `pairs` says how
it is anchored at the energies of isolated atoms. `derivatives` turns energies into forces and
stress; where the edges are taken in parts (`cut`), `rejoined` comes before it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import AtomicGraph, Part, edge_vectors
from ase_bayesmlip.nn.angular import Irrep, SphericalHarmonics
from ase_bayesmlip.nn.cut import Cut, slopes_by_density
from ase_bayesmlip.nn.heads import LayerReadout, NoiseHeads
from ase_bayesmlip.nn.layer import MessageLayer
from ase_bayesmlip.nn.pairs import PairFunctions, quiet_if_alone
from ase_bayesmlip.nn.radial import RadialBasis
from ase_bayesmlip.prediction import MemberOutput

MAX_ATOMIC_NUMBER = 118
# At the peak of a step, of an edge, for what depends on its distance alone: twice what is kept.
NUMBERS_PER_PAIR = 72


class Strata(NamedTuple):
    """What the layers of a potential say.

    Attributes
    ----------
    energies : Tensor, (n_atoms,), eV
    channels : Tensor, (n_atoms, n_scalars)
        Scalars averaged over layers; the first belongs to the energy, the others to the noise.
    tensor : Tensor, (n_atoms, 5) or (n_atoms, 0)
    basis : Tensor, (n_atoms, P), eV
        Functions that the energies are a linear combination of: ∂e_i/∂w for the `readout_weights`
        w, which do not appear in it. Zero for a lone atom where energies are anchored.
    features : list of Tensor, each (n_atoms, components, channels)
        After each layer.
    species : Tensor, (n_atoms, n_species), one-hot
    cut : Cut or None
        Where the autograd graph was cut; None where it was not.
    presence : Tensor or None, (n_atoms,)
        See `PairTerms`; None where energies are not anchored.
    """

    energies: Tensor
    channels: Tensor
    tensor: Tensor
    basis: Tensor
    features: list[Tensor]
    species: Tensor
    cut: Cut | None = None
    presence: Tensor | None = None


class Readings(NamedTuple):
    """What layers and readouts make of n atoms.

    Attributes
    ----------
    scalars, net : Tensor, (n, n_scalars)
        Sums over layers, with the bias of the element and without.
    tensor : Tensor, (n, 5) or (n, 0)
    basis : Tensor, (n, P)
        As of `Strata`, in units of the scale.
    features : list of Tensor
    """

    scalars: Tensor
    net: Tensor
    tensor: Tensor
    basis: Tensor
    features: list[Tensor]


class Potential(nn.Module):
    """Message passing with a readout after every layer.

    Parameters
    ----------
    layers : list of MessageLayer
    irreps : list of list of Irrep
        Irreps of the features after each layer.
    channels : int
    atomic_numbers : list of int
        Elements, sorted.
    cutoff : float, Å
    scale : float, eV
        Unit of the readout: the force RMS of the training set times 1 Å.
    noise : NoiseHeads
        Of what is trained, and so reported.
    anchored : bool
        Whether a lone atom has exactly the reference energy of its element.
    repulsion : bool
        Whether atoms closer than the sum of their covalent radii repel each other by ZBL.
    shortest : list of list of float, Å
        See `PairFunctions`.
    """

    scale: Tensor
    atomic_numbers: Tensor
    one_hot: Tensor
    lone: Tensor

    def __init__(
        self,
        layers: list[MessageLayer],
        irreps: list[list[Irrep]],
        channels: int,
        atomic_numbers: list[int],
        cutoff: float,
        l_max: int,
        n_radial: int,
        envelope_power: int,
        readout_hidden: int,
        scale: float,
        noise: NoiseHeads,
        generator: torch.Generator,
        anchored: bool = False,
        repulsion: bool = False,
        shortest: list[list[float]] | None = None,
    ) -> None:
        super().__init__()
        if noise.has_tensor and not any(Irrep(2, 1) in item for item in irreps):
            raise ValueError(
                "covariance 'spd' is read from 2e features, but hidden_irreps has none; add 2e "
                "(e.g. '32x0e + 32x1o + 32x2e') or choose covariance 'iso'"
            )
        self.cutoff = cutoff
        self.has_energy_noise = noise.energy is not None
        self.has_force_noise = noise.forces is not None
        n_scalars = 1 + noise.n_scalars
        self.basis = RadialBasis(cutoff, n_radial, envelope_power)
        self.angular = SphericalHarmonics(l_max)
        self.embedding = nn.Parameter(
            torch.randn(len(atomic_numbers), channels, generator=generator, dtype=torch.float64)
        )
        self.layers = nn.ModuleList(layers)
        of_pairs = NUMBERS_PER_PAIR if anchored or repulsion else 0
        self.numbers_per_edge = of_pairs + sum(layer.numbers_per_edge for layer in layers)
        self.readouts = nn.ModuleList(
            LayerReadout(item, channels, readout_hidden, n_scalars, noise.has_tensor, generator)
            for item in irreps
        )
        self.bias = nn.Parameter(torch.zeros(len(atomic_numbers), n_scalars, dtype=torch.float64))
        self.noise = noise
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("atomic_numbers", torch.tensor(atomic_numbers))
        lookup = torch.zeros(MAX_ATOMIC_NUMBER + 1, len(atomic_numbers))
        lookup[torch.tensor(atomic_numbers), torch.arange(len(atomic_numbers))] = 1.0
        self.register_buffer("one_hot", lookup, persistent=False)
        self.anchored = anchored
        self.pairs = (
            PairFunctions(atomic_numbers, cutoff, envelope_power, repulsion, shortest or [])
            if anchored or repulsion
            else None
        )
        # Empty until `fold`.
        self.register_buffer("lone", torch.zeros(0, dtype=torch.float64), persistent=False)

    def forward(self, graph: AtomicGraph, lazy: bool = False) -> MemberOutput:
        """Interaction energy of every atom, and the misfit to the labels (aleatoric).

        A `lazy` call leaves out the covariances of forces that only evidential potentials have.
        """
        return self.output(self.strata(graph), graph, lazy)

    def output(
        self,
        strata: Strata,
        graph: AtomicGraph,
        lazy: bool = False,  # noqa: ARG002 (evidential potentials read it)
    ) -> MemberOutput:
        """What the strata of a graph mean; arguments as in `forward`."""
        raw = strata.channels[:, 1:]
        variance, covariance = self.noise(raw, strata.tensor, graph.batch, graph.n_graphs)
        output = MemberOutput(
            strata.energies.unsqueeze(0),
            None if variance is None else variance.unsqueeze(0),
            None if covariance is None else covariance.unsqueeze(0),
        )
        return quiet_if_alone(output, strata.presence)

    def strata(self, graph: AtomicGraph, parts: list[Part] | None = None) -> Strata:
        """Features of all layers and what the readouts make of them.

        If `parts` are given, the edges, which must be sorted by centre, are taken so. Derivatives
        of the result are zero then, but for those of what `rejoined` makes of it.
        """
        # Differences first, precision after: coordinates far from the origin keep their digits.
        vectors = edge_vectors(graph).to(self.scale.dtype)
        distances = torch.sqrt((vectors * vectors).sum(dim=1))
        harmonics = self.angular(vectors / distances.unsqueeze(1))
        species = self.one_hot.index_select(0, graph.atomic_numbers)
        n_atoms = len(species)
        direct = torch.zeros_like(species[:, 0])
        presence: Tensor | None = None
        if self.pairs is not None:
            terms = self.pairs(distances, graph.edge_index, species)
            direct, distances = terms.repulsion, terms.seen
            if self.anchored:
                direct = direct + self.scale * (species @ self.bias[:, 0]) * terms.bonded
                presence = terms.presence
        radial = self.basis(distances)
        in_parts: list[Part] = [] if parts is None else parts
        cut = Cut(graph.edge_index, in_parts, harmonics, radial, direct, [], [])
        nodes, folded = species, not self.anchored or len(self.lone) > 0
        if not folded:  # a lone atom of each element goes with them
            nodes = torch.cat([species, self.one_hot.index_select(0, self.atomic_numbers)])
        read = self._read(nodes, cut)
        energies, basis = self.scale * read.scalars[:, 0], self.scale * read.basis
        if self.anchored:
            lone = self.lone if folded else self._lone(read, n_atoms)
            of_lone = species @ lone
            energies = self.scale * read.net[:n_atoms, 0] - of_lone[:, 0]
            basis = basis[:n_atoms] - of_lone[:, 1:]
        return Strata(
            energies=energies if self.pairs is None else energies + direct,
            # Energies add over layers; the noise is averaged, plus one bias per element.
            channels=read.net[:n_atoms] / len(self.layers) + species @ self.bias,
            tensor=read.tensor[:n_atoms],
            basis=basis,
            features=[x[:n_atoms] for x in read.features],
            species=species,
            cut=None if parts is None else cut,
            presence=presence,
        )

    def _read(self, species: Tensor, cut: Cut) -> Readings:
        """What layers and readouts make of atoms, of which the edges may know but the first."""
        x = (species @ self.embedding).unsqueeze(1)
        # The order of these sums is that of all files served so far, to the last bit.
        scalars = species @ self.bias
        net, tensor = torch.zeros_like(scalars), torch.zeros_like(scalars[:, :0])
        n_tensors = 0
        features: list[Tensor] = []
        basis: list[Tensor] = []
        for layer, readout in zip(self.layers, self.readouts):  # noqa: B905 (TorchScript)
            if len(cut.parts) == 0:
                x = layer(x, species, cut.harmonics, cut.radial, cut.edge_index)
            else:
                x = layer.in_parts(x, species, cut)  # type: ignore[operator]
            features.append(x)
            out, t, hidden = readout(x)
            basis.append(hidden)
            scalars = scalars + out
            net = net + out
            if t.shape[1] > 0:
                tensor = t if n_tensors == 0 else tensor + t
                n_tensors += 1
        tensor = tensor / max(n_tensors, 1)
        return Readings(scalars, net, tensor, torch.cat(basis, dim=1), features)

    def _lone(self, read: Readings, first: int) -> Tensor:
        """Energy and basis of the atoms from the first on, (n_species, 1 + P), eV."""
        return self.scale * torch.cat([read.net[first:, :1], read.basis[first:]], dim=1)

    def lone_readings(self) -> Tensor:
        """Energy and basis that the network gives a lone atom, (n_species, 1 + P), eV."""
        radial = self.basis(self.scale.new_zeros(0))
        harmonics = self.angular(self.scale.new_zeros(0, 3))
        edges = self.atomic_numbers.new_zeros(2, 0)
        cut = Cut(edges, [], harmonics, radial, harmonics, [], [])
        species = self.one_hot.index_select(0, self.atomic_numbers)
        return self._lone(self._read(species, cut), 0)

    def fold(self) -> None:
        """Keep what lone atoms give, for serving; the weights must not change afterwards."""
        if self.anchored:
            self.lone = self.lone_readings().detach()

    def rejoined(self, energies: Tensor, cut: Cut) -> Tensor:
        """Numbers, (K,), with the derivatives of K sums of energies (K, n_atoms) by positions.

        The first are those of the strata, the others combinations of their basis. Only derivatives
        of the result mean something. `cut` is that of the strata.
        """
        n = energies.shape[0]
        by_harmonics = torch.stack([torch.zeros_like(cut.harmonics)] * n)
        by_radial = torch.stack([torch.zeros_like(cut.radial)] * n)
        by_sources: list[Tensor] = []  # of all layers after this one
        for after in range(len(self.layers)):
            # TorchScript has no reversed lists of modules.
            for k, layer in enumerate(self.layers):
                if k + after + 1 == len(self.layers):
                    by_density = slopes_by_density(energies, cut, by_sources)
                    by_source = layer.back(  # type: ignore[operator]
                        by_density, cut.sources[k], cut, by_harmonics, by_radial
                    )
                    by_sources.insert(0, by_source)
        angular = (cut.harmonics * by_harmonics).sum(dim=(1, 2))
        totals = angular + (cut.radial * by_radial).sum(dim=(1, 2))
        return torch.cat([totals[:1] + cut.direct.sum(), totals[1:]])


def readout_weights(potential: Potential) -> Tensor:
    """The weights that energies are linear in, (P,), in the order of `Strata.basis`.

    The last layer of each readout; the bias of each element is not among them, since labels do
    not say how an energy divides over the elements.
    """
    return torch.cat([matrix[:, 0] for matrix in _last_weights(potential)])


def set_readout_weights(potential: Potential, weights: Tensor) -> None:
    """Replace them by (P,) others, in place."""
    last = _last_weights(potential)
    parts = weights.split([len(matrix) for matrix in last])
    with torch.no_grad():
        for matrix, part in zip(last, parts, strict=True):
            matrix[:, 0] = part


def _last_weights(potential: Potential) -> list[Tensor]:
    """Last matrix of each readout; its first column makes the energy."""
    return [readout.network.weights[-1] for readout in potential.readouts]  # type: ignore[union-attr,index]
