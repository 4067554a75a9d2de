"""The front door: lazy names that are listed, what is missing, and what objects say."""

import subprocess
import sys

import pytest
from ase import units
from ase.md.verlet import VelocityVerlet
from fake_potential import FakePotential, make_atoms

import ase_bayesmlip
from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.md import (
    CalibrationAlarm,
    Call,
    LogCSV,
    Recalculate,
    Rewind,
    Stop,
    UncertaintyMonitor,
    Warn,
    WriteFrame,
)
from ase_bayesmlip.md.actions import TrajectoryWriter


def test_names_are_listed_and_there():
    listed = dir(ase_bayesmlip)
    assert {"BayesianCalculator", "UncertaintyMonitor", "load_model", "md", "metrics"} <= set(
        listed
    )
    for name in listed:
        assert getattr(ase_bayesmlip, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Bayes'"):
        ase_bayesmlip.Bayes  # noqa: B018


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_listing_imports_nothing_heavy():
    code = "import sys, ase_bayesmlip; dir(ase_bayesmlip); sys.exit('torch' in sys.modules)"
    assert run(code) == (0, "")


HIDDEN = """
import sys
class Hide:
    def find_spec(self, name, *_):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Hide())
import ase_bayesmlip
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BayesianCalculator", "load_model", "posteriors"])
def test_without_torch_a_sentence_says_what_to_install(name):
    code, text = run(HIDDEN + f"ase_bayesmlip.{name}")
    assert code == 1
    assert text.splitlines()[-1].startswith("ImportError: this needs PyTorch")
    assert "pip install torch --index-url" in text
    assert run(HIDDEN + "ase_bayesmlip.md.Stop(); ase_bayesmlip.metrics") == (0, "")


@pytest.mark.slow
def test_without_torch_a_command_says_what_to_install(served, tmp_path):
    main = HIDDEN + "from ase_bayesmlip.cli.main import main; sys.exit(main({}))"
    code, text = run(main.format(["md", str(served("small")), "no.xyz", "--out", str(tmp_path)]))
    assert (code, text.count("\n")) == (2, 1)
    assert text.startswith("bayesmlip md: this needs PyTorch")
    assert run(main.format(["inspect", str(served("small"))]))[0] == 0


# --- at a prompt ---


def test_a_served_file_tells_what_it_is(calculator):
    calc = calculator("small", "float32")
    told = "ensemble, 2 member(s) of race for H C O within 4 Å; thresholds from nothing>"
    assert repr(calc.card) == f"<ModelCard: {told}"
    assert repr(calc.model) == f"<LoadedModel small.pt in float32 on cpu (torchscript): {told}"
    assert repr(calc) == f"<BayesianCalculator small.pt in float32 on cpu (torchscript): {told}"


def test_the_card_in_a_notebook_is_escaped(calculator):
    card = calculator("small").card
    table = card._repr_html_()
    assert table.count("<tr>") > 10
    assert '<td style="text-align:left">4.0 Å</td>' in table
    evil = ModelCard.from_json(card.to_json().replace('"race"', '"<script>race</script>"'))
    assert "<script>" not in evil._repr_html_()
    assert "&lt;script&gt;race" in evil._repr_html_()


def test_a_monitor_and_its_actions_tell_what_they_did():
    atoms = make_atoms(FakePotential())
    dyn = VelocityVerlet(atoms, 1.0 * units.fs)
    rewind, reference = Rewind(), Recalculate(FakePotential(7.0))
    monitor = UncertaintyMonitor(dyn, threshold=0.0, actions=[reference, rewind, Stop()])
    dyn.attach(monitor)
    dyn.run(3)
    assert repr(monitor) == (
        "<UncertaintyMonitor of VelocityVerlet: forces_epistemic_max above 0 eV/Å; 1 frames, "
        "1 flagged, 1 events; [<Recalculate with FakePotential: 1 answers, 0 failures>, <Rewind to "
        f"1 trusted frame(s) ago: 0 done>, Stop()]; stopped: {monitor.stop_reason}>"
    )
    quiet = UncertaintyMonitor(dyn, threshold=9.0, score=lambda *_: 0.0)
    assert repr(quiet).endswith("above 9 ; 0 frames, 0 flagged, 0 events; []>")


def test_the_other_actions():
    assert repr(Warn()) == "Warn()"
    assert repr(Call(print)) == "Call(<built-in function print>)"
    assert repr(LogCSV("a.csv")) == "LogCSV('a.csv')"
    assert repr(WriteFrame("a.xyz")) == "WriteFrame('a.xyz')"
    assert repr(TrajectoryWriter(None, "a.xyz")) == "TrajectoryWriter('a.xyz')"
    alarm = CalibrationAlarm(1e5)
    assert repr(alarm) == "<CalibrationAlarm: 0 of nan after 0 frames>"
