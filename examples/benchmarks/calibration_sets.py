"""The frames of `calibration.py`, free of torch for `mace_committee.py`."""

# Calibration frames; test set like the training; foreign sets by name.
DATASETS: dict[str, tuple[str, str, dict[str, str]]] = {
    "acac": (
        "acac/train_300K.extxyz.xz@350:500",
        "acac/test_MD_300K_A.extxyz.xz",
        {"600 K": "acac/test_MD_600K_A.extxyz.xz"},
    ),
    "3bpa": (
        "3bpa/train_300K.extxyz.xz@350:500",
        "3bpa/test_mixedT_300K_A.extxyz.xz",
        {
            "600 K": "3bpa/test_mixedT_600K_A.extxyz.xz",
            "1200 K": "3bpa/test_mixedT_1200K_A.extxyz.xz",
        },
    ),
    "zeolite": (
        "zeolite_sio2/calib.extxyz.xz",
        "zeolite_sio2/test_id_A.extxyz.xz",
        {"new frameworks": "zeolite_sio2/ood_topology_1_A.extxyz.xz"},
    ),
    "water": ("water_deepmd/calib.extxyz.xz@20:80", "water_deepmd/test_A.extxyz.xz", {}),
}
