"""The layers of the package and the limits that keep it readable, checked on the source."""

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent / "ase_bayesmlip"
PACKAGE = "ase_bayesmlip"

# Imports point down: a module sees its own layer and those below.
LAYERS = [
    {"_version", "files", "graph", "prediction", "card", "config", "scores"},
    {"nn", "structures", "metrics", "statistics"},
    {"training", "calibration"},
    {"posteriors", "serving"},
    {"calculator", "ase_plugin", "md", "active", "engines", "foreign", "evaluation"},
    {"cli", "report", "__main__"},
]
FREE = {"__init__", "testing"}

# Part -> prefixes that it must not import, whatever the layers say.
FORBIDDEN = {
    "card": ["torch"],
    "config": ["torch"],
    "metrics": ["torch"],
    "evaluation": ["torch", "ase_bayesmlip.posteriors", "ase_bayesmlip.training"],
    "calibration": ["torch"],
    "md": ["torch", "ase_bayesmlip.nn", "ase_bayesmlip.training", "ase_bayesmlip.posteriors"],
    "posteriors": ["ase_bayesmlip.serving"],
    "serving": ["ase_bayesmlip.posteriors"],
}
# Parts that see nothing of learning and inference but the loader of served files.
ONLY_RUNTIME = {"calculator", "active", "engines", "foreign", "md"}
RUNTIME = (f"{PACKAGE}.serving.runtime", f"{PACKAGE}.serving.served_calculator")

MAX_MODULE_LINES = 330
MAX_BODY_LINES = 50

# Longer than the limit, and better so: name -> the reason in one line.
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}

# Module without a test file of its name -> the file in tests/ that tests it.
COVERED_BY = {
    "__main__.py": "integration/test_packaging.py",
    "_version.py": "integration/test_packaging.py",
    "card/describe.py": "unit/cli/test_main.py",
    "card/kinds.py": "unit/card/test_rules.py",
    "cli/compile.py": "contract/test_compiled.py",
    "cli/demo.py": "integration/test_cli_md.py",
    "config/loss.py": "unit/config/test_run.py",
    "evaluation/intervals.py": "unit/evaluation/test_evaluate.py",
    "md/events.py": "unit/md/test_monitor.py",
    "md/integrators.py": "unit/md/test_constraints.py",
    "md/periodicity.py": "unit/md/test_references.py",
    "md/reference_xtb.py": "unit/md/test_references.py",
    "md/summary.py": "unit/md/test_simulation.py",
    "nn/build.py": "unit/nn/test_potential.py",
    "nn/evidential/head.py": "unit/nn/evidential/test_potential.py",
    "nn/evidential/invariant.py": "unit/nn/evidential/test_potential.py",
    "nn/evidential/tensor_source.py": "unit/nn/evidential/test_potential.py",
    "nn/layer.py": "unit/nn/test_potential.py",
    "nn/race_plus.py": "unit/nn/test_potential.py",
    "nn/stacked/blocks.py": "unit/nn/stacked/test_potential.py",
    "nn/stacked/kernels.py": "unit/nn/stacked/test_products.py",
    "nn/stacked/pairs.py": "unit/nn/stacked/test_potential.py",
    "nn/stacked/operators.py": "unit/nn/stacked/test_products.py",
    "posteriors/around_members.py": "integration/test_posteriors.py",
    "posteriors/ensemble.py": "integration/test_training.py",
    "posteriors/evidential.py": "integration/test_evidential.py",
    "posteriors/options.py": "integration/test_posteriors.py",
    "posteriors/point.py": "integration/test_training.py",
    "report/files.py": "integration/test_cli_evaluate.py",
    "report/grid.py": "unit/report/test_figures.py",
    "serving/archive.py": "contract/test_file_format.py",
    "serving/calibrate.py": "contract/test_recalibration.py",
    "serving/compiler.py": "contract/test_compiled.py",
    "serving/export.py": "contract/test_served_model.py",
    "serving/runtime.py": "contract/test_served_model.py",
    "serving/self_test.py": "contract/test_file_format.py",
    "serving/served_model.py": "contract/test_served_model.py",
    "serving/variance_scaling.py": "contract/test_recalibration.py",
    "structures/extxyz_fields.py": "unit/structures/test_extxyz.py",
    "testing.py": "contract/test_served_model.py",
    "training/component_loss.py": "unit/training/test_evidential_loss.py",
    "training/distributed.py": "integration/test_training_distributed.py",
    "training/epochs.py": "unit/training/test_trainer.py",
    "training/state.py": "integration/test_training.py",
}

MODULES = sorted(ROOT.rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in MODULES]
each_module = pytest.mark.parametrize("path", MODULES, ids=NAMES)


