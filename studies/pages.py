"""Tables and figures of the pages, made again from the tables of results: ``python -m studies.pages docs/studies``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pandas as pd

from studies import runner
from studies.objectives import by_objective

STUDIES = (
    *("mnist", "width_depth", "convolutional", "resnet", "transformer"),
    *("families", "priors", "objectives", "merging", "rhat"),
)


def main(folder: str) -> None:
    """Writes each study's table, and its figure, from its CSV."""
    for name in STUDIES:
        study = importlib.import_module(f"studies.{name}")
        frame = pd.read_csv(Path(folder) / f"{name}.csv")
        runner.write_table(study.summary(frame), Path(folder) / f"{name}_table.md")
        if hasattr(study, "named") and len(by_objective(study.named(frame))):
            runner.write_table(by_objective(study.named(frame)), Path(folder) / f"{name}_objectives_table.md")
        study.draw(frame, Path(folder) if name == "width_depth" else Path(folder) / f"{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
