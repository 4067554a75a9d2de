"""Several potentials of one architecture as one network, for evaluation only.

Members share geometry; their radial networks are tabulated. The arithmetic is that of `Potential`,
arranged for kernels and compilers (see `fused`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.angular import Irrep
from ase_bayesmlip.nn.evidential.potential import EvidentialPotential
from ase_bayesmlip.nn.heads import NoiseHeads
from ase_bayesmlip.nn.pairs import quiet_if_alone
from ase_bayesmlip.nn.potential import Potential, readout_weights
from ase_bayesmlip.nn.race_plus import RacePlusLayer
from ase_bayesmlip.nn.stacked.blocks import (
    Features,
    SavedTensors,
    Slopes,
    StackedConvolution,
    StackedLinear,
    StackedProduct,
    StackedReadout,
    StackedSkip,
    StackedSpeciesLinear,
    added,
    stack,
)
from ase_bayesmlip.nn.stacked.geometry import Surroundings
from ase_bayesmlip.nn.stacked.kernels import channel_kernels, neighbor_kernels, prelude
from ase_bayesmlip.nn.stacked.pairs import StackedPairs
from ase_bayesmlip.prediction import MemberOutput


class StackedLayer(nn.Module):
    """`RaceLayer` or `RacePlusLayer` of every member."""

    def __init__(self, members: Sequence[Potential], index: int, table_tolerance: float) -> None:
        super().__init__()
        layers = [member.layers[index] for member in members]
        first = layers[0]
        self.up = StackedLinear([layer.up for layer in layers])  # type: ignore[misc]
        self.convolution = StackedConvolution(members, index, table_tolerance)
        self.product = StackedSpeciesLinear([layer.product for layer in layers])  # type: ignore[misc]
        self.skip = StackedSkip([layer.skip for layer in layers])  # type: ignore[misc]
        self.has_products = isinstance(first, RacePlusLayer)
        self.irreps_out: list[Irrep] = first.skip.irreps_out  # type: ignore[union-attr,assignment]
        if self.has_products:
            self.density: list[Irrep] = first.convolution.irreps_out  # type: ignore[union-attr,assignment]
            self.square = StackedProduct([layer.square for layer in layers])  # type: ignore[misc]
            self.cube = StackedProduct([layer.cube for layer in layers])  # type: ignore[misc]

    def forward(
        self, features: Features, species: Tensor, around: Surroundings
    ) -> tuple[Features, list[SavedTensors]]:
        """As the layers' own forward passes, see `race` and `race_plus`."""
        density, seen = self.convolution(self.up(features), around)
        saved = [seen]
        mixed = density
        if self.has_products:
            square, factors = self.square(density, density)
            cube, others = self.cube(square, density)
            saved += [factors, others]
            place = [self.density.index(irrep) for irrep in self.irreps_out]
            mixed = [
                torch.cat([density[k], square[k], third], dim=3)
                for k, third in zip(place, cube, strict=True)
            ]
        kept = self.skip(features, species)
        out = self.product(mixed, species)
        out = [
            x + kept[irrep] if irrep in kept else x
            for irrep, x in zip(self.irreps_out, out, strict=True)
        ]
        return out, saved

    def back(
        self,
        slopes: Slopes,
        saved: list[SavedTensors],
        species: Tensor,
        around: Surroundings,
        by_features: bool,
    ) -> tuple[Slopes, Tensor]:
        """Slopes by the features, none unless asked for, and by the vectors to neighbours."""
        by_density = self.product.back(slopes, species)
        if self.has_products:
            by_density = self._products_back(by_density, saved)
        by_up, by_vectors = self.convolution.back(by_density, saved[0], around, by_features)
        if not by_features:
            return [], by_vectors
        return added(self.up.back(by_up), self.skip.back(slopes, species)), by_vectors

    def _products_back(self, by_mixed: Slopes, saved: list[SavedTensors]) -> Slopes:
        """From slopes by (density, square, cube) side by side to those by the density."""
        by_density: Slopes = [None] * len(self.density)
        by_square: Slopes = [None] * len(self.density)
        by_cube: Slopes = []
        for irrep, x in zip(self.irreps_out, by_mixed, strict=True):
            k = self.density.index(irrep)
            parts = [None] * 3 if x is None else x.chunk(3, dim=3)
            by_density[k], by_square[k] = parts[:2]
            by_cube.append(parts[2])
        of_square, of_density = self.cube.back(by_cube, saved[2])
        left, right = self.square.back(added(by_square, of_square), saved[1])
        return added(added(by_density, of_density), added(left, right))


