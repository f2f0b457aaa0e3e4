"""Random checkpoints made by transformers, and the models that answer for them.

The weights are spread more widely than any training would start from, so that logits are not flat: the likeliest token
leads by far more than rounding, and greedy continuations can be compared token by token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the oracle is transformers, which needs torch")
torch.set_num_threads(1)  # two workers of pytest have two cores between them
transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

VOCAB = 320


def make_tiny(
    family: str,
    directory: str | Path,
    *,
    head: str = "ForCausalLM",
    dtype: str = "float32",
    seed: int = 0,
    **attributes: Any,
) -> Any:
    """Saves a random `<family>ForCausalLM` in `directory`; returns it in float32, holding exactly the saved values.

    `attributes` are those of its config.
    """
    shared = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}
    config = getattr(transformers, f"{family}Config")(**shared | attributes, attn_implementation="eager")
    architecture = getattr(transformers, family + head)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # transformers starts norms at one (Gemma at zero) and biases at zero, where mistakes cannot show.
                if name.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
                elif "norm" in name or ".ln_" in name:
                    parameter.uniform_(-0.5, 0.5).add_(parameter.new_tensor(0.0 if family == "Gemma2" else 1.0))
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    # Read back, not cast back: a cast would leave the rotary frequencies rounded to the file's dtype.
    return architecture.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
