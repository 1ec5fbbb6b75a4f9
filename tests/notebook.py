"""A notebook's cells, run without Jupyter: in one fresh process, from top to bottom.

`python tests/notebook.py docs/predictions.ipynb` runs it and writes what its cells gave into it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

# Reads the cells as JSON, and prints what each gives as one line of JSON: what it printed, and the
# value of its last expression as Jupyter would show it.
RUNNER = """
import ast, contextlib, io, json, sys
space = {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin), 1):
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(tree, f"<cell {number}>", "exec"), space)
        value = None
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"<cell {number}>", "eval"), space)
            if value is not None:
                print(value if type(value).__module__.startswith("pandas") else repr(value))
    print(json.dumps(told.getvalue()), flush=True)
"""


def run_cells(path: Path, folder: Path, timeout_s: float = 200.0) -> list[str]:
    """Run the code cells in `folder`; what each showed. Raises AssertionError, with its stderr."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(code),
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def write_outputs(path: Path, shown: list[str]) -> None:
    """Put what the code cells showed into the notebook."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, text) in enumerate(zip(cells, shown, strict=True), 1):
        cell["execution_count"] = number
        stream = {"output_type": "stream", "name": "stdout", "text": text.splitlines(True)}
        cell["outputs"] = [stream] if text else []
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        write_outputs(Path(sys.argv[1]), run_cells(Path(sys.argv[1]), Path(scratch)))
