"""What `python` does, in a process that was forked: FILE, -m MODULE or -c CODE, and arguments."""

import runpy
import sys
from pathlib import Path

how = sys.argv[1]
del sys.argv[: 2 if how in ("-c", "-m") else 1]
if how == "-c":
    exec(sys.argv[0])
elif how == "-m":
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, str(Path(how).parent))
    runpy.run_path(how, run_name="__main__")
