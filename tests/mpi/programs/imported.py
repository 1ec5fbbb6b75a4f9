"""One `collage-mpi` command line, after which every rank says what it has imported.

Usage: imported.py OUT ARGUMENTS ...: every rank leaves OUT/RANK.json, a list of packages.
"""

import json
import sys
from pathlib import Path

from collage_mpi.cli import main
from collage_mpi.system.environment import launcher_rank

code = main(sys.argv[2:])
packages = sorted({name.partition(".")[0] for name in sys.modules})
Path(sys.argv[1], f"{launcher_rank()}.json").write_text(json.dumps(packages))
sys.exit(code)
