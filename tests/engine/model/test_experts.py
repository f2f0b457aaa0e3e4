"""Mixtures of experts: every way over every layout is the plain loop over tokens and their experts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from engine.layout import Feedforward, Layout, Rest
from engine.mesh import MeshShape, make_mesh
from engine.model.config import Experts, ModelConfig
from engine.model.exchange import fold, plan_exchange, send
from engine.model.expert_strategy import STRATEGIES, Strategy, expert_axes
from engine.model.experts import experts
from engine.model.mixture import accelerator_block_rows, all_at_once, by_blocks, cpu_block_rows
from engine.model.quantized import Quantized, dequantize, quantize
from engine.model.routing import combine, route, sort_by_expert
from tests.compiling import AS_USERS_DO

MESHES = ("8x1x1", "2x4x1", "4x2x1", "2x2x2", "1x2x4")
LAYOUTS: tuple[Feedforward, ...] = ("ws1d", "ws2d", "wg-x", "wg-xy", "wg-xyz")
MIXTURES = {"8 top-2": Experts(8, 2), "4 top-1": Experts(4, 1), "6 top-2": Experts(6, 2)}
TOKENS = 40
ONE_CHIP = Layout()

CONFIG = ModelConfig(
    layers=1,
    embed=16,
    ffn=24,
    heads=2,
    kv_heads=2,
    head_dim=8,
    vocab=32,
    context_tokens=64,
    norm_epsilon=1e-5,
    rotary=None,
    tied_head=False,
    experts=Experts(8, 2),
)


def layer_of(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    assert config.experts is not None
    rng, count = np.random.default_rng(seed), config.experts.count

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)

    return {
        "router": 3 * normal(count, config.embed),
        "gate": normal(count, config.ffn, config.embed),
        "up": normal(count, config.ffn, config.embed),
        "down": normal(count, config.embed, config.ffn),
    }


def tokens_of(config: ModelConfig, tokens: int = TOKENS, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, config.embed), np.float32)


def loop(layer: dict[str, Any], x: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Token by token, expert by expert, in float64."""
    assert config.experts is not None
    router, gate, up, down = (np.float64(layer[name]) for name in ("router", "gate", "up", "down"))
    out = np.zeros(x.shape)
    for token, row in enumerate(np.float64(x)):
        logits = router @ row
        chosen = np.argsort(-logits, kind="stable")[: config.experts.per_token]
        likes = np.exp(logits[chosen] - logits[chosen].max())
        for expert, weight in zip(chosen, likes / likes.sum(), strict=True):
            opened = gate[expert] @ row
            out[token] += weight * (down[expert] @ (opened / (1 + np.exp(-opened)) * (up[expert] @ row)))
    return out


def layout_of(mesh: str, ffn: Feedforward, rest: Rest | None = None) -> Layout:
    return Layout(MeshShape.parse(mesh), ffn, rest=rest or ("1d" if ffn == "ws1d" else "2d"))


def on_mesh(
    layer: dict[str, Any],
    x: np.ndarray,
    config: ModelConfig,
    layout: Layout,
    ways: tuple[Strategy | None, ...] = (None,),
) -> list[np.ndarray]:
    """`experts` in each of these ways, in one program."""
    assert config.experts is not None

    def spec(*axes: Any) -> P:
        return P(*(over or None for over in layout.at_rest(axes, 1, config.experts.count)))

    into, out_of = spec("experts", "ffn", "embed"), spec("experts", "embed", "ffn")
    specs: dict[str, Any] = {"router": P(), "gate": into, "up": into, "down": out_of}
    specs = {name: Quantized(at, P()) if isinstance(layer[name], Quantized) else at for name, at in specs.items()}
    stream = P(layout.tokens or None, layout.used_embed or None)
    run = jax.shard_map(
        lambda layer, x: [experts(layer, x, config, layout, how) for how in ways],
        mesh=make_mesh(layout.mesh),
        in_specs=(specs, stream),
        out_specs=[stream] * len(ways),
        check_vma=False,
    )
    return [np.asarray(out) for out in jax.jit(run)(layer, x)]


def on_one_chip(layer: dict[str, Any], x: Any, config: ModelConfig) -> np.ndarray:
    return np.asarray(jax.jit(lambda layer, x: experts(layer, x, config, ONE_CHIP))(layer, x))


