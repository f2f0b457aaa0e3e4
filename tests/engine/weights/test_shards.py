"""Loading straight to shards: each mesh holds the numbers of the plain load; a process reads what its chips need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from engine.compilation.placement import Placement
from engine.families import read_config
from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.model.params import Parameter, declare, leaves
from engine.model.quantized import Quantized, quantize
from engine.weights import reading, safetensors
from engine.weights.boxes import Box
from engine.weights.destination import scale_of
from engine.weights.load import load_params
from engine.weights.safetensors import read_header
from engine.weights.shards import Shards
from tests.engine.tiny_checkpoint import write_tiny_checkpoint
from tests.engine.weights import odd_model
from tests.engine.weights.stores import CountingOpen

MESHES = ("8x1x1", "2x4x1", "4x2x1", "2x2x2")
PIPELINE = "2*2x2x1"
WAYS = [
    ("ws1d", None),
    ("ws2d", "int8"),
    *(pytest.param(*way, marks=pytest.mark.slow) for way in (("ws1d", "int8"), ("ws2d", None))),
]
"""(feed-forward, weights)"""


def placement(checkpoint: Path, mesh: str, ffn: Any) -> Placement:
    layouts = Layouts.of(MeshShape.parse(mesh), (ffn, "heads"), (ffn, "heads"))
    return Placement.on_devices(read_config(str(checkpoint)).model, layouts)


def load(checkpoint: Path, to: Any, held: Any, **options: Any) -> dict[str, Any]:
    config = read_config(str(checkpoint)).model
    options = {"dtype": "float32"} | options
    return dict(leaves(load_params(str(checkpoint), config, held=held, to=to, **options)))


def inputs_of(array: Quantized) -> int:
    return array.values.ndim - array.scale.ndim


def assert_equal(shards: dict[str, Any], whole: Mapping[str, np.ndarray]) -> None:
    """To the last bit; int8 is what the whole parameter, padded, is quantised to; a chip has its stage's scales."""
    assert list(shards) == list(whole)
    for path, array in shards.items():
        if isinstance(array, Quantized):
            expected = quantize(whole[path].astype(np.float32), inputs_of(array))
            is_staged = isinstance(array.scale.sharding, NamedSharding) and array.scale.sharding.spec[:1] == ("slice",)
            assert array.scale.sharding.is_fully_replicated or (is_staged and path.startswith("layers."))
            parts = [(array.values, np.asarray(expected.values)), (array.scale, np.asarray(expected.scale))]
        else:
            parts = [(array, whole[path])]
        for part, numbers in parts:
            assert (part.shape, part.dtype) == (numbers.shape, numbers.dtype), path
            for shard in part.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), numbers[shard.index], err_msg=path)


@pytest.mark.parametrize(("ffn", "weights"), WAYS)
@pytest.mark.parametrize("mesh", [*MESHES, PIPELINE])
def test_shards_are_slices_of_the_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mesh: str, ffn: str, weights: str | None
) -> None:
    """Stored transposed, concatenated and by expert, with heads and vocabulary padded, in pieces that end anywhere."""
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", 100)
    monkeypatch.setattr(reading, "STRETCH_BYTES", 1000)
    params = odd_model.write(tmp_path, monkeypatch)
    on = placement(tmp_path, mesh, ffn)
    assert on.held.vocab > 45 or mesh == "8x1x1"
    shards = load(tmp_path, Shards(on.param_sharding), on.held, weights=weights)
    assert_equal(shards, odd_model.padded(params, on.held))
    declared = dict(leaves(declare(on.config, on.held)))
    for path, array in shards.items():
        values = array.values if isinstance(array, Quantized) else array
        assert values.sharding == on.param_sharding(declared[path]), path
        assert isinstance(array, Quantized) == (weights == "int8" and declared[path].is_matrix)


def test_a_stage_has_layers_that_follow_each_other(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, num_hidden_layers=6)
    on = placement(tmp_path, "2*2x2x1", "ws2d")
    shards, whole = load(tmp_path, Shards(on.param_sharding), on.held), load(tmp_path, None, None)
    assert len({path.split(".")[1] for path in shards if path.startswith("layers.")}) == 3
    for path, array in shards.items():
        if path.startswith("layers."):
            _, number, name = path.split(".")
            expected = np.stack([whole[path], whole[f"layers.{int(number) + 3}.{name}"]])
            assert {shard.index[0].start for shard in array.addressable_shards} == {0, 1}
            np.testing.assert_array_equal(np.asarray(array), expected)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", [None, "int8"])
