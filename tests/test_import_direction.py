"""The rooms of the house and the doors between them: who may import what, read from the imports themselves."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("schemas", "engine", "pipeline", "jobs")

MAY_IMPORT = {
    "schemas": {"pyarrow"},
    "engine": {"numpy", "jax", "ml_dtypes", "jaxtyping"},
}
"""Third-party packages, where a room is restricted to some."""

JOBS_MAY_IMPORT = ("engine.planning", "engine.compilation", "engine.errors")

# Inside the engine a module may import from its own folder and from those to the left of it.
ENGINE_ORDER = (
    {"errors", "axes"},
    {"mesh", "layout", "collectives"},
    {"model"},
    {"families", "cache", "planning"},
    {"weights"},
    {"steps"},
    {"compilation"},
    {"runtime"},
)


def modules(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if "examples" not in path.parts)


def imports(path: Path) -> Iterator[str]:
    """Dotted names imported anywhere in the file; `from a.b import c` gives `a.b.c`, since c may be a module.

    Imports for type checkers alone do not count: nothing runs because of them.
    """
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join((*package, *([node.module] if node.module else [])))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def complaints(room: str) -> list[str]:
    found = []
    for path in modules(room):
        for name in imports(path):
            top = name.split(".")[0]
            where = f"{path.relative_to(ROOT)} imports {name}"
            if top in ROOMS:
                allowed = {
                    "schemas": top == "schemas",
                    "engine": top == "engine",
                    "pipeline": top in ("schemas", "pipeline")
                    or (top == "engine" and path == ROOT / "pipeline" / "inference.py"),
                    "jobs": top != "engine" or name.startswith(JOBS_MAY_IMPORT),
                }[room]
                if not allowed:
                    found.append(where)
            elif room in MAY_IMPORT and top not in sys.stdlib_module_names and top not in MAY_IMPORT[room]:
                found.append(where)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    assert modules(room), f"no modules found in {room}/: the test would pass on nothing"
    assert complaints(room) == []


def rank(part: str) -> int:
    return next(index for index, parts in enumerate(ENGINE_ORDER) if part in parts)


def test_the_engine_imports_from_left_to_right() -> None:
    found = []
    for path in modules("engine"):
        part = path.relative_to(ROOT / "engine").parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        found += [
            f"{path.relative_to(ROOT)} imports {name}"
            for name in imports(path)
            if name.startswith("engine.") and rank(name.split(".")[1]) > rank(part)
        ]
    assert found == []


def test_nothing_is_named_like_a_standard_library_module() -> None:
    taken = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in modules(room)
        if path.stem != "__init__" and path.stem in sys.stdlib_module_names
    ]
    assert taken == []


def test_the_batcher_knows_no_jax() -> None:
    names = {name.split(".")[0] for name in imports(ROOT / "engine" / "runtime" / "batcher.py")}
    assert not names & {"jax", "numpy"}