def ways_of(config: ModelConfig, layout: Layout) -> tuple[Strategy, ...]:
    """Without expert axes all ways are one."""
    assert config.experts is not None
    return STRATEGIES if expert_axes(config.experts.count, layout) else STRATEGIES[:1]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_one_chip(mixture: str) -> None:
    config = replace(CONFIG, experts=MIXTURES[mixture])
    layer, x = layer_of(config), tokens_of(config)
    np.testing.assert_allclose(on_one_chip(layer, x, config), loop(layer, x, config), atol=1e-5)


EVERY_LAYOUT = [
    pytest.param(mesh, ffn, marks=pytest.mark.slow if (row + column) % 3 else ())
    for row, mesh in enumerate(MESHES)
    for column, ffn in enumerate(LAYOUTS)
]


@pytest.mark.parametrize(("mesh", "ffn"), EVERY_LAYOUT)
def test_every_way_over_every_layout(mesh: str, ffn: Feedforward) -> None:
    layout, layer, x = layout_of(mesh, ffn), layer_of(CONFIG), tokens_of(CONFIG)
    for out in on_mesh(layer, x, CONFIG, layout, ways_of(CONFIG, layout)):
        np.testing.assert_allclose(out, loop(layer, x, CONFIG), atol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "ffn", "rest"),
    [("2x2x2", "ws2d", "2d"), ("1x2x4", "ws1d", "1d"), pytest.param("2x2x2", "wg-x", "1d", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("mixture", [pytest.param("4 top-1", marks=pytest.mark.slow), "6 top-2"])
def test_numbers_of_experts(mixture: str, mesh: str, ffn: Feedforward, rest: Rest) -> None:
    """Some divide over all axes, some over one, some over none."""
    config, layout = replace(CONFIG, experts=MIXTURES[mixture]), layout_of(mesh, ffn, rest)
    layer, x = layer_of(config), tokens_of(config)
    for out in on_mesh(layer, x, config, layout, ways_of(config, layout)):
        np.testing.assert_allclose(out, loop(layer, x, config), atol=1e-5)


@pytest.mark.parametrize("favourite", [5, *(pytest.param(expert, marks=pytest.mark.slow) for expert in (0, 7))])
def test_no_token_is_dropped_however_popular_an_expert_is(favourite: int) -> None:
    """All tokens want the same two experts: one chip has all the work and the others none."""
    layer, x = layer_of(CONFIG), np.abs(tokens_of(CONFIG))
    layer["router"][favourite] += 9
    layer["router"][favourite - 1] += 7
    layout = layout_of("2x2x2", "ws1d")
    for out in on_mesh(layer, x, CONFIG, layout, STRATEGIES):
        np.testing.assert_allclose(out, loop(layer, x, CONFIG), atol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "ffn"),
    [("2x2x2", "ws2d"), *(pytest.param("2x2x2", ffn, marks=pytest.mark.slow) for ffn in ("ws1d", "wg-x"))],
)
def test_int8_weights(mesh: str, ffn: Feedforward) -> None:
    layout, layer, x = layout_of(mesh, ffn), layer_of(CONFIG), tokens_of(CONFIG)
    stored = {name: value if name == "router" else quantize(value) for name, value in layer.items()}
    meant = {name: np.asarray(dequantize(value)) if name != "router" else value for name, value in stored.items()}
    expected = loop(meant, x, CONFIG)
    assert np.abs(expected - loop(layer, x, CONFIG)).max() > 1e-3, "the scales are to matter"
    np.testing.assert_allclose(on_one_chip(stored, x, CONFIG), expected, atol=1e-5)
    for out in on_mesh(stored, x, CONFIG, layout, STRATEGIES):
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.slow
def test_bfloat16() -> None:
    """As close as numbers with 8 bits are, in every way."""
    layout, layer, x = layout_of("2x2x2", "ws2d"), layer_of(CONFIG), tokens_of(CONFIG)
    rounded = {name: jnp.asarray(value, jnp.bfloat16) for name, value in layer.items()}
    short = jnp.asarray(x, jnp.bfloat16)
    expected = loop({name: np.float32(value) for name, value in rounded.items()}, np.float32(short), CONFIG)
    for out in (on_one_chip(rounded, short, CONFIG), *on_mesh(rounded, short, CONFIG, layout, STRATEGIES)):
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(out), expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("without_gate", [False, True])
def test_activation_and_gate_are_those_of_the_configuration(without_gate: bool) -> None:
    config = replace(CONFIG, activation="gelu_tanh", gated=not without_gate)
    layer, x = layer_of(config), tokens_of(config)
    if without_gate:
        del layer["gate"]
    out = on_one_chip(layer, x, config)
    routes = route(jnp.asarray(x), jnp.asarray(layer["router"]), 2, ())
    expected = np.zeros_like(x)
    for token, row in enumerate(x):
        for expert, weight in zip(np.asarray(routes.experts[token]), np.asarray(routes.weights[token]), strict=True):
            up = layer["up"][expert] @ row
            opened = up if without_gate else layer["gate"][expert] @ row
            opened = opened / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (opened + 0.044715 * opened**3)))
            expected[token] += weight * (layer["down"][expert] @ (opened if without_gate else opened * up))
    np.testing.assert_allclose(out, expected, atol=1e-5)