def part_of(path):
    """First component below the package: 'nn', 'calculator', ..."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


@functools.cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Absolute names of everything that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def starts_with(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


def layer(part):
    return next(index for index, parts in enumerate(LAYERS) if part in parts)


def test_every_part_has_a_layer():
    assert {part_of(path) for path in MODULES} <= set.union(*LAYERS) | FREE


@each_module
def test_imports_point_down(path):
    if part_of(path) in FREE:
        return
    for name in imports(path):
        if not starts_with(name, PACKAGE) or name == PACKAGE:
            continue
        target = name.split(".")[1]
        if target in FREE:
            assert target != "testing" or part_of(path) == "cli", f"{name} is for tests"
            continue
        assert layer(target) <= layer(part_of(path)), f"{path.name} imports {name}"


def module_of(name):
    """The file that an imported name is of or in; None if it is not of this package."""
    parts = name.split(".")[1:]
    while parts:
        for path in (
            ROOT.joinpath(*parts).with_suffix(".py"),
            ROOT.joinpath(*parts, "__init__.py"),
        ):
            if path in MODULES:
                return path
        parts = parts[:-1]
    return None


def test_no_circles():
    """Imports inside functions and for type checkers count as well."""
    graph = {
        path: {module_of(name) for name in imports(path) if starts_with(name, PACKAGE)}
        - {None, path}
        for path in MODULES
    }
    while graph:
        leaves = {path for path, targets in graph.items() if not targets & graph.keys()}
        assert leaves, f"a circle among {sorted(p.relative_to(ROOT).as_posix() for p in graph)}"
        for path in leaves:
            del graph[path]


def test_what_runs_a_file_sees_no_training():
    """`serving` reads the frames of a run when it writes a file, and then never again."""
    seen, left = set(), [ROOT / "serving" / "runtime.py"]
    while left:
        path = left.pop()
        assert part_of(path) != "training"
        seen.add(path)
        found = {module_of(name) for name in imports(path) if starts_with(name, PACKAGE)}
        left += found - seen - {None}


def test_the_house_has_six_floors():
    """A part lies one floor above the highest that it imports; the door, `__main__`, is none."""
    below = {}
    for path in MODULES:
        parts = {part_of(module_of(name)) for name in imports(path) if starts_with(name, PACKAGE)}
        below.setdefault(part_of(path), set()).update(parts - {part_of(path), "__init__"})

    def floor(part):
        return 1 + max(map(floor, below[part]), default=0)

    assert max(map(floor, below.keys() - {"__main__"})) <= 6


@each_module
def test_forbidden_imports(path):
    for name in imports(path):
        for prefix in FORBIDDEN.get(part_of(path), []):
            assert not starts_with(name, prefix), f"{path.name} imports {name}"


@each_module
def test_calculator_and_observers_see_only_the_runtime(path):
    if part_of(path) not in ONLY_RUNTIME:
        return
    for name in imports(path):
        for part in LAYERS[2] | LAYERS[3] | {"nn"}:
            if starts_with(name, f"{PACKAGE}.{part}"):
                assert name.startswith(RUNTIME), f"imports {name}"


@each_module
def test_torchscript_stays_in_serving(path):
    if part_of(path) == "serving":
        return
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute) and node.attr == "jit":
            assert ast.unparse(node) != "torch.jit", f"line {node.lineno}"
    assert not [name for name in imports(path) if starts_with(name, "torch.jit")]


@each_module
def test_only_the_command_line_prints(path):
    if part_of(path) == "cli":
        return
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.stdout.write", "sys.stderr.write"), node.lineno


@each_module
def test_no_global_state(path):
    """The state of other libraries is theirs, and this one has none."""
    setters = {
        "torch.manual_seed",
        "torch.set_default_dtype",
        "torch.set_default_device",
        "np.random.seed",
        "warnings.simplefilter",
        "logging.basicConfig",
    }
    for node in ast.walk(parse(path)):
        assert not isinstance(node, ast.Global), f"line {node.lineno}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in setters, f"line {node.lineno}"


@each_module
def test_nothing_is_unpickled(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert settings.get("weights_only") == "True", f"line {node.lineno}"
    assert not {"pickle", "cloudpickle", "joblib", "dill"} & imports(path)


@each_module
def test_names_say_what_a_module_is(path):
    assert path.stem not in {"utils", "helpers", "misc", "common", "tools"}


def has_test_file(module):
    return (TESTS / "unit" / module.parent / f"test_{module.name}").exists()


def test_every_module_has_a_test_file():
    """Of its name, or listed with the one that tests it; a list that says no more than is so."""
    bare = [Path(name) for name in NAMES if not name.endswith("__init__.py")]
    assert {str(module) for module in bare if not has_test_file(module)} == COVERED_BY.keys()
    assert not [name for name in COVERED_BY.values() if not (TESTS / name).exists()]


def test_every_unit_test_file_names_a_module():
    """As `test_<module>.py`, or `test_<module>_<topic>.py` for a part of what a module does."""
    for path in (TESTS / "unit").rglob("test_*.py"):
        folder = path.parent.relative_to(TESTS / "unit")
        name = path.stem.removeprefix("test_") + "_"
        known = [module.stem for module in (ROOT / folder).glob("*.py")]
        assert any(name.startswith(f"{stem}_") for stem in known), f"no module of {path}"


def n_lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


@each_module
def test_modules_are_short(path):
    name = path.relative_to(ROOT).as_posix()
    if name not in LONG_MODULES:
        assert n_lines(path) <= MAX_MODULE_LINES


def functions(path):
    return [
        node
        for node in ast.walk(parse(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def body_lines(function):
    """Lines of the body; the signature and the docstring do not count."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@each_module
def test_functions_are_short(path):
    name = path.relative_to(ROOT).as_posix()
    long = {
        f"{name}:{function.name}": body_lines(function)
        for function in functions(path)
        if body_lines(function) > MAX_BODY_LINES
    }
    assert not {key: lines for key, lines in long.items() if key not in LONG_FUNCTIONS}


def test_exceptions_are_needed():
    for name in LONG_MODULES:
        assert n_lines(ROOT / name) > MAX_MODULE_LINES, f"{name} is short now"
    for key in LONG_FUNCTIONS:
        name, function = key.split(":")
        found = [node for node in functions(ROOT / name) if node.name == function]
        assert max(map(body_lines, found)) > MAX_BODY_LINES, f"{key} is short now"


def test_the_checks_see_what_they_look_for(tmp_path):
    """The helpers of this file find imports in functions, and count lines as they should."""
    path = tmp_path / "module.py"
    path.write_text(
        'def f():\n    """Doc.\n\n    More.\n    """\n    import torch.jit\n    x = 1\n'
    )
    assert imports(path) == {"torch.jit"}
    assert body_lines(functions(path)[0]) == 2
