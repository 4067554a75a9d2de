"""The picture of a structure colours every atom."""

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ase_bayesmlip.report.structure import plot_structure


def axes():
    return Figure().subplots()


@pytest.mark.parametrize("name", ["ethanol", "strained_co2"])
def test_structure_panel_colours_every_atom(name, request):
    atoms = request.getfixturevalue(name)
    values = np.linspace(1.0, 10.0, len(atoms))
    norm, cmap = LogNorm(1, 10), colormaps["YlOrRd"]
    ax = plot_structure(axes(), {"atoms": atoms, "values": values, "norm": norm, "cmap": cmap})
    assert len(ax.patches) == len(atoms)
    faces = sorted(patch.get_facecolor() for patch in ax.patches)
    assert faces == sorted(tuple(cmap(norm(value))) for value in values)
    if name == "ethanol":
        assert len(ax.lines) == 8
    else:  # the bonds of four molecules that no face of the cell divides, and 12 edges
        atoms.wrap()
        bonds = np.triu(np.abs(atoms.get_all_distances() - 1.2) < 0.4).sum()
        assert 0 < bonds < 8
        assert len(ax.lines) == bonds + 12
