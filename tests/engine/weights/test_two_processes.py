"""Two processes with four devices each load one checkpoint: each has its shards, and both every scale."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.compiling import FLAGS
from tests.engine.tiny_checkpoint import write_tiny_checkpoint

SCRIPT = """
import os, sys
import jax, numpy as np
checkpoint, address, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(address, 2, process)
assert len(jax.local_devices()) == 4 and len(jax.devices()) == 8

from engine.compilation.placement import Placement
from engine.families import read_config
from engine.layout import Layouts
from engine.model.params import leaves
from engine.model.quantized import Quantized, quantize
from engine.weights.load import load_params
from engine.weights.shards import Shards
from tests.engine.weights.stores import CountingOpen

config = read_config(checkpoint).model
for mesh in ("2x2x2", "2x4x1"):
    on = Placement.on_devices(config, Layouts.asked(config.kv_heads, mesh))
    plain = dict(leaves(load_params(checkpoint, config, dtype="float32", held=on.held)))
    read_bytes = set()
    for weights in (None, "int8"):
        to, store = Shards(on.param_sharding), CountingOpen()
        params = load_params(checkpoint, config, dtype="float32", held=on.held, weights=weights, to=to, open=store)
        read_bytes.add(sum(store.read_bytes.values()))
        for path, array in leaves(params):
            parts = [(array, plain[path])]
            if isinstance(array, Quantized):
                expected = quantize(plain[path], array.values.ndim - array.scale.ndim)
                parts = [(array.values, expected.values), (array.scale, expected.scale)]
                assert array.scale.sharding.is_fully_replicated
            for part, numbers in parts:
                assert not part.is_fully_addressable
                assert len(part.addressable_shards) == 4
                for shard in part.addressable_shards:
                    np.testing.assert_array_equal(np.asarray(shard.data), numbers[shard.index], err_msg=path)
    assert len(read_bytes) == 1 and read_bytes.pop() < 0.95 * os.path.getsize(f"{checkpoint}/model.safetensors")
print("the same")
"""


def test_each_process_has_its_shards_and_every_scale(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, vocab_size=321, num_hidden_layers=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count=4"}
    said = [tmp_path / f"said by {process}" for process in (0, 1)]
    with ExitStack() as running:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(tmp_path), address, str(process)],
                stdout=running.enter_context(path.open("w")),
                stderr=subprocess.STDOUT,
                env=environment,
            )
            for process, path in enumerate(said)
        ]
        for process in processes:
            running.callback(process.wait)
            running.callback(process.kill)
        deadline = time.monotonic() + 120
        while None in (codes := [process.poll() for process in processes]) and time.monotonic() < deadline:
            if any(codes):
                break  # the other one would wait for it
            time.sleep(0.1)
    for process, path in zip(processes, said, strict=True):
        assert process.returncode == 0, path.read_text()[-3000:]
        assert "the same" in path.read_text()
