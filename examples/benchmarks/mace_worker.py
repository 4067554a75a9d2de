"""Times MACE in its own environment for `step_time.py`, which starts it and talks to it by pipe.

A request is one line of JSON on standard input, an answer one line on standard output:

``{"do": "prepare", "case", "atoms", "members", "dtype", "device", "folder", "option"}``
    Makes a calculator with that many untrained models.
``{"do": "turn", "case"}``
    The seconds of some evaluations, see `Walk.turn`.
``{"do": "forget"}``
    Drops all cases.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

# MACE pickles whole models, which torch reads only with this switch.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"


def standard_output() -> TextIO:
    """Standard output for answers alone; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def build(atoms: Any, seed: int, dtype: str, path: Path) -> None:
    """Save an untrained model of the shape that `mace_acac.sh` trains."""
    import numpy as np
    import torch
    from e3nn import o3
    from mace import modules
    from mace.data.neighborhood import get_neighborhood

    torch.set_default_dtype(getattr(torch, dtype))
    torch.manual_seed(seed)
    elements = sorted(set(atoms.numbers.tolist()))
    edges = get_neighborhood(atoms.positions, 5.0, tuple(atoms.pbc), np.array(atoms.cell))[0]
    interaction = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=interaction,
        interaction_cls_first=interaction,
        num_interactions=2,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps("32x0e + 32x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=edges.shape[1] / len(atoms),
        atomic_numbers=elements,
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        use_reduced_cg=False,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    torch.save(model, path)


def prepare(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A walk with MACE's calculator, and what to report of it."""
    import e3nn
    import mace
    import torch
    from ase import Atoms
    from mace.calculators import MACECalculator
    from walk import Walk

    atoms = Atoms(**request["atoms"])
    name = f"mace-{mace.__version__}-{torch.__version__}-{atoms.get_chemical_formula()}"
    paths = []
    for seed in range(request["members"]):
        path = Path(request["folder"]) / f"{name}-{request['dtype']}-{seed}.model"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            build(atoms, seed, request["dtype"], path)
        paths.append(str(path))
    options = {"plain": {}, "compile": {"compile_mode": "default"}, "cueq": {"enable_cueq": True}}
    atoms.calc = MACECalculator(
        model_paths=paths,
        device=request["device"],
        default_dtype=request["dtype"],
        **options[request["option"]],
    )
    walk = Walk(atoms)
    walk.step()
    about = {
        "mace": mace.__version__,
        "e3nn": e3nn.__version__,
        "mace_torch": str(torch.__version__),
        "torch_threads": torch.get_num_threads(),
        "n_parameters": sum(p.numel() for p in atoms.calc.models[0].parameters()),
    }
    return walk, about


def main() -> None:
    """Answer requests until the input ends."""
    answers = standard_output()
    walks: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            walks[request["case"]], answer = prepare(request)
        elif request["do"] == "turn":
            answer = {"seconds": walks[request["case"]].turn()}
        else:
            walks.clear()
            answer = {}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
