"""Parameter counts of the named models against the published ones."""

from __future__ import annotations

import pytest

from engine.errors import NoFeasiblePlan
from engine.layout import HeldSizes
from engine.model.params import count, declare, leaves
from engine.planning.named_models import NAMED_MODELS, named_model

# Pope et al. 2022, section 6 of the reference; Hugging Face's counts of the checkpoints; Brown et al. 2020, table 2.1.
PUBLISHED = {
    "palm-8b": 8.63e9,
    "palm-62b": 62.50e9,
    "palm-540b": 540.35e9,
    "mt-nlg-530b": 530e9,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mixtral-8x7b": 46_702_792_704,
    "gpt3-175b": 174.6e9,
    "gemma-2-27b": 27_227_128_320,
}


def test_every_named_model_is_counted() -> None:
    assert PUBLISHED.keys() == NAMED_MODELS.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name: str) -> None:
    published = PUBLISHED[name]
    if isinstance(published, int):
        assert count(named_model(name)) == published
    else:  # given to so many digits
        assert count(named_model(name)) == pytest.approx(published, rel=1e-3)


def test_palm_540b_with_its_heads_padded_to_64() -> None:
    held = HeldSizes(heads=64, kv_heads=1, vocab=256_000)
    padded = sum(declared.size for _, declared in leaves(declare(named_model("palm-540b"), held)))
    assert padded == pytest.approx(558.2e9, rel=1e-4)


def test_windows_cover_every_layer_and_heads_group_evenly() -> None:
    for name, config in NAMED_MODELS.items():
        assert len(config.windows) in (0, config.layers), name
        assert config.heads % config.kv_heads == 0, name


def test_names_are_found_however_capitalised() -> None:
    assert named_model("PaLM-540B") is NAMED_MODELS["palm-540b"]


def test_an_unknown_name_is_answered_with_all_names() -> None:
    with pytest.raises(NoFeasiblePlan, match=r"'palm-540'.*palm-8b, palm-62b.*gemma-2-27b"):
        named_model("palm-540")
