"""Fails where pyright knows the types of fewer than 95% of the package's public symbols; part of ``make lint``."""

import json
import os
import subprocess
import sys
from pathlib import Path

LEAST = 0.95
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Prints the score, and below the least also each symbol without a type and why."""
    # pyright takes the interpreter first on PATH; an editable install is not found by it, so the clone goes on the path
    bin_folder = str(Path(sys.executable).parent)
    env = os.environ | {"PATH": bin_folder + os.pathsep + os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = ["pyright", "--verifytypes", "pyro_align", "--ignoreexternal", "--outputjson"]
    found = json.loads(subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True).stdout)
    report = found["typeCompleteness"]
    score = report["completenessScore"]
    print(f"types of {score:.1%} of the public symbols are known (at least {LEAST:.0%} wanted)")
    if score >= LEAST:
        return 0
    for symbol in report["symbols"]:
        if symbol["isExported"] and not symbol["isTypeKnown"]:
            reasons = (diagnostic["message"].splitlines()[0] for diagnostic in symbol["diagnostics"])
            print(symbol["name"], *reasons, sep="\n    ")
    return 1


if __name__ == "__main__":
    sys.exit(main())
