"""The README's examples, to be run as they stand there."""

from __future__ import annotations

import pathlib
import re

README = pathlib.Path(__file__).parents[2] / "README.md"


def examples() -> list[str]:
    """The Python blocks, in order."""
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def example(*words: str) -> str:
    """The only block in which all of the words stand."""
    (code,) = [code for code in examples() if all(word in code for word in words)]
    return code
