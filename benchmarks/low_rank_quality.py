"""What low-rank decomposition costs in accuracy, on a GRU that judges sentences and on a CNN of pictures.

The GRU keeps a quarter of its weights or fewer (examples/reviews.py has its data, which `make setup` downloads); the
CNN keeps half of its multiply-accumulates. Both are decomposed by what their layers are fed with, and then trained
again; what the same training makes of the whole model is beside it, since a gain may come from that alone. Pictures are
Fashion-MNIST's where Debian's package dataset-fashion-mnist is installed or its folder is given, else the smaller
digits of scikit-learn. The last table has each layer's output error, at equal ranks, on samples that nothing was chosen
by: by plain SVD, which looks at weights alone, and by what the layer is fed with. Below it: how near the least error of
the weights plain SVD comes.

usage: low_rank_quality.py [--only gru|cnn] [--fashion FOLDER] [--samples 10000] [--seeds 3] [--save FILE]
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import keras
import numpy as np
from digits import digits
from results import save_results
from reviews import make_gru, reviews
from reviews import train as train_gru

from edgecompress.data import Dataset
from edgecompress.functional import as_functional, clone_model
from edgecompress.passes import apply_passes
from edgecompress.passes.base import LayerRank, PassContext
from edgecompress.passes.low_rank.activations import observe
from edgecompress.passes.low_rank.kind import Kind
from edgecompress.passes.low_rank.sites import find_sites
from edgecompress.techniques import LowRank, Training
from edgecompress.tfmot.retrain import retrain

Samples = tuple[np.ndarray, np.ndarray]
RANKS = (8, 16, 32)
HELD_OUT = 256


@dataclass(frozen=True)
class Task:
    """A model, its data, and how it is decomposed."""

    name: str
    make: Callable[[], keras.Model]
    train: Callable[[keras.Model, Samples], None]
    samples: Samples
    test: Samples
    low_rank: LowRank
    training: Training


@dataclass(frozen=True)
class Row:
    """One seed's figures: accuracies in percent on the test samples, and what is left of weights and MACs."""

    seed: int
    before: float
    decomposed: float
    plain_svd: float
    trained: float
    whole_trained: float
    weights: float
    macs: float
    seconds: float

    @property
    def points(self) -> float:
        """Accuracy gained, or lost, with training."""
        return self.trained - self.before

    @property
    def points_alike(self) -> float:
        """The same against the whole model after the same training."""
        return self.trained - self.whole_trained


def gru_task() -> Task:
    samples, test = reviews()
    return Task(
        "GRU(128), sentences", make_gru, lambda model, data: train_gru(model, data, epochs=4), samples, test,
        LowRank(layers={"gru": 16, "meaning|mood": 0}), Training(epochs=3, batch_size=64, learning_rate=3e-4),
    )  # fmt: skip


def cnn_task(folder: Path, count: int) -> Task:
    if folder.is_dir():
        x, y = read_idx(folder, "train")
        chosen = np.random.default_rng(0).permutation(len(x))[:count]
        samples, test, name = (x[chosen], y[chosen]), read_idx(folder, "t10k"), f"Fashion-MNIST, {count} for training"
    else:
        samples, test = digits(as_rows=False)
        name = "scikit-learn digits, 1200 for training"

    def train(model: keras.Model, data: Samples) -> None:
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
        best = keras.callbacks.EarlyStopping(patience=10, restore_best_weights=True)
        model.fit(*data, epochs=10, batch_size=64, validation_split=0.1, callbacks=[best], verbose=0)

    return Task(
        f"CNN, {name}", lambda: make_cnn(samples[0].shape[1:]), train, samples, test, LowRank(flops_budget=0.5),
        Training(epochs=5, batch_size=64, learning_rate=3e-4),
    )  # fmt: skip


def read_idx(folder: Path, part: str) -> Samples:
    """Returns images (n, 28, 28, 1) in [0, 1] and their class numbers."""
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return (images / 255).astype(np.float32).reshape(-1, 28, 28, 1), labels.astype(np.int64)


def make_cnn(shape: tuple[int, ...]) -> keras.Model:
    layers = keras.layers
    return keras.Sequential([
        keras.Input(shape, name="image"),
        *(
            layers.Conv2D(filters, 3, strides=strides, padding="same", activation="relu", name=f"conv_{number}")
            for number, (filters, strides) in enumerate(((32, 1), (32, 2), (64, 1), (64, 2), (128, 1)), 1)
        ),
        layers.GlobalAveragePooling2D(name="pool"),
        layers.Dropout(0.3, name="drop"),
        layers.Dense(10, activation="softmax", name="digit"),
    ], name="cnn")  # fmt: skip


def accuracy(model: keras.Model, test: Samples) -> float:
    return 100 * float(np.mean(model.predict(test[0], batch_size=200, verbose=0).argmax(-1) == test[1]))


def measure(task: Task, model: keras.Model, seed: int) -> Row:
    """Decomposes a trained model in three ways."""
    start = time.perf_counter()
    data = Dataset({model.inputs[0].name: task.samples[0]}, task.samples[1])
    looking = PassContext(
        training=task.training, seed=seed, calibration=data, compile_config=model.get_compile_config()
    )
    training = PassContext(**{**vars(looking), "data": data})
    plain, _ = apply_passes(model, [task.low_rank.model_copy(update={"activation_aware": False})], looking)
    decomposed, (result,) = apply_passes(model, [task.low_rank], looking)
    trained, _ = apply_passes(model, [task.low_rank], training)
    whole = clone_model(as_functional(model))
    retrain(whole, training.of_pass(LowRank(), model), LowRank())
    figures = [accuracy(each, task.test) for each in (model, decomposed, plain, trained, whole)]
    weights, macs = shares(result.ranks)
    return Row(seed, *figures, weights, macs, time.perf_counter() - start)


