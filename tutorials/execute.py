"""Execute the tutorials: each `NN_name.py` (jupytext, percent format) becomes `NN_name.ipynb` with its output.

python tutorials/execute.py [tutorials/01_two_posteriors.py ...]
"""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm misses ipywidgets; nothing here draws a bar
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(text, timeout=300):
    """The notebook of a text half, run from top to bottom. Running it again gives the same file but for its output."""
    notebook = jupytext.read(text)
    notebook.metadata["kernelspec"] = KERNEL
    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number}"
    client = NotebookClient(notebook, timeout=timeout, record_timing=False, resources={"metadata": {"path": str(HERE)}})
    client.execute(env=os.environ | QUIET)
    notebook.metadata.pop("language_info", None)  # the version of the Python that ran it
    return notebook


def main(texts):
    for text in texts or sorted(HERE.glob("[0-9]*.py")):
        notebook = Path(text).with_suffix(".ipynb")
        nbformat.write(execute(text), notebook)
        print(notebook.name)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
