"""Every layout with every kind of model on every mesh of eight chips, against one chip: is it equal?

    python -m bench.layout_sweep [--models llama palm] [--meshes 2x2x2]

On eight virtual CPU devices, with the tiny models and the check of tests/equivalence/test_layouts.py, which runs a
tenth of these. Prints the largest difference of the logits for each model and mesh, and every layout beyond 1e-4.
"""

from __future__ import annotations

import argparse
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax.numpy as jnp
import numpy as np

from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.steps.prefill import flatten
from tests.engine.tiny_models import MODELS, all_logits
from tests.equivalence.test_layouts import LAYOUTS, MESHES, TOKENS, TOLERANCE, on_chips, plain_logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--meshes", nargs="+", default=list(MESHES))
    arguments = parser.parse_args()
    for model in arguments.models:
        for mesh in arguments.meshes:
            differences = {}
            for layout in LAYOUTS:
                params, placement = on_chips(model, Layouts.of(MeshShape.parse(mesh), layout, layout))
                order = np.asarray(flatten(jnp.arange(TOKENS.size).reshape(TOKENS.shape), placement.prefill))
                got = all_logits(params, placement, TOKENS)
                differences[layout] = float(np.abs(got - plain_logits(model)[order]).max())
            worst = max(differences.values())
            print(f"{model:8} {mesh}  {len(differences)} layouts, largest difference {worst:.1e}", flush=True)
            for layout, difference in differences.items():
                if difference > TOLERANCE:
                    print(f"  NOT EQUAL: {'/'.join(layout)} {difference:.1e}")


if __name__ == "__main__":
    main()