def test_dtypes(tmp_path: Path, stored: str, dtype: str, weights: str | None) -> None:
    """int8 is made of the numbers as they are stored, whatever the rest is held as."""
    write_tiny_checkpoint(tmp_path, dtype=stored, num_attention_heads=6, vocab_size=321, hidden_size=96)
    on = placement(tmp_path, "2x4x1", "ws2d")
    shards = load(tmp_path, Shards(on.param_sharding), on.held, dtype=dtype, weights=weights)
    exact = load(tmp_path, None, on.held)
    assert {path for path, array in shards.items() if isinstance(array, Quantized)} == {
        path for path in exact if weights and "norm" not in path
    }
    rounded = load(tmp_path, None, on.held, dtype=dtype)
    assert_equal(
        shards, {path: exact[path] if isinstance(shards[path], Quantized) else rounded[path] for path in shards}
    )


@pytest.mark.parametrize("weights", [None, "int8"])
def test_one_device_is_a_mesh_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str | None) -> None:
    params = odd_model.write(tmp_path, monkeypatch)
    device = jax.devices()[3]
    to = Shards(lambda _: jax.sharding.SingleDeviceSharding(device))
    shards = load(tmp_path, to, None, weights=weights)
    assert all(array.devices() == {device} for array in jax.tree.leaves(shards))
    assert_equal(shards, params)


@pytest.mark.parametrize("mesh", [*MESHES, PIPELINE])
def test_every_byte_is_read_once_however_many_devices_hold_it(tmp_path: Path, mesh: str) -> None:
    write_tiny_checkpoint(tmp_path)
    on, store = placement(tmp_path, mesh, "ws2d"), CountingOpen()
    load(tmp_path, Shards(on.param_sharding), on.held, open=store)
    file = str(tmp_path / "model.safetensors")
    assert store.read_bytes[file] == Path(file).stat().st_size


# Several processes, of which each has some of the devices.


@dataclass
class Process:
    """What one process would hold: the boxes of its devices, as numpy arrays."""

    on: Placement
    devices: Sequence[Any]
    parts: dict[str, dict[Box, np.ndarray]] = field(default_factory=dict)

    def boxes(self, parameter: Parameter) -> list[Box]:
        return self._boxes(self.on.param_sharding(parameter), parameter.shape)

    def scale_boxes(self, parameter: Parameter) -> list[Box]:
        """As `Shards` does where not every device is this process's own; see test_two_processes.py."""
        sharding = self.on.param_sharding(parameter)
        outputs = P(*sharding.spec[: len(parameter.shape) - parameter.inputs])
        return self._boxes(sharding.update(spec=outputs), scale_of(parameter).shape)

    def _boxes(self, sharding: Any, shape: tuple[int, ...]) -> list[Box]:
        indices = sharding.devices_indices_map(shape)
        return list(
            {tuple(s.indices(n)[:2] for s, n in zip(indices[one], shape, strict=True)): 0 for one in self.devices}
        )

    def place(self, path: str, parameter: Parameter, parts: Mapping[Box, np.ndarray]) -> str:
        self.parts[path] = dict(parts)
        return path

    def place_scale(self, path: str, parameter: Parameter, parts: Mapping[Box, np.ndarray]) -> str:
        return self.place(f"{path}.scale", parameter, parts)

    def whole_scale(self, parameter: Parameter, placed: str) -> str:
        return placed


def index(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


@pytest.mark.parametrize(("ffn", "weights"), WAYS)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("devices", [slice(0, 4), slice(1, 8, 3)])
def test_a_process_has_the_boxes_of_its_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mesh: str, ffn: str, devices: slice, weights: str | None
) -> None:
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", 200)
    monkeypatch.setattr("engine.weights.store.LOCAL_SKIPPED_BYTES", 16)
    on = placement_of_odd(tmp_path, monkeypatch, mesh, ffn)
    process = Process(on, jax.devices()[devices])
    loaded = load(tmp_path, process, on.held, weights=weights)
    whole = odd_model.padded(odd_model.numbers(), on.held)
    for path, array in loaded.items():
        expected: Any = whole[path]
        if isinstance(array, Quantized):
            inputs = dict(leaves(declare(on.config, on.held)))[path].inputs
            expected = quantize(whole[path], inputs)
            assert process.parts[f"{path}.scale"]
            for box, numbers in process.parts[f"{path}.scale"].items():
                np.testing.assert_array_equal(numbers, expected.scale[index(box)], err_msg=path)
            expected = expected.values
        for box, numbers in process.parts[path].items():
            np.testing.assert_array_equal(numbers, expected[index(box)], err_msg=path)


def placement_of_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mesh: str, ffn: str) -> Placement:
    odd_model.write(tmp_path, monkeypatch)
    return placement(tmp_path, mesh, ffn)


