"""slim_wheel.py WHEEL PATTERN - leaves out of a wheel the files whose path matches a pattern."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path


def slim(wheel: Path, pattern: re.Pattern[str]) -> None:
    """Writes a wheel again without some of its files, and without their lines in its RECORD."""
    new = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as out:
        for item in old.infolist():
            if pattern.search(item.filename):
                continue
            content = old.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if not pattern.search(line.split(",")[0])).encode()
            out.writestr(item, content, zipfile.ZIP_DEFLATED)
    new.replace(wheel)


if __name__ == "__main__":
    slim(Path(sys.argv[1]), re.compile(sys.argv[2]))
