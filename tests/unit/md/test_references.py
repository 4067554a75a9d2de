"""What a reference is, what it may be asked, and which answers count."""

import numpy as np
import odd_references
import pytest
from ase import Atoms
from ase.build import fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator

from ase_bayesmlip.md.periodicity import packages_of, refuse_partial_periodicity
from ase_bayesmlip.md.recalculate import Recalculate
from ase_bayesmlip.md.references import (
    checked_label,
    evaluate,
    reference_calculator,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("emt", EMT),
        ("LJ", LennardJones),
        ("odd_references:lennard_jones", LennardJones),
        ("odd_references:Answers", odd_references.Answers),
        ("odd_references:INSTANCE", LennardJones),
        ("ase.calculators.emt:EMT", EMT),
    ],
)
def test_references_by_name(name, kind):
    assert type(reference_calculator(name)) is kind


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ccsdt", ValueError, "known: gfn2, gfn1, emt, lj, or package.module:factory"),
        ("", ValueError, "known: gfn2"),
        (":factory", ValueError, "known: gfn2"),
        ("odd_references:", ValueError, "known: gfn2"),
        ("no_such_module:make", ImportError, "no module 'no_such_module'"),
        ("ase.no_such_module:make", ImportError, "no module 'ase.no_such_module'"),
        ("odd_references:make", ValueError, "odd_references has no 'make'"),
        ("odd_references:NUMBER", ValueError, "is int, neither an ASE calculator nor"),
        ("odd_references:gives_a_number", ValueError, "gives float, not an ASE calculator"),
        ("odd_references:needs_an_argument", ValueError, "failed .TypeError"),
    ],
)
def test_what_is_no_reference_is_explained(name, error, message):
    with pytest.raises(error, match=message):
        reference_calculator(name)


@pytest.mark.parametrize("reference", [None, 5, EMT, {}])
def test_what_is_neither_name_nor_calculator_is_refused_at_once(reference):
    with pytest.raises(TypeError, match="ASE calculator or the name of one"):
        Recalculate(reference)