class TestRouting:
    def test_weights_are_the_softmax_over_all_brought_to_one(self) -> None:
        layer, x = layer_of(CONFIG), tokens_of(CONFIG)
        routes = route(jnp.asarray(x), jnp.asarray(layer["router"]), 3, ())
        probabilities = np.exp(np.float64(x) @ layer["router"].T)
        probabilities /= probabilities.sum(-1, keepdims=True)
        best = np.sort(probabilities, -1)[:, :-4:-1]
        np.testing.assert_array_equal(routes.experts, np.argsort(-probabilities, -1)[:, :3])
        np.testing.assert_allclose(routes.weights, best / best.sum(-1, keepdims=True), rtol=1e-5)

    def test_of_two_liked_alike_the_lower_number_comes_first(self) -> None:
        router = jnp.asarray([[1.0], [2.0], [3.0], [2.0], [3.0], [2.0]])
        routes = route(jnp.ones((1, 1)), router, 4, ())
        np.testing.assert_array_equal(routes.experts, [[2, 4, 1, 3]])

    def test_logits_of_any_size_give_weights(self) -> None:
        routes = route(jnp.ones((1, 1)), jnp.asarray([[1000.0], [-1000.0], [999.0]]), 2, ())
        np.testing.assert_allclose(routes.weights, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]], rtol=1e-6)

    def test_pairs_in_the_order_of_some_of_the_experts(self) -> None:
        chosen = jnp.asarray([[3, 0], [2, 3], [1, 2]], jnp.int32)
        pairs = sort_by_expert(chosen, 2, 2)
        np.testing.assert_array_equal(pairs.tokens[:4], [1, 2, 0, 1])
        np.testing.assert_array_equal(pairs.sizes, [2, 2])
        np.testing.assert_array_equal(pairs.here, [[True, False], [True, True], [False, True]])
        np.testing.assert_array_equal(pairs.places[pairs.here], [2, 0, 3, 1])

    def test_what_belongs_to_no_pair_is_not_looked_at(self) -> None:
        pairs = sort_by_expert(jnp.asarray([[3, 0], [2, 3]], jnp.int32), 2, 2)
        results = jnp.asarray([[1.0], [10.0], [100.0], [jnp.nan], [jnp.nan]])
        out = combine(results, pairs, jnp.asarray([[0.5, 0.5], [0.25, 0.75]]))
        np.testing.assert_array_equal(out, [[5.0], [75.25]])


