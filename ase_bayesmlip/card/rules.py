"""What each field of a model card may be: a card that was edited is refused, not half understood.

What no code reads may be anything. This module is free of torch.
"""

from __future__ import annotations

from typing import Any

from ase_bayesmlip.card.kinds import (
    CardError,
    Rule,
    anything,
    array,
    checksum,
    count,
    flag,
    integer,
    list_of,
    mapping,
    measured,
    number,
    one_of,
    or_null,
    record_of,
    text,
)

# Of everything in a served file.
UNITS = {"energy": "eV", "length": "Å", "forces": "eV/Å", "stress": "eV/Å³"}


def _elements(value: Any, name: str) -> None:
    list_of(integer(1, 118), least=1)(value, name)
    if len(set(value)) < len(value):
        raise CardError(name, value, "atomic numbers, each of them once")


# What a self-test compares: one number of the structure, or so many of each atom.
_OF_STRUCTURE = ("energy", "energy_var_epistemic", "energy_var_aleatoric")
_OF_ATOMS = {"forces": (3,), "forces_cov_epistemic": (3, 3), "forces_cov_aleatoric": (3, 3)}


def _probe(value: Any, name: str) -> None:
    if value == {}:
        return
    numbers = list_of(integer(1, 118), least=1)
    record_of({"numbers": numbers, "expected": mapping(anything)})(value, name)
    n_atoms = len(value["numbers"])
    # A deviation of NaN is the self-test's to refuse, which says what it means.
    expected = {key: array(1, finite=False) for key in _OF_STRUCTURE}
    expected |= {k: array(n_atoms, *shape, finite=False) for k, shape in _OF_ATOMS.items()}
    needed = {key: expected.pop(key) for key in ("energy", "forces")}
    record_of(
        {
            "positions": array(n_atoms, 3),
            "cell": array(3, 3),
            "pbc": list_of(flag, least=3),
            "expected": record_of(needed, expected),
        }
    )(value, name)
    unknown = sorted(value["expected"].keys() - needed.keys() - expected.keys())
    if unknown:
        raise CardError(f"{name}.expected", unknown, "values that a self-test compares")
    if len(value["pbc"]) != 3:
        raise CardError(f"{name}.pbc", value["pbc"], "three flags")


_COMPILED = record_of(
    {
        "device": one_of("cpu", "cuda"),
        "dtype": one_of("float32", "float64"),
        "fields": list_of(text, least=1),
        "torch": text,
        "machine": record_of(
            {"system": text, "machine": text},
            {"instructions": list_of(text), "capability": list_of(count)},
        ),
        "digest": text,
        "table_error": number(least=0.0),
        "deviation": mapping(number(least=0.0)),
    },
    {
        "lean_fields": list_of(text),
        "interface": count,
        "seconds": number(least=0.0),
        "sha256": mapping(checksum),
    },
)


_positive = number(above=0.0)
_FACTORS = record_of(
    dict.fromkeys(("forces_epistemic", "forces_aleatoric"), mapping(_positive))
    | dict.fromkeys(("energy_epistemic", "energy_aleatoric", "stress_epistemic"), _positive)
)


def _origin(value: Any, name: str) -> None:
    """The fields of `metrics.Origin`, and no others."""
    fields = {"n_members": or_null(count), "n_draws": count, "spherical": or_null(flag)}
    record_of({}, fields)(value, name)
    if value.keys() - fields.keys():
        raise CardError(name, value, f"a mapping with {', '.join(fields)}")


_LAW = record_of(
    {"name": text, "n_members": or_null(integer(2)), "n_draws": count, "spherical": flag}
)
_quantiles = list_of(or_null(number()))

_RECALIBRATION = record_of(
    {
        "method": text,
        "sha256": text,
        "n_frames": count,
        "factors": _FACTORS,
        "levels": array(-1),
        "conformal": record_of({}, {"forces": mapping(_quantiles), "energy": _quantiles}),
        "isotonic": record_of({}, {"forces": _quantiles, "energy": _quantiles}),
        "numbers": record_of(dict.fromkeys(("before", "after"), mapping(mapping(measured)))),
    },
    {
        "shape": one_of("ball", "ellipsoid"),
        "origin": _origin,
        "laws": mapping(_LAW),
        "frames": text,
    },
)

_scores = {"scores": mapping(array(-1))}
_sizes = {"n_atoms": list_of(integer(1))}
_FOLDS = list_of(record_of({"members": list_of(count, least=2), **_scores}, _sizes), least=2)


