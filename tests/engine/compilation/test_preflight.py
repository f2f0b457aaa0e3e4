"""What is known of a checkpoint before any device is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.compilation.preflight import CheckpointFacts, preflight
from engine.errors import UnsupportedCheckpoint
from tests.engine.tiny_checkpoint import write_tiny_checkpoint


def test_the_facts_are_the_files(tmp_path: Path) -> None:
    tensors = write_tiny_checkpoint(tmp_path, dtype="bfloat16", tie_word_embeddings=True, eos_token_id=[2, 5])
    facts = preflight(str(tmp_path))
    numbers = sum(array.size for array in tensors.values())
    assert facts == CheckpointFacts(
        fingerprint=facts.fingerprint,
        architecture="LlamaForCausalLM",
        parameters=numbers,
        weight_bytes=2 * numbers,
        context_tokens=512,
        vocab_size=320,
        dtype="bfloat16",
        eos_token_ids=(2, 5),
    )


def test_a_broken_checkpoint_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnsupportedCheckpoint, match="is truncated"):
        preflight(str(tmp_path))


def test_no_device_is_needed(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    script = (
        "import sys; from engine.compilation.preflight import preflight; "
        "preflight(sys.argv[1]); import engine.weights.load; "
        "sys.exit(sorted({'jax', 'torch', 'safetensors', 'fsspec'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