class TestExchange:
    """Random tables of rows; every row says where it comes from and which expert it is for."""

    LAYOUT = layout_of("2x2x2", "ws1d")
    AXES = ("z", "y")
    CHIPS, EXPERTS, ROWS = 4, 8, 12

    def tables(self) -> np.ndarray:
        """[chip, row] -> expert, sorted; a chip without rows for most, and an expert that all want."""
        rng = np.random.default_rng(3)
        wanted = [rng.integers(0, self.EXPERTS, self.ROWS), np.full(self.ROWS, 5), rng.integers(4, 6, self.ROWS)]
        return np.sort(np.stack([*wanted, rng.integers(0, 8, self.ROWS)]), axis=1)

    def run(self, function: Any, *args: Any) -> list[np.ndarray]:
        """On each chip; what comes back is [chip, ...]. Chips along x are copies of each other."""
        mapped = jax.shard_map(
            lambda *args: jax.tree.map(lambda out: out[None], function(*(x[0] for x in args))),
            mesh=make_mesh(self.LAYOUT.mesh),
            in_specs=(P(self.AXES),) * len(args),
            out_specs=P(self.AXES),
            check_vma=False,
        )
        return jax.tree.map(np.asarray, jax.jit(mapped)(*args))

    @staticmethod
    def plan(wanted: jax.Array) -> Any:
        sizes = (wanted[:, None] == jnp.arange(TestExchange.EXPERTS)[None]).sum(0, dtype=jnp.int32)
        return plan_exchange(sizes, TestExchange.AXES)

    def test_rows_arrive_in_the_order_of_experts_and_come_back(self) -> None:
        wanted = self.tables()
        rows = np.stack([np.repeat(np.arange(self.CHIPS), self.ROWS).reshape(wanted.shape), wanted], -1) + 0.5
        rows = np.concatenate([rows, rows], -1).astype(np.float32)
        space = self.CHIPS * self.ROWS

        def there_and_back(rows: jax.Array, wanted: jax.Array) -> Any:
            plan = self.plan(wanted)
            arrived = send(fold(rows), plan.there, plan.back, space, self.AXES)
            returned = send(arrived, plan.back, plan.there, self.ROWS, self.AXES)
            return plan.sizes, arrived.reshape(space, -1), returned.reshape(rows.shape)

        sizes, arrived, returned = self.run(there_and_back, rows, wanted.astype(np.int32))
        np.testing.assert_array_equal(returned, rows)
        for chip in range(self.CHIPS):
            mine = [2 * chip, 2 * chip + 1]
            np.testing.assert_array_equal(sizes[chip], [(wanted == expert).sum() for expert in mine])
            expected = [row for expert in mine for row in rows.reshape(-1, 4) if row[1] == expert + 0.5]
            np.testing.assert_array_equal(arrived[chip][: len(expected)], expected)

    def test_the_plan_is_one_that_the_accelerators_own_operation_takes(self) -> None:
        """Followed here to the letter of jax.lax.ragged_all_to_all, which the CPU does not have."""
        wanted = self.tables()
        plan = self.run(self.plan, wanted.astype(np.int32))
        rows = np.arange(wanted.size).reshape(wanted.shape)
        arrived = self.ragged_all_to_all(rows, plan.there, plan.back.sizes, self.CHIPS * self.ROWS)
        for chip in range(self.CHIPS):
            mine = [rows[wanted == expert] for expert in (2 * chip, 2 * chip + 1)]
            expected = np.concatenate(mine)
            np.testing.assert_array_equal(arrived[chip][: expected.size], expected)
            assert (arrived[chip][expected.size :] == -1).all()
        np.testing.assert_array_equal(self.ragged_all_to_all(arrived, plan.back, plan.there.sizes, self.ROWS), rows)

    def ragged_all_to_all(self, operand: np.ndarray, out: Any, received: np.ndarray, space: int) -> np.ndarray:
        result, each = np.full((self.CHIPS, space), -1), self.EXPERTS // self.CHIPS
        for source in range(self.CHIPS):
            for nth in range(self.EXPERTS):
                chip = nth // each
                start, size, at = (part[source, nth] for part in out)
                assert received[chip, source * each + nth % each] == size
                assert (result[chip, at : at + size] == -1).all()
                result[chip, at : at + size] = operand[source, start : start + size]
        return result


