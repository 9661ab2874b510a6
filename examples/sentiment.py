"""Makes a GRU that judges sentences small: low-rank kernels, a smaller table of words, and 8 bits for everything.

usage: sentiment.py [epochs] [vaderSentiment-0.5.zip]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from reviews import PACKAGE, make_gru, reviews, train

import edgecompress

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 4
SENTENCES = Path(sys.argv[2]) if len(sys.argv) > 2 else PACKAGE


def main() -> None:
    keras.utils.set_random_seed(0)
    samples, test = reviews(SENTENCES)
    model = make_gru()
    train(model, samples, epochs=EPOCHS)

    # Both kernels of the GRU get rank 16, a quarter of its weights or fewer; the first factor of its input kernel is
    # then multiplied into the embedding, which leaves 16 numbers a word in the place of 64.
    recipe = edgecompress.Recipe(
        passes=(edgecompress.LowRank(layers={"gru": 16, "meaning|mood": 0}), edgecompress.Fuse(embedding="size")),
        training=edgecompress.Training(epochs=max(1, EPOCHS // 2), batch_size=64, learning_rate=3e-4),
        quantization={"scheme": "int8", "recurrent": "loop"},
        verification={"samples": len(test[0])},
    )
    report = edgecompress.convert(
        model, "host", train=samples, data=test, recipe=recipe, output="sentiment-host", benchmark=False
    )
    low_rank, fuse = report.passes
    for layer in low_rank.ranks:
        print(f"{layer.layer}: {layer.reason}")
    for fusion in fuse.fusions:
        print(f"{' + '.join(fusion.layers)}: {fusion.detail}")
    before, after = report.before, report.after
    print(f"{report.scheme}: {before.size_bytes:,} bytes became {after.size_bytes:,}")
    if before.scores is not None and after.scores is not None:
        print(f"accuracy on {report.verified.samples:,} other sentences: ", end="")
        print(f"{before.scores.accuracy:.2%} became {after.scores.accuracy:.2%}")


if __name__ == "__main__":
    main()
