"""One target of bench/fuzz.py, in this process, which the fuzzer ends.

python -m bench.fuzz_one TARGET CORPUS [-flag=value ...]
"""

from __future__ import annotations

import sys

import atheris

GUIDING = ["engine", "jobs", "pipeline", "schemas", "jinja2", "yaml"]
"""Packages whose branches guide the search."""

if __name__ == "__main__":
    with atheris.instrument_imports(include=GUIDING):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: target.check(data) and None)
    atheris.Fuzz()