class TestMixture:
    """What a chip does with sorted rows: both forms, whichever the platform takes."""

    SIZES = (5, 0, 17, 1, 0, 0, 30, 3)

    def rows(self) -> tuple[Any, ...]:
        layer = {name: jnp.asarray(value) for name, value in layer_of(CONFIG).items() if name != "router"}
        x = jnp.asarray(tokens_of(CONFIG))
        order = (
            np.random.default_rng(4).integers(0, TOKENS, sum(self.SIZES) + 8).astype(np.int32)
        )  # 8 that nobody wants
        return x, jnp.asarray(order), jnp.asarray(self.SIZES, jnp.int32), layer

    @pytest.mark.parametrize("block_rows", [8, 16, 256, None])
    def test_each_row_goes_through_its_expert(self, block_rows: int | None) -> None:
        x, order, sizes, layer = self.rows()
        form = all_at_once if block_rows is None else partial(by_blocks, block_rows=block_rows)
        results = jax.jit(partial(form, config=CONFIG, layout=ONE_CHIP))(x, order, sizes, layer)
        owners, single = np.repeat(np.arange(8), self.SIZES), replace(CONFIG, experts=Experts(1, 1))
        for row, owner in enumerate(owners):
            alone = {name: value[owner][None] for name, value in layer.items()} | {
                "router": np.zeros((1, CONFIG.embed))
            }
            expected = loop(alone, np.asarray(x[order[row]])[None], single)[0]
            np.testing.assert_allclose(results[row], expected, atol=1e-5)

    def test_blocks_are_as_large_as_what_an_expert_gets_within_limits(self) -> None:
        assert [cpu_block_rows(rows) for rows in (0.1, 2.0, 10.5, 63.0, 1e3)] == [8, 8, 16, 64, 64]
        assert [accelerator_block_rows(rows) for rows in (1.0, 256.0, 257.0, 5e3)] == [256, 256, 512, 1024]

    @pytest.mark.parametrize(("tokens", "form"), [(24, all_at_once), (1040, by_blocks)])
    @pytest.mark.parametrize("ffn", [pytest.param("ws1d", marks=pytest.mark.slow), "ws2d", "wg-x"])
    def test_the_accelerators_forms_over_layouts(
        self, ffn: Feedforward, tokens: int, form: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Few rows all at once, many by large blocks; with the exchange that this platform has."""
        real, taken = lax.platform_dependent, []

        def elsewhere(*args: Any, default: Any, cpu: Any) -> Any:
            if getattr(default, "func", None) not in (all_at_once, by_blocks):
                return real(*args, default=default, cpu=cpu)
            assert default.keywords.get("block_rows", 256) >= 256
            taken.append(default.func)
            return default(*args)

        monkeypatch.setattr(lax, "platform_dependent", elsewhere)
        layer, x = layer_of(CONFIG), tokens_of(CONFIG, tokens)
        for out in on_mesh(layer, x, CONFIG, layout_of("2x2x2", ffn), STRATEGIES):
            np.testing.assert_allclose(out, loop(layer, x, CONFIG), atol=1e-5)
        assert taken == [form] * len(STRATEGIES)


@pytest.mark.parametrize(
    ("embed", "ffn", "dtype"),
    [
        pytest.param(64, 96, "float32", marks=pytest.mark.slow),
        pytest.param(64, 96, "bfloat16", marks=pytest.mark.slow),
        pytest.param(64, 96, "int8", marks=pytest.mark.slow),
        pytest.param(100, 52, "float32", marks=pytest.mark.slow),
        (512, 384, "float32"),
    ],
)
def test_a_rows_bits_do_not_depend_on_its_company(embed: int, ffn: int, dtype: str) -> None:
    """On CPU: not on how many rows there are, nor on which experts the others go to."""
    config = replace(CONFIG, embed=embed, ffn=ffn)
    layer, x = layer_of(config), tokens_of(config, 256)
    if dtype == "int8":
        layer = {name: value if name == "router" else quantize(value) for name, value in layer.items()}
    else:
        layer = {name: jnp.asarray(value, jnp.dtype(dtype)) for name, value in layer.items()}
        x = np.asarray(jnp.asarray(x, jnp.dtype(dtype)))
    layer = jax.tree.map(jnp.asarray, layer)
    run = jax.jit(lambda x: experts(layer, x, config, ONE_CHIP), compiler_options=AS_USERS_DO)
    whole = np.asarray(run(x))
    for rows in (8, 11, 40, 64):
        np.testing.assert_array_equal(np.asarray(run(x[:rows])), whole[:rows], f"{rows} rows")
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(np.asarray(run(x[order])), whole[order])
    for tokens in (64, 256):
        company = np.repeat(x[5][None], tokens, 0)  # all of one mind, and so in one expert's blocks
        company[3], company[-1] = x[7], x[9]
        among = np.asarray(run(company))
        np.testing.assert_array_equal(among[[0, 3, -1]], whole[[5, 7, 9]])
        np.testing.assert_array_equal(among[4:-1], np.repeat(whole[5][None], tokens - 5, 0))