def shares(ranks: tuple[LayerRank, ...]) -> tuple[float, float]:
    """Returns what is left of the weights of the layers that were replaced, and of the MACs of all."""
    accepted = [each for each in ranks if each.accepted and each.chosen]
    macs = sum(each.macs or 0 for each in ranks)
    saved = sum((each.macs or 0) - (each.chosen.macs or 0) for each in accepted)
    return sum(each.chosen.params for each in accepted) / sum(each.params for each in accepted), 1 - saved / macs


def layer_errors(task: Task, model: keras.Model) -> Iterator[dict[str, object]]:
    """Yields the relative error of each layer's outputs at some ranks, before the activation, on test samples."""
    graph = as_functional(model)
    data = Dataset({graph.inputs[0].name: task.samples[0]})
    plain, aware = ({site.name: site.kind for site in find_sites(graph) if site.kind} for _ in range(2))
    observe(graph, {id(kind.layer): kind for kind in aware.values()}, data, 0)
    fed = {
        name: keras.Model(graph.inputs, kind.layer.input).predict(task.test[0][:HELD_OUT], verbose=0)
        for name, kind in plain.items()
    }
    for name, kind in plain.items():
        if isinstance(kind.layer, (keras.layers.Dense, keras.layers.Conv2D)):
            kind.layer.activation = keras.activations.linear  # factors stand for the product before it
        for method in (each for each in kind.methods if each != "cp"):  # cp has no plain SVD
            for rank in RANKS:
                ranks = tuple(min(rank, full) for full in kind.full_ranks(method))
                if kind.factor_params(method, ranks) < kind.params:
                    errors = [output_error(each, method, ranks, fed[name]) for each in (kind, aware[name])]
                    yield {"layer": name, "method": method, "ranks": ranks, "plain": errors[0], "aware": errors[1]}


def svd_excess(model: keras.Model) -> tuple[float, int]:
    """Returns by how much plain SVD misses the least error of the weights (Eckart and Young 1936), at worst.

    Over all ranks of all matrices, which are counted; the least error is worked out in double precision.
    """
    kinds = [site.kind for site in find_sites(model) if site.kind]
    pairs = [
        (one, matrix) for kind in kinds for method in kind.methods if method not in ("tucker", "cp")
        for found, together in zip(kind.spectra(method), kind.matrices(method), strict=True)
        for one, matrix in zip(found.each, together, strict=True)
    ]  # fmt: skip
    worst = 0.0
    for one, matrix in pairs:
        singular = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        left = np.sqrt(np.append(np.cumsum(singular[::-1] ** 2)[::-1], 0) / np.sum(singular**2))
        for rank in range(1, one.full_rank + 1):
            u, v = one.factors(rank)
            reached = np.linalg.norm(matrix - u.astype(np.float64) @ v) / np.linalg.norm(singular)
            worst = max(worst, reached - left[rank])
    return float(worst), len(pairs)


def output_error(kind: Kind, method: str, ranks: tuple[int, ...], fed: np.ndarray) -> float:
    exact, found = np.asarray(kind.layer(fed)), fed
    for layer in kind.build(method, ranks):
        found = layer(found)
    return float(np.linalg.norm(np.asarray(found) - exact) / np.linalg.norm(exact))


def run(task: Task, seeds: int) -> dict[str, object]:
    print(f"{task.name}; {len(task.test[0]):,} for testing; {describe(task.low_rank)}")
    print(
        f"{'seed':>5}{'before':>9}{'SVD':>8}{'aware':>8}{'trained':>9}{'points':>8}{'whole':>8}{'points':>8}{'weights':>9}{'MACs':>7}"
    )
    rows, models = [], []
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        model = task.make()
        task.train(model, task.samples)
        models.append(model)
        row = measure(task, model, seed)
        rows.append(row)
        show(str(seed), row)
    mean = Row(*(float(np.mean([getattr(row, name) for row in rows])) for name in asdict(rows[0])))
    show("mean", mean)
    print(f"\n{'layer':10}{'method':>10}{'ranks':>10}{'SVD':>10}{'aware':>10}")
    errors = list(layer_errors(task, models[0]))
    for each in errors:
        ranks = "-".join(map(str, each["ranks"]))
        print(f"{each['layer']:10}{each['method']:>10}{ranks:>10}{each['plain']:10.4f}{each['aware']:10.4f}")
    better = sum(each["aware"] <= each["plain"] for each in errors)
    print(f"the output error is smaller by what the layer is fed with in {better} of {len(errors)}")
    excess, matrices = svd_excess(models[0])
    print(f"plain SVD of {matrices} matrices, at all ranks: at most {excess:.1e} above the least error\n")
    return {
        "task": task.name, "seeds": [asdict(row) for row in rows], "mean": asdict(mean), "layers": errors,
        "svd_excess": excess,
    }  # fmt: skip


def describe(low_rank: LowRank) -> str:
    return ", ".join(f"{key}={value}" for key, value in low_rank.model_dump(exclude_defaults=True).items())


def show(title: str, row: Row) -> None:
    print(
        f"{title:>5}{row.before:9.2f}{row.plain_svd:8.2f}{row.decomposed:8.2f}{row.trained:9.2f}{row.points:+8.2f}"
        f"{row.whole_trained:8.2f}{row.points_alike:+8.2f}{row.weights:9.1%}{row.macs:7.1%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("gru", "cnn"))
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    tasks = {"gru": gru_task, "cnn": lambda: cnn_task(options.fashion, options.samples)}
    wanted = [options.only] if options.only else list(tasks)
    save_results(options.save, {name: run(tasks[name](), options.seeds) for name in wanted})


if __name__ == "__main__":
    main()
