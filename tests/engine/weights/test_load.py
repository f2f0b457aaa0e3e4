"""Every parameter gets exactly its numbers, in the dtype asked for, in little more memory than it takes."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import ml_dtypes
import numpy as np
import pytest

from engine.errors import UnsupportedCheckpoint
from engine.families import read_config
from engine.layout import HeldSizes
from engine.model.params import Params, declare, leaves
from engine.model.quantized import quantize
from engine.weights import int8, reading, safetensors
from engine.weights import load as module
from engine.weights.load import load_params
from engine.weights.safetensors import read_header
from tests.engine.tiny_checkpoint import DTYPES, save_tensors, tiny_config, tiny_tensors, write_tiny_checkpoint
from tests.engine.weights import odd_model
from tests.engine.weights.stores import CountingOpen

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def load(directory: Path | str, dtype: str = "float32", **options: Any) -> Params:
    config = read_config(str(directory), *([options["open"]] if "open" in options else [])).model
    return load_params(str(directory), config, dtype=dtype, **options)


def checkpoint(directory: Path, tensors: dict[str, np.ndarray], **attributes: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(tiny_config(**attributes)))
    save_tensors(directory / "model.safetensors", tensors)
    return directory


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_arrive_in_the_dtype_asked_for(tmp_path: Path, stored: str, dtype: str) -> None:
    tensors = write_tiny_checkpoint(tmp_path, dtype=stored, attention_bias=True, mlp_bias=True)
    params = load(tmp_path, dtype)

    def stands(path: str, name: str, *shape: int) -> None:
        array = dict(leaves(params))[path]
        assert array.dtype == DTYPES[dtype]
        np.testing.assert_array_equal(array, tensors[name].astype(np.float32).astype(DTYPES[dtype]).reshape(shape))

    stands("embedding", "model.embed_tokens.weight", 320, 64)
    stands("layers.0.query", "model.layers.0.self_attn.q_proj.weight", 4, 16, 64)
    stands("layers.1.key", "model.layers.1.self_attn.k_proj.weight", 2, 16, 64)
    stands("layers.1.value", "model.layers.1.self_attn.v_proj.weight", 2, 16, 64)
    stands("layers.1.attention_out", "model.layers.1.self_attn.o_proj.weight", 64, 4, 16)
    stands("layers.0.query_bias", "model.layers.0.self_attn.q_proj.bias", 4, 16)
    stands("layers.0.attention_norm", "model.layers.0.input_layernorm.weight", 64)
    stands("layers.0.ffn_norm", "model.layers.0.post_attention_layernorm.weight", 64)
    stands("layers.1.gate", "model.layers.1.mlp.gate_proj.weight", 160, 64)
    stands("layers.1.up", "model.layers.1.mlp.up_proj.weight", 160, 64)
    stands("layers.1.down", "model.layers.1.mlp.down_proj.weight", 64, 160)
    stands("layers.1.up_bias", "model.layers.1.mlp.up_proj.bias", 160)
    stands("final_norm", "model.norm.weight", 64)
    stands("head", "lm_head.weight", 320, 64)
    declared = {path: parameter.shape for path, parameter in leaves(declare(read_config(str(tmp_path)).model))}
    assert {path: array.shape for path, array in leaves(params)} == declared


def test_rounding_to_bfloat16_is_to_the_nearest_and_to_even(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    unit = 2.0**-7  # one step of bfloat16 at 1
    tensors["model.norm.weight"][:4] = [1 + unit / 2, 1 + 3 * unit / 2, 1 + 0.51 * unit, 1 + 0.49 * unit]
    norm = load(checkpoint(tmp_path, tensors), "bfloat16")["final_norm"]
    assert norm[:4].astype(np.float64).tolist() == [1.0, 1 + 2 * unit, 1 + unit, 1.0]


def test_each_tensor_keeps_its_own_dtype_and_pieces_leave_no_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", 1000)
    wide = tiny_tensors(tiny_config())
    cast = {name: wide[name].astype(tuple(DTYPES.values())[at % 3]) for at, name in enumerate(wide)}
    params = load(checkpoint(tmp_path, cast, torch_dtype="float16"))
    assert {array.dtype for _, array in leaves(params)} == {np.dtype(np.float32)}
    for name, path in (
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.self_attn.q_proj.weight", "layers.0.query"),
        ("model.layers.0.mlp.up_proj.weight", "layers.0.up"),
        ("lm_head.weight", "head"),
    ):
        np.testing.assert_array_equal(dict(leaves(params))[path].reshape(-1), cast[name].astype("f4").reshape(-1))


def test_shards_are_read_once_each_and_through_open_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", 5000)
    tensors = tiny_tensors(tiny_config(), dtype="bfloat16")
    names = sorted(tensors)
    files = fsspec.filesystem("memory")
    shards = {f"model-0000{n + 1}-of-00003.safetensors": names[n::3] for n in range(3)}
    for file_name, held in shards.items():
        data = safetensors_library().save({name: tensors[name] for name in held})
        files.pipe(f"/load/model/{file_name}", data)
    weight_map = {name: file_name for file_name, held in shards.items() for name in held}
    files.pipe("/load/model/model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())
    files.pipe("/load/model/config.json", json.dumps(tiny_config()).encode())
    store = CountingOpen(lambda url: fsspec.open(url, "rb").open())
    params = load("memory://load/model", "bfloat16", open=store)
    np.testing.assert_array_equal(params["embedding"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["layers"][1]["down"], tensors["model.layers.1.mlp.down_proj.weight"])
    for file_name in shards:
        assert store.read_bytes[f"memory://load/model/{file_name}"] == files.size(f"/load/model/{file_name}")
        assert store.opened[f"memory://load/model/{file_name}"] <= 4  # its header, a trial, its tensors
    assert all(url.startswith("memory://load/model/") for url in store.opened)


def safetensors_library() -> Any:
    return pytest.importorskip("safetensors.numpy")


def test_place_and_progress_see_every_parameter_once(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, dtype="float16")
    seen: list[str] = []
    steps: list[tuple[int, int]] = []

    def place(path: str, array: np.ndarray) -> str:
        seen.append(path)
        return f"placed {path} {array.dtype}"

    params = load(tmp_path, "bfloat16", place=place, progress=lambda done, total: steps.append((done, total)))
    assert sorted(seen) == sorted(path for path, _ in leaves(params))
    assert params["layers"][1]["query"] == "placed layers.1.query bfloat16"
    total = (tmp_path / "model.safetensors").stat().st_size
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1][0] == steps[-1][1] < total < steps[-1][1] + 10_000


def drop(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, array: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: array})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "attributes", "said"),
    [
        (drop(NORM), {}, "the weights lack model.norm.weight"),
        (drop("lm_head.weight"), {}, "say tie_word_embeddings: true"),
        (
            put(NORM, np.ones(65, np.float32)),
            {},
            "model.norm.weight in {file} has shape [65]; config.json calls for [64]",
        ),
        (put(NORM, np.ones((1, 64), np.float32)), {}, "has shape [1, 64]"),
        (put(NORM, np.ones(64, np.float64)), {}, "is stored as F64; weights are read from F32, F16, BF16"),
        (put(NORM, np.ones(64, np.int8)), {}, "is stored as I8"),
        (put("extra", np.ones(1, np.float32)), {}, "the weights hold extra, for which a LlamaForCausalLM"),
        (
            put("model.layers.2.mlp.up_proj.weight", np.ones(1, np.float32)),
            {},
            "hold model.layers.2.mlp.up_proj.weight",
        ),
        (put("model.layers.00.mlp.up_proj.weight", np.ones(1, np.float32)), {}, "model.layers.00.mlp"),
        (put("extra", np.ones(1, np.float32)), {"num_hidden_layers": 1}, "mlp.down_proj.weight and 7 more"),
        (put("extra", np.ones(1, np.float32)), {"attention_bias": True}, "lack model.layers.0.self_attn.q_proj.bias"),
        (put(NORM, np.full(64, np.nan, np.float32)), {}, "model.norm.weight in {file} holds NaN or infinity"),
        (put(NORM, np.array([1] * 63 + [np.inf], np.float16)), {}, "holds NaN or infinity"),
        (put(NORM, np.array([1] * 63 + [-np.inf], BFLOAT16)), {}, "holds NaN or infinity"),
        (put("lm_head.weight", np.ones((320, 64), np.float32)), {"tie_word_embeddings": True}, "differs from"),
        (put("lm_head.weight", np.ones((64, 320), np.float32)), {"tie_word_embeddings": True}, "lm_head.weight in"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, np.ndarray]], None], attributes: dict[str, Any], said: str
) -> None:
    tensors = tiny_tensors(tiny_config())
    spoil(tensors)
    with pytest.raises(UnsupportedCheckpoint) as refused:
        load(checkpoint(tmp_path, tensors, **attributes))
    assert said.format(file=tmp_path / "model.safetensors") in str(refused.value)


def test_numbers_at_the_edge_of_their_dtype_are_still_numbers(tmp_path: Path) -> None:
    for at, dtype in enumerate((np.float32, np.float16, BFLOAT16)):
        tensors = tiny_tensors(tiny_config())
        info = ml_dtypes.finfo(dtype)
        tensors[NORM] = np.array([info.max, info.min, info.smallest_subnormal, -0.0] * 16, dtype)
        directory = tmp_path / str(at)
        directory.mkdir()
        np.testing.assert_array_equal(load(checkpoint(directory, tensors))["final_norm"], tensors[NORM].astype("f4"))


def test_a_truncated_file_is_named_with_its_tensor(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    with pytest.raises(UnsupportedCheckpoint, match=rf"{path} is truncated at byte {len(data) - 5}: model\."):
        load(tmp_path)


def test_a_tied_checkpoint_may_carry_its_embedding_twice(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config(tie_word_embeddings=True), dtype="bfloat16")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(np.float32)
    params = load(checkpoint(tmp_path, tensors, tie_word_embeddings=True), "bfloat16")
    assert "head" not in params
    np.testing.assert_array_equal(params["embedding"], tensors["model.embed_tokens.weight"])


def test_tensors_that_follow_from_the_config_may_be_there(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    assert len(list(leaves(load(checkpoint(tmp_path, tensors))))) == 2 * 9 + 3


@pytest.mark.parametrize(("stored", "dtype"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_loading_takes_the_model_and_a_few_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, dtype: str
) -> None:
    piece_numbers, readers = 1 << 16, 2
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", piece_numbers)
    write_tiny_checkpoint(tmp_path, dtype=stored, vocab_size=20_000)
    load(tmp_path, dtype)  # what is made once, such as numpy's casts, is made
    tracemalloc.start()
    params = load(tmp_path, dtype, readers=readers)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    model_bytes = sum(array.nbytes for _, array in leaves(params))
    assert model_bytes > 20 * 4 * piece_numbers
    assert model_bytes < peak_bytes < model_bytes + readers * 3 * 4 * piece_numbers


# Several readers.


def test_several_read_at_a_time_and_every_file_is_closed(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    expected = dict(leaves(load(tmp_path)))
    for readers in (1, 4):
        store = CountingOpen(seconds=0.003)
        for path, array in leaves(load(tmp_path, open=store, readers=readers)):
            np.testing.assert_array_equal(array, expected[path])
        assert store.most_reading == readers
        assert store.opened == store.closed


def test_a_store_with_one_object_a_file_is_read_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's memory:// hands out the same one whenever a file is opened, with one position."""
    tensors, files = tiny_tensors(tiny_config()), fsspec.filesystem("memory")
    files.pipe("/shared/model/model.safetensors", safetensors_library().save(tensors))
    files.pipe("/shared/model/config.json", json.dumps(tiny_config()).encode())
    store = CountingOpen(lambda url: fsspec.open(url, "rb").open(), seconds=0.002)
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", 1000)
    params = load("memory://shared/model", open=store)
    assert store.most_reading == 1
    np.testing.assert_array_equal(params["embedding"], tensors["model.embed_tokens.weight"])


