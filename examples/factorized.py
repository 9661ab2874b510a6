"""Writes a wide dense layer as a product of low rank, alone and with a sparse residual of as many weights in all.

usage: factorized.py [epochs]
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from digits import digits
from low_rank_linear import bytes_of, make_wide, train

import edgecompress

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
RANK, DENSITY = 16, 0.02


def main() -> None:
    keras.utils.set_random_seed(0)
    samples, test = digits(as_rows=False)
    dense = keras.layers.Dense(512, activation="relu", name="wide")
    model = make_wide(dense)
    train(model, samples, epochs=EPOCHS)
    raw, packed = bytes_of(model)
    print(f"dense: {dense.count_params():,} weights, {model.evaluate(*test, verbose=0)[1]:.2%} right, ", end="")
    print(f"{raw:,} bytes, {packed:,} as gzip")

    # U diag(s) V + R stores rank * (512 + 512 + 1) weights and 512 * 512 * density; without R, a higher rank does.
    kernel = np.asarray(dense.kernel)
    stored = RANK * 1025 + round(DENSITY * kernel.size)
    for rank, density in ((stored // 1025, 0.0), (RANK, DENSITY)):
        layer = edgecompress.FactorizedDense.from_dense(dense, rank, density)
        error = np.linalg.norm(layer.kernel_matrix() - kernel) / np.linalg.norm(kernel)
        small = make_wide(layer)
        for name in ("first", "digit"):
            small.get_layer(name).set_weights(model.get_layer(name).get_weights())
        train(small, samples, epochs=0)
        before = small.evaluate(*test, verbose=0)[1]
        train(small, samples, epochs=max(1, EPOCHS // 2), rate=3e-4)
        after, (raw, packed) = small.evaluate(*test, verbose=0)[1], bytes_of(small)
        print(
            f"rank {rank}, residual of {density:.0%}: {stored:,} weights, error {error:.4f}, {before:.2%} right, ",
            end="",
        )
        print(f"{after:.2%} trained again, {raw:,} bytes, {packed:,} as gzip")


if __name__ == "__main__":
    main()
