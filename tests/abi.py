"""Whether csrc/abi_linux.h knows all that is in a linux/tls.h: part of `make abi`.

    python -m tests.abi HEADER

The compiler holds each number and struct of ours to the header (csrc/abi_linux_check.c), and finds
an attribute of sock_diag beyond ours.  It cannot list macros: an option of a socket, a cipher or a
control message that came later is found here, by its name.
"""

from __future__ import annotations

import pathlib
import re
import sys

OURS = pathlib.Path(__file__).resolve().parents[1] / "csrc" / "abi_linux.h"
NAME = re.compile(
    r"^[ \t]*#[ \t]*define[ \t]+(TLS_\w+)[ \t]|\bstruct[ \t]+(tls\w+)[ \t]*\{", re.MULTILINE
)
#: What is said otherwise in ours: sizes by the structs, versions as numbers.
SAID_OTHERWISE = re.compile(
    r"TLS_CIPHER_\w+_(IV|KEY|SALT|TAG|REC_SEQ)_SIZE|TLS_\w+_VERSION_(MAJOR|MINOR)|TLS_INFO_MAX"
)


def unknown(header: str, ours: str) -> list[str]:
    """Names of numbers and structs in ``header`` that ``ours`` does not have."""
    there = [number or struct for number, struct in NAME.findall(header)]
    known = set(re.findall(r"\w+", ours))
    return [name for name in there if name not in known and not SAID_OTHERWISE.fullmatch(name)]


def main() -> int:
    names = unknown(pathlib.Path(sys.argv[1]).read_text(), OURS.read_text())
    for name in names:
        print(f"{name} is in the header, and not in {OURS.name}")
    return bool(names)


if __name__ == "__main__":
    sys.exit(main())