def test_progress_only_grows_and_ends_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", 1000)
    monkeypatch.setattr(reading, "STRETCH_BYTES", 8000)
    write_tiny_checkpoint(tmp_path)
    steps: list[tuple[int, int]] = []
    store = CountingOpen(seconds=0.0005)
    load(tmp_path, open=store, progress=lambda done, total: steps.append((done, total)))
    assert len(steps) > 50
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert {total for _, total in steps} == {steps[-1][0]}


def test_of_several_faults_the_first_in_the_file_is_named(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    spoilt = sorted(tensors)[3::4]  # as the library orders tensors of one dtype
    for name in spoilt:
        tensors[name].reshape(-1)[-1] = np.nan
    checkpoint(tmp_path, tensors)
    rng = np.random.default_rng(0)

    class Uneven(CountingOpen):
        def read(self, file: Any, path: str, size: int) -> bytes:
            self._seconds = rng.uniform(0, 0.003)
            return super().read(file, path, size)

    with open(tmp_path / "model.safetensors", "rb") as file:
        first = next(tensor.name for tensor in read_header(file, "") if tensor.name in spoilt)
    for _ in range(5):
        store = Uneven()
        with pytest.raises(UnsupportedCheckpoint, match=rf"^{first} in .* holds NaN"):
            load(tmp_path, open=store)
        assert store.opened == store.closed


def test_a_file_that_ends_while_it_is_read_is_named(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    end = path.stat().st_size - 5

    class Shrinking(CountingOpen):
        def read(self, file: Any, path: str, size: int) -> bytes:
            at = file.tell()
            return super().read(file, path, max(0, min(size, end - at)) if at > 10_000 else size)

    with pytest.raises(UnsupportedCheckpoint, match=rf"{path} ends in the middle of model\.norm\.weight; fetch it"):
        load(tmp_path, open=Shrinking())


def test_little_is_held_at_a_time_when_it_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", 1 << 12)
    write_tiny_checkpoint(tmp_path, vocab_size=20_000)  # the embedding, and as large a head
    peak_bytes = []
    for filled_bytes in (0, 1 << 30):
        monkeypatch.setattr(module, "FILLED_BYTES", filled_bytes)
        load(tmp_path, place=lambda path, array: None, readers=2)
        tracemalloc.start()
        load(tmp_path, place=lambda path, array: None, readers=2)
        peak_bytes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    largest_bytes = 20_000 * 64 * 4
    assert largest_bytes < peak_bytes[0] < 1.2 * largest_bytes
    assert peak_bytes[1] > 2 * largest_bytes


# A mixture, and tensors stored in every way a table can say; int8.


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_tensors_stored_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str) -> None:
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", 50)
    params = odd_model.write(tmp_path, monkeypatch, stored)
    loaded = dict(leaves(load(tmp_path)))
    assert list(loaded) == list(params)
    for path, array in loaded.items():
        np.testing.assert_array_equal(array, params[path], err_msg=path)


def test_heads_and_vocabulary_are_padded_with_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldSizes(heads=30, kv_heads=6, vocab=64)
    params = odd_model.padded(odd_model.write(tmp_path, monkeypatch), held)
    loaded = dict(leaves(load(tmp_path, held=held)))
    assert loaded["layers.0.query"].shape == (30, 8, 16)
    for path, array in loaded.items():
        np.testing.assert_array_equal(array, params[path], err_msg=path)


@pytest.mark.parametrize("held", [None, HeldSizes(heads=30, kv_heads=6, vocab=64)])
def test_int8_is_what_the_whole_parameter_is_quantised_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: HeldSizes | None
) -> None:
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", 70)
    odd_model.write(tmp_path, monkeypatch)
    placed: dict[str, np.ndarray] = {}

    def place(path: str, array: np.ndarray) -> np.ndarray:
        placed[path] = array
        return array

    plain, small = (dict(leaves(load(tmp_path, held=held, **options))) for options in ({}, {"weights": "int8"}))
    load(tmp_path, held=held, weights="int8", place=place)
    for path, declared in leaves(declare(odd_model.CONFIG, held)):
        if not declared.is_matrix:
            np.testing.assert_array_equal(small[path], plain[path])
            continue
        expected = quantize(plain[path], declared.inputs)
        np.testing.assert_array_equal(small[path].values, expected.values, err_msg=path)
        np.testing.assert_array_equal(small[path].scale, expected.scale, err_msg=path)
        np.testing.assert_array_equal(placed[path], expected.values)
        np.testing.assert_array_equal(placed[f"{path}.scale"], expected.scale)


