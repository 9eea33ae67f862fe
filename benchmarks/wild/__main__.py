"""python -m benchmarks.wild --jobs | --programs | --networks [--only NAME ...] [--csv FILE]"""

import argparse
import collections
import importlib
import pkgutil
import warnings

import pandas as pd

from benchmarks.wild import jobs
from benchmarks.wild.catalog import NETWORKS, PROGRAMS
from benchmarks.wild.grade import grade


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group(required=True)
    for name in ("jobs", "programs", "networks"):
        kind.add_argument(f"--{name}", action="store_const", const=name, dest="kind")
    parser.add_argument("--only", nargs="+", default=None, help="names to run, or beginnings of names")
    parser.add_argument("--csv", default=None, help="file for the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = run_jobs(options.only) if options.kind == "jobs" else run_grades(options.kind, options.only)
    if options.csv:
        pd.DataFrame(rows).to_csv(options.csv, index=False)


def chosen(entries, only):
    """The entries whose names begin with one of those asked for."""
    return {name: e for name, e in entries.items() if not only or name.startswith(tuple(only))}


def run_jobs(only):
    """Runs the jobs, prints a line for each, returns the table's rows."""
    jobs.load()
    rows = []
    for name, make in chosen(jobs.JOBS, only).items():
        outcome = jobs.run(name)
        end = "complete" if outcome.complete else f"stops at {outcome.stage}: {outcome.error[:150]}"
        print(f"{name:22s} {outcome.seconds:5.1f} s  {end}", flush=True)
        stage = "complete" if outcome.complete else outcome.stage
        row = {"job": name, "source": make.source, "stage": stage, "error": outcome.error[:200]}
        rows.append({**row, "seconds": round(outcome.seconds, 1), "atoms": outcome.atoms})
    print(f"{sum(r['stage'] == 'complete' for r in rows)} of {len(rows)} jobs run to the end")
    return rows


def load(kind):
    """Imports every file of `programs` or `networks`; returns the list."""
    package = importlib.import_module(f"benchmarks.wild.{kind}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return PROGRAMS if kind == "programs" else NETWORKS


def run_grades(kind, only):
    """Grades the entries, prints a line for each that is not exact and the totals, returns the table's rows."""
    rows = []
    for name, entry in chosen(load(kind), only).items():
        one = grade(entry)
        row = {"name": name, "source": entry.source, "grade": one.grade, "found": round(one.found, 2)}
        rows.append({**row, "by hand": round(one.by_hand, 2), "reason": one.reason[:200]})
        if one.grade != "exact":
            print(f"{one.grade:8s} {name:36s} {one.found:7.2f} of {one.by_hand:7.2f}  {one.reason[:180]}", flush=True)
    totals = collections.Counter(r["grade"] for r in rows)
    print(f"{len(rows)} {kind}: " + ", ".join(f"{n} {g}" for g, n in totals.most_common()))
    return rows


if __name__ == "__main__":
    main()