def _series(value: Any, name: str) -> None:
    """Scores, trajectory and number of atoms of the same frames."""
    record_of({**_scores, "trajectory": list_of(count), **_sizes})(value, name)
    for key, column in {"n_atoms": value["n_atoms"], **value["scores"]}.items():
        if len(column) != len(value["trajectory"]):
            raise CardError(f"{name}.{key}", column, "one number for each frame in trajectory")


_CALIBRATION = record_of(
    {},
    {
        **dict.fromkeys(("sha256", "frames"), text),
        "n_frames": count,
        "folds": _FOLDS,
        "series": _series,
        **_scores,
    },
)

_TRAINING = record_of(
    {},
    {
        **dict.fromkeys(("n_train", "n_valid"), count),
        **dict.fromkeys(("train_sha256", "valid_sha256", "train_frames", "valid_frames"), text),
        **dict.fromkeys(("has_stress", "has_lone_atoms"), flag),
        "lone_elements": list_of(count),
        "label_limits": record_of({}, {"force_max": number(0.0), "energy_per_atom": array(2)}),
    },
)

_CONFIG = record_of(
    {},
    {
        "data": record_of({}, {"keys": mapping(or_null(text)), "units": text}),
        "model": record_of({}, {"cutoff": _positive}),
        "loss": mapping(anything),
    },
)

FIELDS: dict[str, Rule] = {
    **dict.fromkeys(("kind", "backbone", "created"), text),
    **dict.fromkeys(
        ("has_epistemic", "has_aleatoric_energy", "has_aleatoric_forces", "evidential"), flag
    ),
    **dict.fromkeys(("n_parameters", "n_draws"), count),
    "versions": mapping(text),
    "units": record_of({}, {name: one_of(unit) for name, unit in UNITS.items()}),
    "n_members": integer(1),
    "ddof": integer(0, 1),
    "cutoff": _positive,
    "atomic_numbers": _elements,
    "dtype": one_of("float32", "float64"),
    "reference_energies": mapping(number()),
    "seed": or_null(count),
    "anchored": or_null(flag),
    "unfinished": list_of(text),
    "training": _TRAINING,
    "home": record_of(
        {},
        {
            **dict.fromkeys(("n_train", "n_valid", "n_features"), count),
            "gauge": text,
            "noise": mapping(_positive),
            "tenth": mapping(number(least=0.0)),
        },
    ),
    "calibration": _CALIBRATION,
    "recalibrations": list_of(_RECALIBRATION),
    "config": _CONFIG,
    "probe": _probe,
    "compiled": list_of(_COMPILED),
}


def check_card(content: dict[str, Any]) -> None:
    """Refuse a card with a field that is not what it must be, or two that contradict each other.

    Raises
    ------
    CardError
    """
    for name, value in content.items():
        FIELDS.get(name, anything)(value, name)
    _check_elements(content)
    for fold in content.get("calibration", {}).get("folds", []):
        if max(fold["members"]) >= content["n_members"]:
            raise CardError("calibration.folds", fold["members"], "numbers of members of the file")
    if content["n_members"] > 1 and content.get("ddof", 1) != 1:
        raise CardError("ddof", content["ddof"], "1, as the spread of several members has it")
    trained = content.get("config", {}).get("model", {}).get("cutoff", content["cutoff"])
    if trained != content["cutoff"]:
        raise CardError("cutoff", content["cutoff"], f"that of config.model, {trained}")
    programs = [(record["device"], record["dtype"]) for record in content.get("compiled", [])]
    if len(set(programs)) < len(programs):
        raise CardError("compiled", programs, "one program for each device and dtype")


def _check_elements(content: dict[str, Any]) -> None:
    """Every element that the file knows has its number in each table."""
    from ase.data import chemical_symbols

    known = [chemical_symbols[z] for z in content["atomic_numbers"]]
    tables = {"reference_energies": content["reference_energies"]}
    for index, record in enumerate(content.get("recalibrations", [])):
        for name in ("forces_epistemic", "forces_aleatoric"):
            tables[f"recalibrations[{index}].factors.{name}"] = record["factors"][name]
    for name, table in tables.items():
        if set(table) != set(known):
            raise CardError(name, sorted(table), f"a number for each of {', '.join(known)}")
    if strange := {*content.get("probe", {}).get("numbers", [])} - {*content["atomic_numbers"]}:
        raise CardError("probe.numbers", sorted(strange), "elements of the file")
