"""From labelled frames to a served file, from Python: a crystal, with stress.

The same from the shell: ``bayesmlip train co2_stress.yaml --out RUN``, then
``bayesmlip serve RUN -o model.pt``. Far too short to be good: it shows the steps.
"""

import tempfile
from importlib.resources import files
from pathlib import Path

import torch
from ase.io import read

from ase_bayesmlip import BayesianCalculator
from ase_bayesmlip.config import Config, from_dict
from ase_bayesmlip.posteriors import RunOptions, ensemble
from ase_bayesmlip.serving.export import export_members
from ase_bayesmlip.serving.home import load_home

data = files("ase_bayesmlip.data")
config = from_dict(
    Config,
    {
        "data": {
            "train": str(data / "co2_train.extxyz") + "@0:20",
            "valid": str(data / "co2_valid.extxyz") + "@0:5",
            "reference_energies": str(data / "isolated_atoms.extxyz"),
        },
        "model": {"hidden_irreps": "8x0e + 8x1o", "cutoff": 4.0},
        "training": {"epochs": 4, "batch_size": 2, "evaluate_every": 2},
        "posterior": {"kind": "ensemble", "members": 2},
    },
)

if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    state = ensemble.fit(config, folder / "run", RunOptions(progress=False))
    members = ensemble.draw(state, None, torch.Generator())
    home = load_home(state.config, state.record)  # for what is fitted to all members together
    export_members(members, state.config, state.record, folder / "model.pt", home=home)

    atoms = read(str(data / "co2_test.extxyz"), index=0)
    atoms.calc = BayesianCalculator(folder / "model.pt")
    print("stress, eV/Å³ (xx yy zz yz xz xy):", atoms.get_stress().round(4))
    print("its standard deviation:           ", (atoms.calc.results["stress_var"] ** 0.5).round(4))
