"""The papers behind a file: which, by its card, and that the table of them is sound."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from ase_bayesmlip import __version__
from ase_bayesmlip.card import read_card
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.cli.papers import bibtex, cite, in_words, papers_of

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "data" / "ethanol_ensemble.pt"
RECORD = {"method": "split"}
# Of the whole source, papers that the table has under the number that the code cites.
CITED = set(
    re.findall(
        r"arXiv[ :](\d{4}\.\d{5})",
        "".join(path.read_text("utf-8") for path in (ROOT / "ase_bayesmlip").rglob("*.py")),
    )
)


@pytest.fixture(scope="module")
def card():
    return read_card(SHIPPED)


def changed(card, loss=None, posterior=None, **fields):
    config = dict(card.config)
    config["loss"] = config["loss"] | (loss or {})
    config["posterior"] = posterior or config["posterior"]
    return dataclasses.replace(card, config=config, **fields)


def test_of_the_shipped_ensemble(card):
    assert papers_of(card) == {
        "backbone": ["race", "dimenet", "mace"],
        "posterior": ["deep_ensembles"],
        "loss": ["race", "beta_nll"],
        "optimiser": ["adamw", "amsgrad"],
        "thresholds": ["conformal"],
        "software": ["ase_bayesmlip", "ase", "e3nn", "pytorch"],
    }


@pytest.mark.parametrize(
    ("change", "subject", "names"),
    [
        ({"kind": "point", "posterior": {"kind": "point"}}, "posterior", None),
        ({"kind": "swag", "posterior": {"members": 1}}, "posterior", ["swag"]),
        ({"kind": "swag", "posterior": {"members": 4}}, "posterior", ["swag", "multiswag"]),
        ({"kind": "ivon", "posterior": {"members": 1}}, "posterior", ["ivon"]),
        ({"kind": "ivon"}, "optimiser", ["adamw", "amsgrad", "ivon"]),
        ({"kind": "laplace", "posterior": {"members": 1}}, "posterior", ["laplace"]),
        (
            {"kind": "laplace", "posterior": {"members": 4}, "n_draws": 8},
            "posterior",
            ["laplace", "llpr", "deep_ensembles"],
        ),
        (
            {"kind": "evidential", "posterior": {"members": 1}, "loss": {"kind": "evidential"}},
            "posterior",
            ["e2ip", "multivariate_evidential"],
        ),
        ({"kind": "evidential", "loss": {"kind": "eip"}}, "posterior", ["eip"]),
        ({"loss": {"kind": "eip"}}, "loss", ["eip"]),
        ({"loss": {"kind": "mse"}}, "loss", None),
        ({"loss": {"kind": "nll_e"}}, "loss", ["beta_nll"]),
        ({"loss": {"beta": 0.0}}, "loss", ["race"]),
        ({"backbone": "race"}, "backbone", ["race", "dimenet"]),
        ({"calibration": {}}, "thresholds", None),
        (
            {"recalibrations": [RECORD]},
            "calibration",
            ["scaled_variances", "hierarchical_conformal", "calibrated_regression"],
        ),
        (
            {"recalibrations": [RECORD | {"method": "none"}]},
            "calibration",
            ["hierarchical_conformal", "calibrated_regression"],
        ),
        ({"compiled": [{}]}, "software", ["ase_bayesmlip", "ase", "e3nn", "pytorch", "pytorch2"]),
    ],
)
def test_of_each_kind_of_file(card, change, subject, names):
    assert papers_of(changed(card, **change)).get(subject) == names


def test_a_card_without_configuration_names_what_it_can(card):
    found = papers_of(dataclasses.replace(card, config={}))
    assert "loss" not in found
    assert found["posterior"] == ["deep_ensembles"]


def test_entries_are_whole_and_their_numbers_are_those_of_the_source():
    for name, entry in bibtex().items():
        assert entry.count("{") == entry.count("}")
        assert re.match(r"@(article|inproceedings|software){\w+,\n(  \w+ = {.*},\n)+}$", entry)
        if name != "ase_bayesmlip":
            assert re.search(r"^  (doi|eprint) = ", entry, flags=re.MULTILINE), name
    numbers = set(re.findall(r"eprint = {(.*)}", "".join(bibtex().values())))
    # Optimiser and libraries are used, not implemented here; eIP is cited by its name.
    assert numbers - CITED == {"1711.05101", "1904.09237", "2207.09453", "1912.01703", "2407.13994"}


def test_a_paper_in_words():
    assert in_words(bibtex()["conformal"]) == (
        "Lei et al.: Distribution-Free Predictive Inference for Regression, Journal of the "
        "American Statistical Association 113, 1094–1111, 2018, doi:10.1080/01621459.2017.1307116"
    )
    assert in_words(bibtex()["e3nn"]) == (
        "Geiger, Smidt: e3nn: Euclidean Neural Networks, 2022, arXiv:2207.09453"
    )


def test_the_command_prints_both_forms(card, capsys):
    assert main(["inspect", str(SHIPPED), "--cite"]) == 0
    text = capsys.readouterr().out
    assert "posterior\n  Lakshminarayanan, Pritzel, Blundell: Simple and" in text
    assert main(["inspect", str(SHIPPED), "--bibtex"]) == 0
    entries = capsys.readouterr().out
    assert entries.count("@") == 12  # RACE is in two subjects and printed once
    assert entries.strip() == cite(card, as_bibtex=True)


def test_citation_file_has_the_version_of_the_package():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert content["version"] == __version__
