"""Writes the lists of versions that images are made of: what pip resolves pyproject.toml to, for each target.

    python container/pin.py              all three; a few minutes
    python container/pin.py tpu          one of them

Run it on Linux x86-64 with the Python of the image. The lists are committed; images change when they do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

EXTRAS = {"tpu": "tpu,gcp,s3", "cuda": "cuda,gcp,s3", "cpu": "gcp,s3"}
HERE = Path(__file__).parent


def pin(target: str) -> Path:
    """Resolves one target and writes constraints-TARGET.txt."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        asked = f"{HERE.parent}[{EXTRAS[target]}]"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--prefer-binary"]
        subprocess.run([*command, "--quiet", "--report", str(report), asked], check=True)
        path = HERE / f"constraints-{target}.txt"
        path.write_text(pinned(json.loads(report.read_text()), target))
    return path


def pinned(report: dict, target: str) -> str:
    """pip's report as a list of exact versions, without Penstock itself."""
    found = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in report["install"]
    }
    del found["penstock"]
    head = f"# Made by `python container/pin.py {target}` from pyproject.toml; do not edit.\n"
    return head + "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


if __name__ == "__main__":
    for name in sys.argv[1:] or EXTRAS:
        print(pin(name))
