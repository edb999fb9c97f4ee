#!/usr/bin/env python3
"""Checks every #include "folder/..." of src/ against the table of docs/design.md, section 1.

The table is the only place where the layers are written down: a row names a folder and what it may
include. Prints one line per violation and exits 1 if there is any.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def allowed():
    """{'gguf': {'base', 'tensor', 'gguf'}, ...} in the order of the table."""
    table, above = {}, set()
    for line in (ROOT / "docs/design.md").read_text().splitlines():
        row = re.match(r"\| `src/(\w+)` \|.*\| ([\w ]+?) \|$", line)
        if not row:
            continue
        folder, may = row.groups()
        above.add(folder)
        if may in ("all", "all above"):
            table[folder] = set(above)
        elif may == "nothing of ours":
            table[folder] = {folder}
        else:
            table[folder] = set(may.split()) | {folder}
    return table


def main():
    table, bad = allowed(), []
    if not table:
        sys.exit("tools/layers.py: no table of folders in docs/design.md")
    for path in sorted((ROOT / "src").rglob("*.[ch]")):
        folder = path.relative_to(ROOT / "src").parts[0]
        for number, line in enumerate(path.read_text().splitlines(), 1):
            inc = re.match(r'\s*#\s*include\s+"(\w+)/', line)
            if inc and inc[1] not in table.get(folder, set()):
                bad.append(f"{path.relative_to(ROOT)}:{number}: src/{folder} may not include {inc[1]}/")
    print("\n".join(bad) if bad else f"layers: {len(table)} folders, every include allowed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
