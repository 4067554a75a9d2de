"""Figure of step times, ours against MACE, from the JSON lines of `step_time.py`.

python examples/benchmarks/plot_step_time.py examples/benchmarks/results/step_time.jsonl \
    -o examples/figures/step_time.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ase_bayesmlip.report.style import BLUE, GREEN, GREY, ORANGE, STYLE, VERMILLION

TITLES = {
    "3bpa": "3BPA, 27 atoms",
    "water_192": "water, 192 atoms",
    "water_1536": "water, 1,536 atoms",
}
# Model, backend and posterior: label, colour, marker.
SERIES = {
    ("ase_bayesmlip", "aoti", "ensemble"): ("this package, compiled", BLUE, "o"),
    ("ase_bayesmlip", "aoti", "laplace"): ("… last-layer Laplace", GREEN, "P"),
    ("ase_bayesmlip", "aoti", "evidential"): ("… e²IP", ORANGE, "X"),
    ("ase_bayesmlip", "torchscript", "ensemble"): ("this package, TorchScript", GREY, "s"),
    ("MACE", "plain", ""): ("MACE", VERMILLION, "D"),
    ("MACE", "compile", ""): ("MACE, torch.compile", VERMILLION, "^"),
    ("MACE", "cueq", ""): ("MACE, cuEquivariance", VERMILLION, "v"),
}


def read_lines(path: Path, device: str) -> list[dict[str, Any]]:
    """The newest line of every case on that device."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["device"] == device:
            newest[line["system"], line["case"]] = line
    if not newest:
        raise SystemExit(f"{path} has no lines of device {device!r}")
    return list(newest.values())


def draw_system(ax: Axes, lines: list[dict[str, Any]], title: str) -> None:
    """Time against members, on logarithmic axes; bars from quartile to quartile."""
    for series, (label, colour, marker) in SERIES.items():
        found = sorted(
            (line["members"], line["median_ms"], *line["quartiles_ms"])
            for line in lines
            if (line["model"], line["backend"], line.get("posterior", "")) == series
        )
        if not found:
            continue
        members, medians, low, high = zip(*found, strict=True)
        ax.plot(members, medians, color=colour, marker=marker, ms=4.5, lw=1.2, label=label)
        ax.vlines(members, low, high, color=colour, lw=1.2)
        if series == ("MACE", "plain", ""):
            ax.axhline(medians[0], color=colour, lw=0.8, ls=":")
            ax.annotate(
                "one MACE",
                (1, medians[0]),
                (0, -3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=7,
                color=colour,
            )
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    members = sorted({line["members"] for line in lines})
    ax.set_xlim(members[0] / 1.25, members[-1] * 1.25)
    ax.set_xticks(members, [str(n) for n in members])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", lw=0.4, color="#DDDDDD")
    ax.set_axisbelow(True)
    ax.set_xlabel("members (MACE: models)")


def figure(lines: list[dict[str, Any]]) -> Figure:
    """One panel per system."""
    systems = [name for name in TITLES if any(line["system"] == name for line in lines)]
    drawing = Figure(figsize=(2.9 * len(systems) + 0.4, 3.1), layout="constrained")
    panels = drawing.subplots(1, len(systems), squeeze=False)[0]
    for ax, name in zip(panels, systems, strict=True):
        draw_system(ax, [line for line in lines if line["system"] == name], TITLES[name])
    panels[0].set_ylabel("time of one step (ms)")
    shown: dict[str, Any] = {}
    for ax in panels:
        handles, labels = ax.get_legend_handles_labels()
        shown.update(zip(labels, handles, strict=True))
    drawing.legend(shown.values(), shown.keys(), loc="outside upper left", ncols=len(shown))
    return drawing


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path, help="JSON lines of step_time.py")
    parser.add_argument("-o", "--output", type=Path, default=Path("examples/figures/step_time.png"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    lines = read_lines(arguments.lines, arguments.device)
    with mpl.rc_context(STYLE):
        figure(lines).savefig(arguments.output, dpi=160)
    print(arguments.output)


if __name__ == "__main__":
    main()
