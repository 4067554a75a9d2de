"""Write an evaluation as numbers, as a report and as figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ase_bayesmlip.files import write_whole

if TYPE_CHECKING:
    from ase_bayesmlip.evaluation import Evaluation


def write_evaluation(
    evaluation: Evaluation,
    json_path: Path | None = None,
    *,
    report: Path | None = None,
    figures: Path | None = None,
) -> list[Path]:
    """Write an evaluation, of any calculator, as numbers, as a report and as figures.

    Parameters
    ----------
    evaluation : Evaluation
    json_path, report : Path or None
        Files for the numbers and for the report.
    figures : Path or None
        Folder for the figures as PNG and PDF; made if need be.

    Returns
    -------
    list of Path
        What was written, each file whole or not at all, after everything was drawn.
    """
    files: dict[Path, bytes] = {}
    if json_path:
        text = json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        files[json_path] = (text + "\n").encode()
    if report or figures:
        from ase_bayesmlip.report.figures import evaluation_figures, render
        from ase_bayesmlip.report.html import html_report

        drawn = evaluation_figures(evaluation)
        images = {name: render(figure, "png") for name, figure in drawn.items()}
        if report:
            narrow = evaluation_figures(evaluation, columns=1)
            small = {name: render(figure, "png") for name, figure in narrow.items()}
            files[report] = html_report(evaluation, images, small).encode()
        if figures:
            for name, figure in drawn.items():
                files[figures / f"{name}.png"] = images[name]
                files[figures / f"{name}.pdf"] = render(figure, "pdf")
            figures.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        write_whole(path, content)
    return list(files)
