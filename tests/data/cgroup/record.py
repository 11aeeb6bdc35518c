"""Record the files of one group, as the kernel writes them, for the tests of the readers::

    python tests/data/cgroup/record.py OUT FOLDER...

Every file of the folders that the readers know is copied to OUT; run it while the group's processes do something.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cameleer.drivers.cgroup.fields import files


def main() -> int:
    out, *folders = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    version = 2 if any((folder / "cgroup.controllers").exists() for folder in folders) else 1
    for core in (True, False):
        for pair in files(version, core):
            for name in pair:
                for folder in folders:
                    if name and (folder / name).exists():
                        (out / name).write_bytes((folder / name).read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
