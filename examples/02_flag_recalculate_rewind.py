"""A hot simulation that asks a reference calculator when it leaves its ground, and goes back.

The threshold is not a number in eV/Å: it is the rate at which known frames may be flagged.
"""

import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.langevin import Langevin
from tblite.ase import TBLite

from ase_bayesmlip import BayesianCalculator, UncertaintyMonitor
from ase_bayesmlip.md import Recalculate, Rewind

data = files("ase_bayesmlip.data")
folder = Path(tempfile.mkdtemp())
rng = np.random.default_rng(0)

atoms = read(str(data / "ethanol_test.extxyz"), index=0)
atoms.calc = BayesianCalculator(data / "ethanol_ensemble.pt")
atoms.set_momenta(rng.normal(size=(9, 3)) * np.sqrt(atoms.get_masses() * units.kB * 600)[:, None])

dyn = Langevin(
    atoms,
    0.5 * units.fs,
    temperature_K=1200,
    friction=0.02 / units.fs,
    fixcm=False,
    rng=np.random.RandomState(1),
)
recalculate = Recalculate(TBLite(method="GFN2-xTB", verbosity=0), folder / "new_labels.extxyz")
monitor = UncertaintyMonitor(
    dyn,
    false_alarm_rate=0.01,
    actions=[recalculate, Rewind(rethermalise=True, rng=rng)],
    log=folder / "monitor.csv",
    cooldown=10,
    budget=5,
)
dyn.attach(monitor)
dyn.run(300)

print(f"{monitor.n_flagged} of {monitor.n_observed} frames above {monitor.threshold:.3f} eV/Å")
for record in recalculate.records:
    print(
        f"step {record.step:4d}: predicted ± {record.force_rms_uncertainty:.3f} eV/Å, "
        f"true error {record.force_rmse:.3f} eV/Å"
    )
print(f"labels for the next training set: {folder / 'new_labels.extxyz'}")
