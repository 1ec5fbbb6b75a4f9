"""Several `collage-mpi` command lines, one after the other, in one world.

Usage: many.py CASES.json OUT: CASES is a list of argument lists. Every rank leaves
OUT/RANK.json: a list of {code, out, err}, what each command returned and printed there.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from collage_mpi.cli import main
from collage_mpi.system.environment import launcher_rank

cases = json.loads(Path(sys.argv[1]).read_text())
found = []
for case in cases:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(case)
        except SystemExit as leave:  # argparse
            code = leave.code
    found.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
Path(sys.argv[2], f"{launcher_rank()}.json").write_text(json.dumps(found))
