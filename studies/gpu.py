"""The ResNet study within minutes of one GPU: widths in turn, posteriors and points of two seeds side by side.

python -m studies.gpu --data-dir DATA --minutes 9.5 --out OUT

Each width is fitted for as many passes as its share of the time allows, aligned, and measured before the next one
begins, so that whatever stops the run leaves the widths before. Options that are not its own go to
:mod:`studies.resnet`; the command that measures a width again, from the fits that are kept, is printed.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Sequence

from studies import resnet

# ten minutes of one GPU in mind; what comes later on the command line wins
RESNET = shlex.split(
    "--device cuda --data cifar10_jpeg --train 50000 --batch 256 --augment --half --test 2000 --evaluate 1000 --draws 4"
)
FITTING = 0.7  # of a width's time; the rest is for alignment and barriers
GROWTH = 0.75  # a width's share of the time grows with this power of it


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the study with command line options."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--minutes", type=float, default=9.5, help="time for everything")
    made.add_argument("--widths", type=float, nargs="+", default=[1, 2, 4, 8, 16], help="multiples of the channels")
    made.add_argument("--passes", type=int, default=40, help="greatest number of passes over the data in each fit")
    options, rest = made.parse_known_args(argv)
    ends = time.monotonic() + 60 * options.minutes
    for i, width in enumerate(options.widths):
        share = width**GROWTH / sum(later**GROWTH for later in options.widths[i:])
        until = time.monotonic() + FITTING * share * (ends - time.monotonic())
        study = [*RESNET, *rest, "--width", f"{width:g}", "--epochs", str(options.passes)]
        read = resnet.read(study)
        lab = resnet.lab_of(read)
        for data, norm in itertools.product(read.data, read.norm):
            settings = [resnet.setting_of(read, data, norm, width, guide) for guide in read.guides]
            passes = lab.fit_together(settings, read.seeds, until - time.monotonic())
            study[-1] = str(passes)
            print(f"python -m studies.resnet {shlex.join(study)}", file=sys.stderr, flush=True)
            resnet.main([*study, "--data", data, "--norm", norm])


if __name__ == "__main__":
    main()