def test_a_module_that_lacks_another_or_breaks_is_explained(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_more.py").write_text("import not_installed_at_all\n")
    (tmp_path / "breaks.py").write_text("1 / 0\n")
    with pytest.raises(ImportError, match="needs_more needs not_installed_at_all"):
        reference_calculator("needs_more:make")
    with pytest.raises(ImportError, match="importing breaks failed"):
        reference_calculator("breaks:make")


ZEROS = np.zeros((3, 3))
WRONG = [
    ({"forces": np.zeros((1, 3))}, r"shape \(1, 3\), not \(3, 3\)"),
    ({"forces": np.zeros(3)}, r"shape \(3,\)"),
    ({"forces": np.zeros(9)}, r"shape \(9,\)"),
    ({"forces": np.zeros((3, 1))}, r"shape \(3, 1\)"),
    ({"forces": np.zeros((1, 3, 3))}, r"shape \(1, 3, 3\)"),
    ({"forces": 0.0}, r"shape \(\)"),
    ({"forces": ZEROS.astype(complex)}, "type complex128"),
    ({"forces": ZEROS.astype(object)}, "type object"),
    ({"forces": ZEROS.astype(bool)}, "type bool"),
    ({"forces": [["a"] * 3] * 3}, "type <U1"),
    ({"forces": np.ma.masked_less(ZEROS, 1)}, "masked"),
    ({"forces": np.full((3, 3), np.nan)}, "forces is not finite in 9 of 9"),
    ({"forces": np.full((3, 3), np.inf)}, "not finite"),
    ({"energy": None}, "type object"),
    ({"energy": "-1.0"}, "type <U4"),
    ({"energy": True}, "type bool"),
    ({"energy": 1j}, "type complex128"),
    ({"energy": np.nan}, "energy is not finite"),
    ({"energy": [1.0, 2.0]}, r"energy has shape \(2,\)"),
    ({"energy": []}, r"energy has shape \(0,\)"),
    ({"stress": np.zeros(3)}, r"stress has shape \(3,\)"),
    ({"stress": np.zeros((6, 1))}, r"stress has shape \(6, 1\)"),
    ({"stress": np.full(6, np.nan)}, "stress is not finite"),
    ({"stress": np.zeros(6, dtype=complex)}, "type complex128"),
]


@pytest.mark.parametrize(("answer", "message"), WRONG)
def test_answers_that_do_not_count(answer, message):
    with pytest.raises(ValueError, match=message):
        checked_label({"energy": -1.0, "forces": ZEROS, **answer}, 3)


def test_answers_that_count_are_copies_in_double_precision():
    forces = np.arange(9, dtype=np.float32).reshape(3, 3)
    label = checked_label({"energy": np.array([-1], dtype=int), "forces": forces}, 3)
    assert label.energy == -1.0
    assert isinstance(label.energy, float)
    assert label.forces.dtype == np.float64
    assert label.stress is None
    forces[:] = 0.0
    np.testing.assert_array_equal(label.forces, np.arange(9.0).reshape(3, 3))
    voigt = checked_label({"energy": 0, "forces": ZEROS, "stress": np.arange(6)}, 3).stress
    np.testing.assert_array_equal(voigt, [[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    nine = checked_label({"energy": 0, "forces": ZEROS, "stress": list(range(9))}, 3).stress
    np.testing.assert_array_equal(nine, np.arange(9.0).reshape(3, 3))


def test_constraints_do_not_change_a_label():
    from ase.constraints import FixAtoms

    atoms = molecule("H2O")
    free = evaluate(LennardJones(), atoms)["forces"]
    atoms.set_constraint(FixAtoms([0]))
    np.testing.assert_array_equal(evaluate(LennardJones(), atoms)["forces"], free)
    assert atoms.calc is None


@pytest.mark.parametrize(
    "atoms",
    [
        Atoms(),
        Atoms("H", [[np.nan, 0, 0]]),
        Atoms("H", cell=[1, 1, np.inf], pbc=True),
        Atoms("H", pbc=True),
    ],
)
def test_structures_are_checked_before_the_reference_runs(atoms):
    reference = odd_references.Answers()
    with pytest.raises(ValueError):
        evaluate(reference, atoms)
    assert reference.n_calls == 0


def slab(vacuum=15.0, periodic=False):
    atoms = fcc111("Cu", (2, 2, 3), vacuum=vacuum)
    atoms.rattle(0.1, seed=3)
    atoms.pbc = (True, True, periodic)
    return atoms


@pytest.mark.parametrize("name", ["emt", "lj"])
def test_open_slabs_are_those_with_vacuum(name):
    """EMT and Lennard-Jones know two periodic directions: they may be asked about slabs."""
    opened = evaluate(reference_calculator(name), slab())
    closed = evaluate(reference_calculator(name), slab(periodic=True))
    without = slab(vacuum=0.0)  # images of an open direction must not matter
    without.cell[2] = 0.0
    flat = evaluate(reference_calculator(name), without)
    for found in (closed, flat):
        assert found["energy"] == pytest.approx(opened["energy"], rel=1e-12)
        np.testing.assert_allclose(found["forces"], opened["forces"], atol=1e-10)
    assert "stress" in closed
    assert "stress" not in opened


@pytest.mark.parametrize("package", ["tblite.ase", "dftd4.ase"])
def test_packages_that_take_a_slab_for_a_crystal_are_not_asked(package):
    """By the package that the class comes from, also under a subclass and in a sum."""
    kind = type("Known", (odd_references.Answers,), {"__module__": package})
    subclass = type("Mine", (kind,), {"__module__": "mine"})
    for calculator in (kind(), subclass(), SumCalculator([kind(), odd_references.Answers()])):
        for pbc in ((True, True, False), (True, False, False)):
            atoms = slab()
            atoms.pbc = pbc
            with pytest.raises(ValueError, match=r"pbc=True with 10 Å or more of vacuum"):
                evaluate(calculator, atoms)
    allowed = kind()
    for pbc in (True, False):
        atoms = slab()
        atoms.pbc = pbc
        refuse_partial_periodicity(packages_of(allowed), atoms)
    assert allowed.n_calls == 0


@pytest.mark.parametrize("name", ["gfn2", "gfn1"])
def test_xtb_refuses_a_slab_however_it_is_asked(name):
    pytest.importorskip("tblite")
    layer = Atoms("CC", [[0, 0, 0], [0, 1.42, 0]], cell=[2.46, 4.26, 0.0], pbc=(1, 1, 0))
    calculator = reference_calculator(name)
    with pytest.raises(ValueError, match="for a crystal in three directions"):
        evaluate(calculator, layer)
    layer.calc = calculator
    with pytest.raises(ValueError, match="for a crystal in three directions"):
        layer.get_potential_energy()
    # What it says to do works, and a molecule and a crystal are as they were.
    layer.center(vacuum=10.0, axis=2)
    layer.pbc = True
    assert np.isfinite(layer.get_potential_energy())
    water = molecule("H2O")
    assert set(evaluate(calculator, water)) == {"energy", "forces"}
