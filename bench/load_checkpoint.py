"""How fast a checkpoint loads, and how much memory it takes beyond the model itself.

    python -m bench.load_checkpoint --gigabytes 1

Writes random Llama checkpoints of that size to a temporary directory, and loads each in a process of its own, from a
warm page cache: reading and converting are measured, not the disk. Speed is in bytes as stored; the best of three.
Memory is the process's peak above what it had before loading, minus the model in the dtype it was loaded as. The
published library's reader, which converts nothing and checks nothing, stands beside it. Needs `safetensors`.

"distant" is a store whose every request takes 30 ms; "8 devices" are virtual ones, as a 2x2x2 mesh.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
REPEATS = 3
REQUEST_SECONDS = 0.03
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


def write_checkpoint(directory: str, size_bytes: int, stored: str) -> None:
    from engine.families.llama import LLAMA, config_from_hf

    numbers = np.random.default_rng(0).standard_normal(1 << 20).astype(DTYPES[stored])
    sizes = [sum(want.size for want in LLAMA.expected(config_from_hf(_layers(n)))) for n in (1, 2)]
    layers = max(1, round((size_bytes / numbers.itemsize - sizes[0]) / (sizes[1] - sizes[0])) + 1)
    Path(directory, "config.json").write_text(json.dumps(_layers(layers)))
    header, end = {}, 0
    for want in LLAMA.expected(config_from_hf(_layers(layers))):
        offsets = [end, end + want.size * numbers.itemsize]
        dtype = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[stored]
        header[want.name] = {"dtype": dtype, "shape": want.shape, "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header).encode()
    with open(f"{directory}/model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in header.values():
            begin, stop = entry["data_offsets"]
            file.write(np.resize(numbers, (stop - begin) // numbers.itemsize).tobytes())


def _layers(layers: int) -> dict[str, Any]:
    return CONFIG | {"num_hidden_layers": layers}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Distant:
    """A file whose every request takes REQUEST_SECONDS, as those of object stores do."""

    def __init__(self, path: str) -> None:
        time.sleep(REQUEST_SECONDS)
        self._file = open(path, "rb")  # noqa: SIM115

    def read(self, size: int = -1, /) -> bytes:
        time.sleep(REQUEST_SECONDS)
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def measure_load(directory: str, dtype: str, results: Any, readers: int | None = None, distant: bool = False) -> None:
    from engine.families import read_config
    from engine.model.params import leaves
    from engine.weights.load import load_params

    config = read_config(directory).model
    options: dict[str, Any] = {"open": Distant} if distant else {}
    options["dtype"] = dtype
    if dtype == "int8":
        import engine.weights.int8  # noqa: F401  and jax, which is not part of the model

        options |= {"weights": "int8", "dtype": "float32"}
    before_bytes, start = _peak_bytes(), time.perf_counter()
    params = load_params(directory, config, readers=readers, **options)
    seconds = time.perf_counter() - start
    model_bytes = sum(array.nbytes for _, array in leaves(params))
    results.put((seconds, _peak_bytes() - before_bytes - model_bytes))


def measure_shards(directory: str, dtype: str, results: Any) -> None:
    """Onto eight devices of one process."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import jax

    from engine.compilation.placement import Placement
    from engine.families import read_config
    from engine.layout import Layouts
    from engine.weights.load import load_params
    from engine.weights.shards import Shards

    config = read_config(directory).model
    on = Placement.on_devices(config, Layouts.asked(config.kv_heads, "2x2x2"))
    jax.block_until_ready(jax.numpy.zeros(8))
    before_bytes, start = _peak_bytes(), time.perf_counter()
    params = load_params(directory, config, dtype=dtype, held=on.held, to=Shards(on.param_sharding))
    seconds = time.perf_counter() - start
    shards = [shard for array in jax.tree.leaves(params) for shard in array.addressable_shards]
    results.put((seconds, _peak_bytes() - before_bytes - sum(shard.data.nbytes for shard in shards)))


def measure_library(directory: str, dtype: str, results: Any) -> None:
    from safetensors import safe_open

    before_bytes, start = _peak_bytes(), time.perf_counter()
    with safe_open(f"{directory}/model.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    seconds = time.perf_counter() - start
    results.put((seconds, _peak_bytes() - before_bytes - sum(array.nbytes for array in tensors.values())))


def measure_preflight(directory: str, dtype: str, results: Any) -> None:
    from engine.compilation.preflight import preflight

    before_bytes, start = _peak_bytes(), time.perf_counter()
    preflight(directory)
    results.put((time.perf_counter() - start, _peak_bytes() - before_bytes))


def in_a_process(work: Any, *args: Any) -> None:
    """A fresh one, since a peak of memory never falls; and this one stays small, since a child starts at its peak."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=args)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed")


def best_of(measure: Any, directory: str, dtype: str, *args: Any) -> tuple[float, float]:
    """(seconds, bytes beyond the model) of the fastest of several processes."""
    results = multiprocessing.get_context("spawn").SimpleQueue()
    for _ in range(REPEATS):
        in_a_process(measure, directory, dtype, results, *args)
    return min(results.get() for _ in range(REPEATS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    size_bytes = int(parser.parse_args().gigabytes * 1e9)
    print(
        f"{'what':<12} {'stored':<9} {'loaded as':<9} {'GB':>6} {'seconds':>8} {'GB/s':>6} {'MiB beyond the model':>21}"
    )
    for stored in DTYPES:
        with tempfile.TemporaryDirectory() as directory:
            in_a_process(write_checkpoint, directory, size_bytes, stored)
            stored_bytes = Path(directory, "model.safetensors").stat().st_size
            rows: list[tuple[Any, ...]] = []
            for dtype in ("float32", "bfloat16", "int8"):
                rows += [("load", measure_load, dtype), ("one reader", measure_load, dtype, 1)]
            rows += [("8 devices", measure_shards, dtype) for dtype in ("float32", "bfloat16")]
            rows += [("distant", measure_load, "bfloat16", None, True)]
            rows += [("distant, one", measure_load, "bfloat16", 1, True)]
            rows.append(("preflight", measure_preflight, "-"))
            if stored == "float32":  # numpy knows no bfloat16, so the library's numpy reader does not either
                rows.append(("safetensors", measure_library, "float32"))
            for what, measure, dtype, *options in rows:
                seconds, beyond_bytes = best_of(measure, directory, dtype, *options)
                speed = f"{stored_bytes / seconds / 1e9:.2f}" if what != "preflight" else ""
                print(
                    f"{what:<12} {stored:<9} {dtype:<9} {stored_bytes / 1e9:>6.2f} {seconds:>8.3f} {speed:>6} "
                    f"{beyond_bytes / 2**20:>21.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
