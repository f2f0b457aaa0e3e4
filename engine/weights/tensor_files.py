"""Which files of a checkpoint hold its tensors: one, or those an index names. Directories are never listed."""

from __future__ import annotations

from typing import Any

from engine.errors import UnsupportedCheckpoint
from engine.families.attributes import shown
from engine.families.documents import Open, exists, join, open_file, read_document
from engine.weights.safetensors import StoredTensor, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")


def stored_tensors(checkpoint: str, open: Open) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by name, from the headers alone.

    Where there is both a single file and an index, the single file counts, as it does to transformers.
    """
    single = open_file(checkpoint, SINGLE, open)
    if single is not None:
        with single:
            return {tensor.name: tensor for tensor in read_header(single, join(checkpoint, SINGLE))}
    index = read_document(checkpoint, INDEX, open)
    if index is not None:
        return _from_index(checkpoint, index, open)
    for name in PICKLES:
        if exists(checkpoint, name, open):
            raise UnsupportedCheckpoint(
                f"{checkpoint} holds its weights as a pickle ({name}), which can run code when it is read, so it is "
                "not read here; if you trust it, convert it to safetensors:\n"
                '  python -c "from transformers import AutoModelForCausalLM as Model; '
                f"Model.from_pretrained('{checkpoint}').save_pretrained('NEW_DIRECTORY')\""
            )
    raise UnsupportedCheckpoint(f"{checkpoint} has no weights: neither {SINGLE} nor {INDEX}")


def _from_index(checkpoint: str, index: dict[str, Any], open: Open) -> dict[str, StoredTensor]:
    where = join(checkpoint, INDEX)
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise UnsupportedCheckpoint(f"{where}: weight_map must say which file each tensor is in; it is {shown(placed)}")
    for tensor, name in placed.items():
        if not isinstance(name, str) or not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise UnsupportedCheckpoint(
                f"{where}: {tensor[:120]} is said to be in {shown(name)}, which is no safetensors file beside the index"
            )

    found: dict[str, StoredTensor] = {}
    for name in sorted(set(placed.values())):
        file = open_file(checkpoint, name, open)
        if file is None:
            lost = sum(other == name for other in placed.values())
            raise UnsupportedCheckpoint(f"{join(checkpoint, name)} is missing; {INDEX} says it holds {lost} tensors")
        with file:
            for tensor in read_header(file, join(checkpoint, name)):
                if tensor.name in found:
                    raise UnsupportedCheckpoint(
                        f"{tensor.name[:120]} is both in {found[tensor.name].file} and in {tensor.file}; keep one"
                    )
                found[tensor.name] = tensor
    for tensor, name in placed.items():
        if tensor not in found or found[tensor].file != join(checkpoint, name):
            raise UnsupportedCheckpoint(f"{join(checkpoint, name)} lacks {tensor[:120]}, which {INDEX} says it holds")
    return found
