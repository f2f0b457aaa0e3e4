"""Small programs in which the TPU compiler shows each of the forms that a report must know.

What it made of them is recorded in compiled/, so that the reports can be tested where there is no compiler. To record
anew: python -m tests.engine.compilation.small_programs
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from engine.compilation.topology import Topology
from engine.compilation.tpu_compiler import compile_programs, mesh_axes
from engine.mesh import MeshShape

PROGRAMS = "tests.engine.compilation.small_programs:programs"
RECORDED = Path(__file__).parent / "compiled"


@dataclass(frozen=True)
class Small:
    """A program inside shard_map; every argument is (global shape, dtype, spec)."""

    chips: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    out_specs: Any
    donated: tuple[int, ...] = ()

    @property
    def topology(self) -> Topology:
        return Topology.parse(self.chips)

    @property
    def mesh(self) -> MeshShape:
        return self.topology.mesh

    @property
    def axes(self) -> tuple[tuple[str, int], ...]:
        return mesh_axes(self.topology, self.mesh)


def _products(x: Any, w: Any) -> Any:
    """Something to do while weights are gathered."""
    return jnp.tanh(jnp.tanh(x @ x) @ x) @ lax.all_gather(w, ("z", "y"), axis=0, tiled=True)


def _gather_along_x(x: Any, w: Any) -> Any:
    return jnp.tanh(jnp.tanh(x @ x) @ x) @ lax.all_gather(w, "x", axis=0, tiled=True)


def _scatter_major(x: Any) -> Any:
    x = jnp.tanh(x).reshape(4, -1, x.shape[1])
    return jnp.tanh(lax.psum_scatter(x, "x", scatter_dimension=0))


def _scatter_rows(x: Any) -> Any:
    return jnp.tanh(lax.psum_scatter(jnp.tanh(x), "x", scatter_dimension=0, tiled=True))


def _layers_in_a_loop(x: Any, weights: Any) -> Any:
    def layer(x: Any, w: Any) -> Any:
        partial = (x @ w).reshape(4, -1, x.shape[1])
        part = lax.psum_scatter(partial, "x", scatter_dimension=0)
        return lax.all_gather(part.reshape(-1, x.shape[1]), "x", axis=0, tiled=True), None

    return lax.scan(layer, x, weights)[0]


def _steps(x: Any, state: Any, until: Any) -> Any:
    """A loop that ends when data says so, with another inside, over a donated state."""

    def step(carry: Any) -> Any:
        count, state = carry
        inner = lax.fori_loop(0, until, lambda i, y: jnp.tanh(y @ x), state[:8])
        sent = lax.ppermute(inner, "x", [(0, 1), (1, 0)])
        return count + 1, lax.dynamic_update_slice(state, lax.psum(sent, ("x", "y")), (8 * count, 0))

    return lax.while_loop(lambda carry: carry[1][0, 0] < 1, step, (jnp.int32(0), state))


def _exchange(x: Any) -> Any:
    return jnp.tanh(lax.all_to_all(jnp.tanh(x), "x", 0, 1, tiled=True))


def _between_slices(x: Any) -> Any:
    return jnp.tanh(lax.psum(jnp.tanh(x), "slice"))


def _laid_out_anew(x: Any, w: Any) -> Any:
    return x @ jnp.tanh(w.T.astype(jnp.bfloat16)).reshape(w.shape)


BF16, INT8 = jnp.bfloat16, jnp.int8

SMALL = {
    "gather_two_rings": Small(
        "v4:4x4x4", _products, (((512, 512), BF16, P()), ((512, 2048), BF16, P(("z", "y")))), P()
    ),
    "gather_fused": Small("v5e:4x4", _gather_along_x, (((512, 512), BF16, P()), ((512, 2048), BF16, P("x"))), P()),
    "scatter": Small("v4:4x4x4", _scatter_major, (((2048, 4608), BF16, P()),), P("x")),
    "scatter_padded": Small("v4:4x4x4", _scatter_rows, (((2048, 4608), BF16, P()),), P("x")),
    "scatter_of_few_rows": Small("v5e:4x4", _scatter_rows, (((8, 8192), BF16, P()),), P("x")),
    "loop": Small("v4:4x4x4", _layers_in_a_loop, (((1024, 512), BF16, P()), ((3, 512, 512), BF16, P())), P()),
    "steps": Small(
        "v5e:2x2",
        _steps,
        (((512, 512), BF16, P()), ((1024, 512), BF16, P()), ((), jnp.int32, P())),
        P(),
        donated=(1,),
    ),
    "exchange": Small("v6e:4x4", _exchange, (((512, 1024), BF16, P()),), P()),
    "between_slices": Small("2*v5p:2x2x1", _between_slices, (((512, 1024), BF16, P()),), P()),
    "laid_out_anew": Small("v5e:1x1", _laid_out_anew, (((8, 2048), BF16, P()), ((2048, 4096), INT8, P())), P()),
}


def programs(mesh: Mesh, names: list[str]) -> Iterator[tuple[str, Any, Any]]:
    """For `compile_programs`."""
    for name in names:
        small = SMALL[name]
        specs = tuple(spec for _, _, spec in small.args)
        run = jax.shard_map(small.function, mesh=mesh, in_specs=specs, out_specs=small.out_specs, check_vma=False)
        args = [jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, spec)) for s, d, spec in small.args]
        yield name, jax.jit(run, donate_argnums=small.donated), args


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.hlo").read_text()


def _shortened(text: str) -> str:
    """Without what no report reads: where in the source a line came from, and most of the backend's configuration."""
    kept = []
    for line in text.splitlines():
        if re.match(r"\d+ |FileNames|FunctionNames|FileLocations|StackFrames", line):
            continue
        line, _, config = re.sub(r" stack_frame_id=\d+", "", line).partition(", backend_config=")
        cycles = re.search(r'"estimated_cycles":"\d+"', config)
        kept.append(line + (f", backend_config={{{cycles.group()}}}" if cycles else ""))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)) + "\n"


if __name__ == "__main__":
    RECORDED.mkdir(exist_ok=True)
    for name, small in SMALL.items():
        (compiled,) = compile_programs(
            small.topology, small.mesh, "tests.engine.compilation.small_programs:programs", [name]
        )
        (RECORDED / f"{name}.hlo").write_text(_shortened(compiled.text))
