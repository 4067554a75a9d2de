"""Molecular dynamics with an error bar on every force.

Run it anywhere after installation; it uses the ensemble that comes with the package.
"""

from importlib.resources import files

from ase import units
from ase.build import molecule
from ase.md.langevin import Langevin

from ase_bayesmlip import BayesianCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = BayesianCalculator(files("ase_bayesmlip.data") / "ethanol_ensemble.pt")

dyn = Langevin(atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False)
for _ in dyn.irun(100):
    if dyn.nsteps % 20 == 0:
        results = atoms.calc.results
        worst = results["forces_std"].argmax()
        print(
            f"step {dyn.nsteps:4d}   energy {results['energy']:.3f} ± "
            f"{results['energy_uncertainty']:.3f} eV   least certain force: "
            f"{atoms.symbols[worst]}{worst}, ± {1e3 * results['forces_std'][worst]:.0f} meV/Å"
        )

# The full covariance of each atom's force, what the model does not know apart from label noise.
print(results["forces_cov_epistemic"][worst])