def needed_bytes(process: Process, whole: Mapping[str, np.ndarray], widen: Callable[[np.ndarray, int], None]) -> int:
    """Of the numbers in a process's boxes; `whole` has no zero but in the padding, which is not stored."""
    total = 0
    for path, parameter in leaves(declare(process.on.config, process.on.held)):
        needed = np.zeros(parameter.shape, bool)
        for box in process.boxes(parameter):
            needed[index(box)] = True
        if parameter.is_matrix:
            widen(needed, parameter.inputs)
        total += np.count_nonzero(needed & (whole[path] != 0)) * 4
    return total


def read_bytes(checkpoint: Path, process: Process, **options: Any) -> int:
    """Without headers and config.json."""
    store = CountingOpen()
    load(checkpoint, process, process.on.held, open=store, **options)
    headers = 0
    for path in store.read_bytes:
        if path.endswith(".safetensors"):
            with open(path, "rb") as file:
                headers += min(tensor.start for tensor in read_header(file, path))
    return sum(count for path, count in store.read_bytes.items() if path.endswith(".safetensors")) - headers


HALVES = [slice(0, 4), slice(4, 8)]


@pytest.mark.parametrize("devices", HALVES)
@pytest.mark.parametrize("ffn", ["ws1d", "ws2d"])
@pytest.mark.parametrize("mesh", [*MESHES, PIPELINE])
def test_a_process_reads_only_what_its_devices_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mesh: str, ffn: str, devices: slice
) -> None:
    monkeypatch.setattr("engine.weights.store.SKIPPED_BYTES", 0)
    on = placement_of_odd(tmp_path, monkeypatch, mesh, ffn)
    process = Process(on, jax.devices()[devices])
    whole = odd_model.padded(odd_model.numbers(), on.held)
    needed = needed_bytes(process, whole, lambda needed, inputs: None)
    assert needed < 0.8 * sum(array.nbytes for array in whole.values())
    assert read_bytes(tmp_path, process) == needed


@pytest.mark.parametrize("devices", HALVES)
def test_int8_reads_whole_channels_and_only_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: slice
) -> None:
    monkeypatch.setattr("engine.weights.store.SKIPPED_BYTES", 0)
    write_tiny_checkpoint(tmp_path)
    on = placement(tmp_path, "2x4x1", "ws2d")
    process = Process(on, jax.devices()[devices])
    whole = load(tmp_path, None, on.held)

    def widen(needed: np.ndarray, inputs: int) -> None:
        contracted = tuple(range(needed.ndim - inputs, needed.ndim))
        needed |= needed.any(contracted, keepdims=True)

    needed = needed_bytes(process, whole, widen)
    assert needed > needed_bytes(process, whole, lambda needed, inputs: None)
    assert needed < sum(array.nbytes for array in whole.values())
    assert read_bytes(tmp_path, process, weights="int8") == needed


def test_rows_are_skipped_and_narrow_columns_read_over(tmp_path: Path) -> None:
    """Unless the gaps are large, half of each row costs all of it."""
    tensors = write_tiny_checkpoint(tmp_path, num_hidden_layers=1)
    whole = sum(array.size for array in tensors.values())
    norms = sum(array.size for name, array in tensors.items() if "norm" in name)
    across = (
        tensors["model.layers.0.mlp.down_proj.weight"].size + tensors["model.layers.0.self_attn.o_proj.weight"].size
    )
    sizes = {}
    for ffn in ("ws1d", "ws2d"):  # over eight chips in a row: F is split, or E
        on = placement(tmp_path, "8x1x1", ffn)
        sizes[ffn] = read_bytes(tmp_path, Process(on, jax.devices()[:4])) // 4
    assert sizes["ws1d"] == norms + (whole - norms - across) // 2 + across
    assert sizes["ws2d"] == norms + (whole - norms - across) + across // 2


def test_a_box_of_padding_alone_is_filled_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = placement_of_odd(tmp_path, monkeypatch, "8x1x1", "ws1d")
    assert on.held.heads == 16  # groups of three held as four, two to a chip
    process = Process(on, jax.devices()[1:2])
    loaded = load(tmp_path, process, on.held)
    (query,) = process.parts["layers.0.query"].values()
    assert "layers.0.query" in loaded
    assert query[0].any()
    assert not query[1].any()


def test_scales_split_over_processes_are_gathered(tmp_path: Path) -> None:
    """The program that does it, on the devices of one process."""
    write_tiny_checkpoint(tmp_path)
    on = placement(tmp_path, "2x4x1", "ws2d")
    up = dict(leaves(declare(on.config, on.held)))["layers.0.up"]
    numbers = np.arange(160, dtype=np.float32)
    split = jax.device_put(numbers, on.param_sharding(up).update(spec=P("y")))
    whole = Shards(on.param_sharding).whole_scale(up, split)
    assert whole.sharding.is_fully_replicated
    np.testing.assert_array_equal(whole, numbers)
