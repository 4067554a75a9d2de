"""Every optimizer and dynamics of ASE stops at the step of the flag, or is refused."""

import ase.optimize
import numpy as np
import pytest
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.md.switch_langevin import SwitchLangevin
from ase.optimize.optimize import Dynamics
from ase.optimize.sciopt import SciPyFminBFGS, SciPyFminCG
from crystal import TIME_STEP, Springs, crystal
from dynamics import MD_CLASSES, SETTINGS, build, classes

from ase_bayesmlip.md.actions import Stop
from ase_bayesmlip.md.monitor import UncertaintyMonitor

OPTIMIZERS = classes(ase.optimize, Dynamics)
BASES = {"Dynamics", "Optimizer", "SciPyOptimizer", "SciPyGradientlessOptimizer"}
REFUSED = {"SciPyFmin", "SciPyFminPowell", "BasinHopping"}
# A transition state of internal coordinates, and a class that fails in ASE 3.29 itself.
ELSEWHERE = {"BFGSClimbFixInternals", "oldBFGS"}
STOPPABLE = sorted(set(OPTIMIZERS) - BASES - REFUSED - ELSEWHERE)


def rattled():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = Springs(atoms)
    atoms.rattle(0.15, seed=2)
    return atoms


def optimizer(name):
    atoms = rattled()
    kind = OPTIMIZERS[name]
    if name == "CellAwareBFGS":
        return kind(FrechetCellFilter(atoms, exp_cell_factor=1.0), logfile=None)
    return kind(atoms, logfile=None)


def stopping(dyn, step, **settings):
    """Attach a monitor that stops at one step; the steps that it and a later observer saw."""
    monitor = UncertaintyMonitor(
        dyn,
        threshold=1.0,
        score=lambda *_: 2.0 if dyn.nsteps == step else 0.0,
        actions=[Stop()],
        **settings,
    )
    seen = []
    dyn.attach(monitor)
    dyn.attach(lambda: seen.append(dyn.nsteps))
    return monitor, seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("name", STOPPABLE)
def test_optimizers_stop_and_can_go_on(name, step):
    dyn = optimizer(name)
    monitor, seen = stopping(dyn, step)
    evaluations = []
    calculate = dyn.atoms.calc.calculate if hasattr(dyn.atoms, "calc") else None
    if calculate is not None:
        dyn.atoms.calc.calculate = lambda *a, **k: (evaluations.append(1), calculate(*a, **k))
    assert not dyn.run(fmax=1e-5, steps=25)
    assert dyn.nsteps == step
    assert seen == list(range(step + 1))
    assert "uncertain frame at step" in monitor.stop_reason
    n_before = len(evaluations)
    dyn.run(fmax=1e-5, steps=3)
    assert step < dyn.nsteps <= step + 3
    if calculate is not None:
        assert len(evaluations) > n_before
    # Frames are counted once, whether or not ASE shows the first one again.
    assert list(monitor.history.step) == list(range(dyn.nsteps + 1))


@pytest.mark.parametrize("kind", [SciPyFminCG, SciPyFminBFGS])
def test_scipy_optimizers_do_as_before_when_nothing_stops_them(kind):
    plain, watched = kind(rattled(), logfile=None), kind(rattled(), logfile=None)
    watched.attach(UncertaintyMonitor(watched, threshold=1.0, score=lambda *_: 0.0))
    for dyn in (plain, watched):
        assert dyn.run(fmax=1e-3)
    assert plain.nsteps == watched.nsteps
    assert plain.force_calls == watched.force_calls
    np.testing.assert_array_equal(plain.atoms.positions, watched.atoms.positions)


def test_callbacks_in_the_line_search_stop_too():
    dyn = SciPyFminCG(rattled(), logfile=None, callback_always=True)
    monitor, seen = stopping(dyn, 3)
    dyn.run(fmax=1e-5, steps=30)
    assert seen == [0, 1, 2, 3]
    assert monitor.n_observed == 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_runs_that_nothing_stops_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # basin hopping writes files where it stands
    if name == "BasinHopping":
        dyn = OPTIMIZERS[name](rattled(), logfile=None, optimizer_logfile=None)
    else:
        dyn = OPTIMIZERS[name](rattled(), logfile=None)
    with pytest.raises(TypeError, match=rf"{name}.*BFGS"):
        UncertaintyMonitor(dyn, threshold=1.0)
    dyn.close()


@pytest.mark.filterwarnings("ignore")
def test_switching_dynamics_are_refused():
    atoms = crystal()
    dyn = SwitchLangevin(
        atoms, Springs(atoms), Springs(atoms), TIME_STEP, temperature_K=300.0, friction=0.01,
        n_eq=1, n_switch=2,
    )  # fmt: skip
    with pytest.raises(TypeError, match="SwitchLangevin cannot be ended from within"):
        UncertaintyMonitor(dyn, threshold=1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize(
    "name", [name for name in [*SETTINGS, "ContourExploration"] if name in MD_CLASSES]
)
def test_dynamics_stop_and_can_go_on(name, step):
    dyn = build(name, crystal())
    monitor, seen = stopping(dyn, step)
    dyn.run(10)
    assert dyn.nsteps == step
    assert seen == list(range(step + 1))
    dyn.run(2)
    assert list(monitor.history.step) == list(range(step + 3))