class Record(NamedTuple):
    """What a forward pass of `StackedPotential` leaves for its derivatives, and what they rest on.

    Attributes
    ----------
    invariants : list of Tensor, each (members, n_atoms, channels)
        Of each layer.
    seen : Surroundings
        As the network sees them.
    direct : Tensor or None, (members, n_atoms, width), eV/Å
        Derivatives by the distances of what depends on them alone.
    """

    layers: list[list[SavedTensors]]
    readouts: list[SavedTensors]
    invariants: list[Tensor]
    seen: Surroundings
    direct: Tensor | None


class StackedHeads(nn.Module):
    """Heads of evidential potentials, each by itself: they are small."""

    def __init__(self, members: Sequence[EvidentialPotential]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(member.head for member in members)
        self.register_buffer("force_scale", stack([m.noise.force_scale for m in members]))
        self.register_buffer("energy_scale", stack([m.noise.energy_scale for m in members]))

    def forward(self, energies: Tensor, features: list[Features], species: Tensor) -> MemberOutput:
        """Energies of all members (members, n_atoms) beside the laws of those with a head here."""
        force_scale, energy_scale = self.get_buffer("force_scale"), self.get_buffer("energy_scale")
        joined = [torch.cat(layer, dim=2) for layer in features]
        outputs = []
        for k, head in enumerate(self.heads):
            law = head([x[k] for x in joined], species, force_scale[k], energy_scale[k])
            outputs.append(head.output(energies[k], law, False))  # type: ignore[operator]
        known = {
            name: torch.cat([getattr(output, name) for output in outputs])
            for name, value in outputs[0]._asdict().items()
            if value is not None
        }
        return MemberOutput(**{**known, "atomic_energies": energies})


class StackedPotential(nn.Module):
    """All members of a posterior, evaluated together.

    Parameters
    ----------
    members : sequence of Potential
        Of one architecture, in float64.
    table_tolerance : float
        See `radial_table.tabulate`.

    Attributes
    ----------
    table_error : float
        Largest relative error of the tabulated radial networks.
    readout_weights : Tensor, (members, P)
        Their combination of the basis is the energy, but for its bias.
    """

    def __init__(self, members: Sequence[Potential], table_tolerance: float = 1e-6) -> None:
        super().__init__()
        first = members[0]
        with_head = [m for m in members if isinstance(m, EvidentialPotential)]
        self.heads = StackedHeads(with_head) if with_head else None
        self.cutoff = first.cutoff
        self.noise = NoiseHeads(first.noise.energy, first.noise.forces)
        self.layers = nn.ModuleList(
            StackedLayer(members, index, table_tolerance) for index in range(len(first.layers))
        )
        self.readouts = nn.ModuleList(
            StackedReadout([m.readouts[k] for m in members], layer.irreps_out)  # type: ignore[misc,arg-type]
            for k, layer in enumerate(self.layers)
        )
        self.table_error = max(c.error for c in self.modules() if isinstance(c, StackedConvolution))
        self.register_buffer("readout_weights", stack([readout_weights(m) for m in members]))
        self.register_buffer("embedding", stack([m.embedding for m in members]))
        self.register_buffer("bias", stack([m.bias for m in members]))
        self.register_buffer("scale", stack([m.scale for m in members]))
        self.register_buffer("energy_scale", stack([m.noise.energy_scale for m in members]))
        self.register_buffer("force_scale", stack([m.noise.force_scale for m in members]))
        self.register_buffer("one_hot", first.one_hot.clone())
        self.pairs = None if first.pairs is None else StackedPairs(first.pairs, members)
        self.anchored = first.anchored
        if first.anchored:
            self.register_buffer("lone", stack([m.lone_readings() for m in members]))

    def kernel_source(self, dtype: torch.dtype) -> str:
        """C++ source of all products, see `kernels`."""
        real = {torch.float32: "float", torch.float64: "double"}[dtype]
        parts = [prelude(real, self.get_buffer("embedding").shape[2], self.cutoff)]
        for name, module in self._products().items():
            write = neighbor_kernels if isinstance(module, StackedConvolution) else channel_kernels
            parts.append(write(name, module.table))
        return "".join(parts)

    def use_kernels(self, digest: str) -> None:
        """Take the products from the library of that digest (`operators.load_kernels`)."""
        for name, module in self._products().items():
            module.kernel = f"{digest}:{name}"

    def _products(self) -> dict[str, StackedConvolution | StackedProduct]:
        return {
            name.replace(".", "_"): module
            for name, module in self.named_modules()
            if isinstance(module, StackedConvolution | StackedProduct)
        }

    def forward(
        self,
        species: Tensor,
        around: Surroundings,
        batch: Tensor,
        n_graphs: int,
    ) -> tuple[MemberOutput, Tensor, Record]:
        """As `Potential.forward`, with the members in the place of its single head.

        Species are one-hot, (n_atoms, n_species). Returns the output, the basis of `Strata`,
        (members, n_atoms, P), eV, and the record for `gradients`.
        """
        embedding, bias = self.get_buffer("embedding"), species @ self.get_buffer("bias")
        features = [(species @ embedding).unsqueeze(2)]
        total = torch.zeros_like(bias)
        tensors: list[Tensor] = []
        basis: list[Tensor] = []
        kept: list[Features] = []
        seen = around if self.pairs is None else self.pairs.seen(species, around)
        record = Record([], [], [], seen, None)
        for layer, readout in zip(self.layers, self.readouts, strict=True):
            features, of_layer = layer(features, species, seen)
            kept.append(features)
            out, tensor, hidden, of_readout = readout(features)
            record.layers.append(of_layer)
            record.readouts.append(of_readout)
            record.invariants.append(features[readout.scalar][:, :, 0])
            basis.append(hidden)
            total = total + out
            tensors += [] if tensor is None else [tensor]
        scale = self.get_buffer("scale").unsqueeze(1)
        noise = (total / len(self.layers) + bias)[..., 1:]
        energies = scale * (total if self.anchored else total + bias)[..., 0]
        basis_of_energy = scale.unsqueeze(2) * torch.cat(basis, dim=2)
        present = None
        if self.anchored:
            lone = species @ self.get_buffer("lone")
            energies, basis_of_energy = energies - lone[..., 0], basis_of_energy - lone[..., 1:]
        if self.pairs is not None:
            direct, slopes, present = self.pairs(species, around)
            energies, record = energies + direct, record._replace(direct=slopes)
        if self.heads is not None:
            output = self.heads(energies, kept, species)
        else:
            tensor = torch.stack(tensors).mean(dim=0) if tensors else noise[..., :0]
            output = MemberOutput(energies, *self._noise(noise, tensor, batch, n_graphs))
        output = quiet_if_alone(output, present if self.anchored else None)
        return output, basis_of_energy, record

    def gradients(
        self, combinations: Tensor, record: Record, species: Tensor, around: Surroundings
    ) -> Tensor:
        """Derivatives of Σ_atoms combination · basis by the vectors to neighbours.

        From combinations, (blocks · members, P) or for every atom its own, (blocks · members,
        n_atoms, P), to (blocks · members, n_atoms, width, 3). The q-th is of member q % members:
        first come the readout weights, whose sums are the energies with all that depends on
        distances alone, then deviations of them. The record is of the forward pass with the same
        species and surroundings.
        """
        layers: list[StackedLayer] = [*self.layers]  # type: ignore[list-item]
        readouts: list[StackedReadout] = [*self.readouts]  # type: ignore[list-item]
        scale = self.get_buffer("scale")
        if combinations.ndim == 2:
            combinations = combinations.unsqueeze(1)
        scaled = combinations * scale.repeat(combinations.shape[0] // len(scale)).view(-1, 1, 1)
        by_basis = scaled.split([readout.n_basis for readout in readouts], dim=2)
        slopes: Slopes = [None] * len(layers[-1].irreps_out)
        by_vectors = []
        for k in reversed(range(len(layers))):
            own: Slopes = [None] * len(slopes)
            own[readouts[k].scalar] = readouts[k].back(by_basis[k], record.readouts[k])
            slopes, found = layers[k].back(
                added(slopes, own), record.layers[k], species, record.seen, by_features=k > 0
            )
            by_vectors.append(found)
        if record.direct is not None:
            units = around.slopes[:, :, 0]
            direct = record.direct.unsqueeze(3) * units
            rest = direct.new_zeros(len(scaled) - len(direct), *direct.shape[1:])
            by_vectors.append(torch.cat([direct, rest]))
        return torch.stack(by_vectors).sum(dim=0)

    def _noise(
        self, raw: Tensor, tensor: Tensor, batch: Tensor, n_graphs: int
    ) -> list[Tensor | None]:
        """That of all members, whose atoms are those of one large batch."""
        members, n_atoms, _ = raw.shape
        energy_scale, force_scale = (
            self.get_buffer(name).repeat_interleave(n_atoms)
            for name in ("energy_scale", "force_scale")
        )
        first = n_graphs * torch.arange(members, device=batch.device)
        found = self.noise.with_scales(
            raw.flatten(0, 1),
            tensor.flatten(0, 1),
            energy_scale,
            force_scale.view(-1, 1, 1),
            (batch + first.unsqueeze(1)).flatten(),
            members * n_graphs,
        )
        return [None if x is None else x.view(members, n_atoms, *x.shape[1:]) for x in found]
