"""The process in which the TPU compiler runs: `python -m engine.compilation.tpu_process REQUEST OUT`.

The compiler may end the process it runs in, so it gets one of its own, started by engine/compilation/tpu_compiler.py.
For every program it leaves OUT/n.json, and OUT/n.hlo if it compiled; on stderr, among what the compiler logs, it says
where each begins.
"""

from __future__ import annotations

import importlib
import json
import pickle
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import EngineError

BEGIN = "penstock: compiling program"
REFUSED = 3
"""Exit code when the engine itself refuses what it is to compile; OUT/error.json says why."""


def main(request_file: str, out: str) -> None:
    request = pickle.loads(Path(request_file).read_bytes())
    try:
        _compile_all(request, out)
    except EngineError as error:
        Path(out, "error.json").write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}))
        sys.exit(REFUSED)


def _compile_all(request: Mapping[str, Any], out: str) -> None:
    mesh = _mesh(request["topology"], request["mesh"])
    for number, (name, jitted, args, options) in enumerate(_programs(mesh, request)):
        print(f"{BEGIN} {number}", file=sys.stderr, flush=True)
        result, text = _compile(jitted, args, options)
        if text is not None:
            Path(out, f"{number}.hlo").write_text(text)
        Path(out, f"{number}.json").write_text(json.dumps({"name": name, **result}))


def _mesh(topology: Mapping[str, Any], axes: Mapping[str, int]) -> Any:
    """Mesh axes along the torus: devices in the order of their coordinates, slices outermost."""
    import numpy as np
    from jax.experimental.topologies import get_topology_desc
    from jax.sharding import AxisType, Mesh

    devices = get_topology_desc(**topology).devices
    devices = sorted(devices, key=lambda one: (getattr(one, "slice_index", 0), tuple(one.coords), one.core_on_chip))
    grid = np.array(devices).reshape(tuple(axes.values()))
    return Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def _programs(mesh: Any, request: Mapping[str, Any]) -> Iterable[tuple[str, Any, Any, Mapping[str, str]]]:
    module, _, function = request["programs"].partition(":")
    programs = getattr(importlib.import_module(module), function)
    for name, jitted, args, *options in programs(mesh, request["description"]):
        yield name, jitted, _placed(mesh, args), options[0] if options else request["options"]


def _placed(mesh: Any, args: Any) -> Any:
    """Arguments without a place are given one: what has none is compiled for the machine's own processor."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: x if x.sharding is not None else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), args
    )


def _compile(jitted: Any, args: Any, options: Mapping[str, str]) -> tuple[dict[str, Any], str | None]:
    import jax

    lowered = jitted.lower(*args)
    donated = sum(leaf.donated for leaf in jax.tree.leaves(lowered.args_info))
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=dict(options) or None)
    except jax.errors.JaxRuntimeError as error:
        return {"refused": str(error), "seconds": time.perf_counter() - start, "donated": donated}, None
    memory = compiled.memory_analysis()
    return {
        "seconds": time.perf_counter() - start,
        "donated": donated,
        "peak_bytes": memory.peak_memory_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
    }, compiled.as_text()


if __name__ == "__main__":
    main(*sys.argv[1:])
