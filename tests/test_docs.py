"""Every command that the README and docs/ show is run here, page by page, or says in its own words why it is not.

A block of commands is fenced as ```console. Words after that say what it needs: `cloud` (an account, a cluster),
`hosts` (several machines), `setup` (installs or builds), `daemon` (does not end), `worked-example` (a test of its own
runs it and compares what is printed), `tpu-compiler` (run where libtpu is installed, with two layers), `exit=1` (the
code with which the last command ends). They show on no rendered page.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.compiling import FLAGS

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "jobs" / "examples" / "arithmetic"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {"cloud", "hosts", "setup", "daemon", "worked-example"}
ROWS = 24


@dataclass(frozen=True)
class Block:
    """Commands that belong together."""

    needs: frozenset[str]
    commands: tuple[str, ...]
    exit_code: int

    @property
    def is_run(self) -> bool:
        has_compiler = importlib.util.find_spec("libtpu") is not None
        return not (self.needs & NOT_RUN) and ("tpu-compiler" not in self.needs or has_compiler)


def blocks(page: Path) -> Iterator[Block]:
    for words, body in re.findall(r"^ *```console([^\n]*)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
        codes = {word for word in words.split() if word.startswith("exit=")}
        commands = re.findall(r"^ *\S*\$ ((?:[^\n]*\\\n)*[^\n]*)", body, re.MULTILINE)
        code = int(min(codes, default="exit=0").removeprefix("exit="))
        yield Block(frozenset(words.split()) - codes, tuple(one.replace("\\\n", " ") for one in commands), code)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the pages speak of: a job, data, prices, and a checkpoint."""
    rows = pq.read_table(EXAMPLE / "data" / "questions.parquet").slice(0, ROWS).to_pylist()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(EXAMPLE / "checkpoint", tmp_path / "checkpoint")
    (capitals,) = re.findall(r"`capitals.yaml`:\n\n```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "capitals.yaml").write_text(capitals)
    job = yaml.safe_load(capitals)
    job["output"]["shard_rows"], job["sampling"]["max_tokens"] = ROWS // 2, 128
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    prices = {"date": "2026-11-01", "currency": "USD", "chip_hour": {"v4": 3.22, "v5e": 1.2, "v5p": 4.2, "v6e": 2.7}}
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump(prices))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_blocks_are_found() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert sum(len(block.commands) for block in found if block.is_run) >= 10
    assert all(block.commands for block in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_says_what_it_needs_in_known_words(page: Path) -> None:
    assert set().union(*(block.needs for block in blocks(page))) <= NOT_RUN | {"tpu-compiler"}


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.is_run for block in blocks(page))], ids=lambda p: p.stem
)
def test_the_commands_of_a_page_do_what_it_says(page: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": FLAGS}
    for block in blocks(page):
        for i, command in enumerate(block.commands if block.is_run else ()):
            program, *arguments = shlex.split(command, comments=True)
            assert program == "penstock", f"{page.name}: {command}: mark the block, or teach this test to run it"
            output = redirected(arguments)
            if "tpu-compiler" in block.needs:
                arguments += ["--layers", "2"]
            said = subprocess.run(
                [sys.executable, "-m", "jobs.cli", *arguments],
                capture_output=True,
                text=True,
                env=environment,
                check=False,
            )
            expected = block.exit_code if i == len(block.commands) - 1 else 0
            assert said.returncode == expected, f"{page.name}: {command}\n{said.stdout}{said.stderr}"
            if output is not None:
                Path(output).write_text(said.stdout)
    if page.name != "README.md":  # test_readme.py has its own place for that one
        for example in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            exec(example, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not leads_somewhere(page, link)] == []


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists() or not heading:
        return target.exists()
    headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
    return heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def redirected(arguments: list[str]) -> str | None:
    """Takes `> FILE` off the end of a command."""
    if len(arguments) < 2 or arguments[-2] != ">":
        return None
    *_, output = arguments
    del arguments[-2:]
    return output
