"""Draws the figures of the pages: `python docs/images/draw.py docs/discovery.md`.

Runs a page's Python blocks in order. An image linked below a block is that block's current figure.
"""

import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PART = re.compile(r"^```python\n(?P<code>.*?)^```$|^!\[.*?\]\((?P<image>[^)]*)\)$", re.MULTILINE | re.DOTALL)

for page in map(Path, sys.argv[1:]):
    namespace = {"__name__": "__main__"}
    for part in PART.finditer(page.read_text(encoding="utf-8")):
        if part["code"]:
            exec(part["code"], namespace)
        elif plt.get_fignums():
            plt.gcf().savefig(page.parent / part["image"], dpi=110)
            print("drew", page.parent / part["image"])
