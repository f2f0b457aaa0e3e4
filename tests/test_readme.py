"""What the README shows is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jobs.job_file import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    monkeypatch.chdir(ROOT)
    exec(example, {})
    assert re.fullmatch(r"\((\d+, ?)+\d*\)\n", capsys.readouterr().out)


def test_the_job_is_valid(tmp_path: Path) -> None:
    example, on_chips = blocks("yaml")
    (tmp_path / "capitals.yaml").write_text(example)
    assert load(str(tmp_path / "capitals.yaml")).name == "capitals"
    (tmp_path / "chips.yaml").write_text(yaml.safe_dump(yaml.safe_load(example) | yaml.safe_load(on_chips)))
    assert load(str(tmp_path / "chips.yaml")).engine.layouts()["mesh"] == "4x4"


def test_the_files_it_points_to_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []
