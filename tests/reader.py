"""Runs code as a reader would, in a process of its own, without waiting for the imports again."""

import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

PRELOADED = ["arviz", "matplotlib.pyplot", "pyro.infer.autoguide", "sklearn.datasets", "pyro_align.discovery"]

# Lengths of fits and chains, three digits and more. But a Laplace approximation needs a mode (02_full_covariance).
LENGTH = re.compile(
    r"(?<!guide_class, seed, )\b((?:max_|warmup_)?steps|warmup|draws|MCMC\(kernel, num_samples)=(\d{3,})\b"
)


def shortened(code: str) -> str:
    """The same lines with fits and chains of a quarter of their length."""
    return LENGTH.sub(lambda found: f"{found[1]}={int(found[2]) // 4}", code)


def run_as_reader(code: str, script: Path) -> subprocess.CompletedProcess:
    """Runs a script with float32, in its own directory, with warnings as they come.

    Its process branches off one that has imported what every page imports, and nothing more; where there is no such
    thing it starts from nothing.
    """
    script.write_text(code, encoding="utf-8")
    environment = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    if "forkserver" not in multiprocessing.get_all_start_methods():
        command = [sys.executable, str(script)]
        env = os.environ | environment
        return subprocess.run(command, cwd=script.parent, env=env, capture_output=True, text=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    os.environ.update(environment)
    process = context.Process(target=_run, args=(str(script),))
    process.start()
    process.join()
    said = (Path(f"{script}.{name}").read_text(encoding="utf-8") for name in ("out", "err"))
    return subprocess.CompletedProcess([str(script)], process.exitcode, *said)


def _run(script: str) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{script}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # a child's exit does not write what Python holds back
    os.chdir(os.path.dirname(script))
    sys.argv = [script]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        raise SystemExit(end.code) from None
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
