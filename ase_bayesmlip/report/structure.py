"""A molecule or a cell whose atoms are coloured by a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from ase_bayesmlip.report.style import label_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of the sum of covalent radii: no bond is longer.
BOND_TOLERANCE = 1.25
BALL = 0.62
# Where a cell is seen from: radians about its z axis, and above its xy plane.
VIEW_OF_CELL = (0.35, 0.25)
# Points; smaller letters cannot be read.
SMALLEST_LETTER = 4.0


def plot_structure(ax: Axes, data: Mapping[str, Any]) -> Axes:
    """Balls and sticks, nearer atoms in front, coloured by a number of each atom.

    A molecule is seen along its shortest principal axis. Bonds are drawn between atoms that touch,
    but not through the faces of a cell.

    Parameters
    ----------
    ax : Axes
    data : mapping
        ``atoms``; ``values`` (n_atoms,); ``norm`` and ``cmap`` of matplotlib.
    """
    from matplotlib.patches import Circle

    atoms, values = data["atoms"].copy(), np.asarray(data["values"])
    atoms.wrap()  # does nothing without a cell
    rotation = _view(atoms)
    centre = atoms.positions.mean(axis=0)
    seen = (atoms.positions - centre) @ rotation
    radii = BALL * covalent_radii[atoms.numbers]
    _draw_cell(ax, atoms, centre, rotation)
    depth = seen[:, 2]
    scale = _points_per_angstrom(ax, seen)
    for i, j in _bonds(atoms):
        ax.plot(
            *seen[[i, j], :2].T, color="#8C8C8C", linewidth=0.16 * scale, solid_capstyle="round",
            zorder=2 + _between(depth, min(depth[i], depth[j])),  # spheres cover both of its ends
        )  # fmt: skip
    for k in np.argsort(depth):
        color = data["cmap"](data["norm"](values[k]))
        z = 2 + _between(depth, depth[k]) + 1e-3
        edge = float(np.clip(0.03 * scale, 0.3, 0.8))
        ax.add_patch(
            Circle(seen[k, :2], radii[k], facecolor=color, edgecolor="black", lw=edge, zorder=z)
        )
        size = min(8.0, 1.1 * radii[k] * scale)
        if size > SMALLEST_LETTER:
            dark = float(np.dot(color[:3], (0.299, 0.587, 0.114))) < 0.5
            x, y = seen[k, :2].tolist()
            ax.text(
                x, y, chemical_symbols[atoms.numbers[k]], ha="center", va="center", fontsize=size,
                color="white" if dark else "black", zorder=z, clip_on=True,
            )  # fmt: skip
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.margins(0.08)
    ax.set_axis_off()
    return ax


def _points_per_angstrom(ax: Axes, seen: np.ndarray) -> float:
    """About how large an Å will be, for widths and letters, which matplotlib takes in points."""
    extent = float(np.ptp(seen[:, :2], axis=0).max()) + 2.0
    return 72.0 / ax.figure.dpi * min(ax.bbox.width, ax.bbox.height) / extent


def _between(depth: np.ndarray, value: float) -> float:
    """Depth as a number between 0 (far) and 1 (near)."""
    return float((value - depth.min()) / max(float(np.ptp(depth)), 1e-9))


def _view(atoms: Atoms) -> np.ndarray:
    """Rotation (3, 3) whose columns are the horizontal, the vertical and the line of sight."""
    if not atoms.pbc.any():
        _, axes = np.linalg.eigh(np.cov(atoms.positions.T) if len(atoms) > 1 else np.eye(3))
        rotation = axes[:, ::-1]
        # Principal axes have no sign: make the heavier side point right and up.
        moment = atoms.numbers @ ((atoms.positions - atoms.positions.mean(axis=0)) @ rotation)
        rotation = rotation * np.where(moment < 0, -1.0, 1.0)
        rotation[:, 2] = np.cross(rotation[:, 0], rotation[:, 1])
        return rotation
    turn, lift = VIEW_OF_CELL
    right = np.array([np.cos(turn), np.sin(turn), 0.0])
    sight = np.array(
        [np.sin(turn) * np.cos(lift), -np.cos(turn) * np.cos(lift), np.sin(lift)]
    )  # towards the reader
    return np.stack([right, np.cross(sight, right), sight], axis=1)


def _bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Pairs of atoms that touch."""
    from scipy.spatial import cKDTree

    reach = covalent_radii[atoms.numbers]
    pairs = cKDTree(atoms.positions).query_pairs(2 * BOND_TOLERANCE * float(reach.max()))
    return [
        (i, j)
        for i, j in sorted(pairs)
        if np.linalg.norm(atoms.positions[i] - atoms.positions[j])
        < BOND_TOLERANCE * (reach[i] + reach[j])
        and not atoms.numbers[i] == atoms.numbers[j] == 1
    ]


def _draw_cell(ax: Axes, atoms: Atoms, centre: np.ndarray, rotation: np.ndarray) -> None:
    if not atoms.pbc.all():
        return
    corners = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    seen = (corners @ atoms.cell.array - centre) @ rotation
    for i, first in enumerate(corners):
        for j in range(i + 1, len(corners)):
            if np.abs(first - corners[j]).sum() == 1:
                ax.plot(*seen[[i, j], :2].T, color="#9A9A9A", linewidth=0.7, zorder=1)


def structures_figure(chosen: list[tuple[str, Atoms, np.ndarray]], columns: int = 3) -> Figure:
    """Structures side by side, so many in a row, on one scale of lengths and of colours.

    Parameters
    ----------
    chosen : list of (title, Atoms, ndarray (n_atoms,))
        The last is the error bar of the force on each atom, √(tr Σ/3), meV/Å.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    everything = np.concatenate([values for _, _, values in chosen])
    low = max(float(everything.min()), 1e-3 * float(everything.max()), 1e-12)
    norm = LogNorm(low / 1.05, max(float(everything.max()), low) * 1.05)
    n_rows, n_columns = -(-len(chosen) // columns), min(columns, len(chosen))
    size = (2.4 * n_columns + 0.6, 2.6 * n_rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for ax in axes[len(chosen) :]:
        ax.set_axis_off()
    axes = axes[: len(chosen)]
    cmap = colormaps["YlOrRd"]
    for (title, atoms, values), ax in zip(chosen, axes, strict=True):
        values = np.maximum(values, low)
        plot_structure(ax, {"atoms": atoms, "values": values, "norm": norm, "cmap": cmap})
        ax.set_title(title, fontsize=9)
    _one_scale(axes)
    bar = figure.colorbar(
        ScalarMappable(norm, cmap), ax=list(figure.axes), shrink=0.8 / n_rows, aspect=25
    )
    bar.set_label("error bar of the force on an atom,\n$\\sqrt{\\mathrm{tr}\\,\\Sigma/3}$ (meV/Å)")
    label_log_axis(bar.ax.yaxis, *bar.ax.get_ylim())
    return figure


def _one_scale(axes: np.ndarray) -> None:
    """Give all axes the size of the largest, so that lengths can be compared.

    Unless one would become too small to be seen.
    """
    limits = np.array([[ax.get_xlim(), ax.get_ylim()] for ax in axes])
    centres = limits.mean(axis=2)
    spans = np.ptp(limits, axis=2)
    half = 0.5 * spans.max(axis=0)
    if spans.max() > 2.5 * spans.max(axis=1).min():
        return
    for ax, (x, y) in zip(axes, centres, strict=True):
        ax.set(xlim=(x - half[0], x + half[0]), ylim=(y - half[1], y + half[1]))