def test_int8_of_ties_extremes_and_empty_channels(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    up[0] = 0
    up[1, :8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127]
    up[1, 8:] = 0
    up[2] = np.finfo(np.float32).smallest_subnormal
    up[3] = np.finfo(np.float32).max
    loaded = load(checkpoint(tmp_path, tensors), weights="int8")["layers"][0]["up"]
    assert loaded.values[:3, :8].tolist() == [[0] * 8, [127, 0, 2, 2, 0, -2, -2, -127], [0] * 8]
    assert loaded.scale[:3].tolist() == [1, 1, 1]
    assert (loaded.values[3] == 127).all()


def test_int8_takes_the_model_and_a_few_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piece_numbers, readers = 1 << 16, 2
    monkeypatch.setattr(safetensors, "PIECE_NUMBERS", piece_numbers)
    monkeypatch.setattr(int8, "_BLOCK_NUMBERS", 1 << 13)
    write_tiny_checkpoint(tmp_path, vocab_size=40_000)
    load(tmp_path, weights="int8")
    tracemalloc.start()
    params = load(tmp_path, weights="int8", readers=readers)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    model_bytes = sum(array.nbytes for _, array in leaves(params))
    assert model_bytes > 20 * 4 * piece_numbers
    assert model_bytes < peak_bytes < model_bytes + readers * 3 * 4 * piece_numbers
