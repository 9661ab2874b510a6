"""What a teacher gives a student at most an eighth of its size, and what teaching costs in time.

    python benchmarks/distillation.py --mnist mnist.npz --snips snips.json --save benchmarks/results/distillation.json

Quality: for each of three seeds a teacher, a student trained by labels alone, and the same student (its first weights,
samples, their order and epochs the same) trained by labels and the teacher. All three see the same labelled samples
and copies of them: images that were turned, shifted and scaled a little; sentences of which words are hidden, or only a
part is left. Images are 500 of `--mnist` (arrays x_train and y_train) or scikit-learn's digits; sequences are 1,000
sentences of `--snips` (SNIPS: "train" and "test", pairs of a sentence and its intent) or the digits row by row. What
nothing was trained or chosen on tests: all other images of x_train but 5,000; all other sentences but 1,500.

How settings were chosen: the learning rate is chosen in each run, on samples for validation with a seed of its own, for
the student alone and for the taught one by itself, from the same rates. All else was chosen on the same samples before:
alpha, temperature, the copies, the students' width, Dropout in the teachers, and how many images there are. Without
copies neither task gave the teacher anything to tell; AttentionTransfer beside the soft labels of images made them
worse. The more images there are, the less a teacher gives: with 2,000, ten copies and no Dropout it was 0.24 points
where the seeds' range was 0.23 (on MNIST's test images), and 0.43 at 0.55 with students of 1/38 (on those that test
here), which is what led to the smaller set. The sentences were tested once.

Passes: the teacher of images pruned, clustered or quantized, and trained again for an epoch, by labels alone, and with
half of the loss being what it answered before; accuracies of the .tflite files.

Speed: training steps by turns in one process, XLA off: without a teacher, with one, with one whose answers are cached
on disk; and the teacher's forward pass by itself. Medians of the times from one step's end to the next one's, which
what brings the samples is a part of.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import keras
import numpy as np
import tensorflow as tf
from digits import digits
from results import save_results

from edgecompress import Cluster, Prune, Qat, Recipe, Training, convert
from edgecompress.distill import Distiller, make_student
from edgecompress.distill.taught import taught_samples

Samples = tuple[np.ndarray, np.ndarray]
layers = keras.layers

TABLES = ("quality", "passes", "speed")
BATCH = 64
COPIES = {"images": 40, "sequences": 10}  # of each sample, the original one of them
RATES = (3e-3, 1e-2, 2e-2)  # that a student's is chosen from
TEACHER_RATE = 3e-3
ALPHA, TEMPERATURE = 0.9, 4.0
CHOOSING = 100  # the seed that rates are chosen with
STEPS = 20  # of a sentence, at most
HIDDEN, CUT = 0.15, 0.25  # shares: of words, of sentences
SHARE, TESTED = 0.5, 5000  # in passes: of the loss; samples
SPEED_BATCH, TURNS, STEPS_A_TURN, WARM_UP = 32, 8, 14, 4


@dataclass(frozen=True)
class Task:
    """Samples, and models for them that answer with logits."""

    name: str
    train: Samples
    validation: Samples
    test: Samples
    teacher: Callable[[], keras.Model]
    student: Callable[[], keras.Model]
    epochs: tuple[int, int]  # the teacher's and the students'


def image_task(mnist: Path | None) -> Task:
    if mnist is None:
        (x, y), test = digits(as_rows=False)
        train, validation, name, epochs = (x[:900], y[:900]), (x[900:], y[900:]), "digits", (5, 6)
    else:
        with np.load(mnist) as file:
            x, y = file["x_train"], file["y_train"]
        order = np.random.default_rng(0).permutation(len(x))
        x, y, name, epochs = as_images(x[order]), y[order], "MNIST", (5, 6)
        train, test, validation = ((x[part], y[part]) for part in np.split(np.arange(len(x)), (500, len(x) - 5000)))
    shape = train[0].shape[1:]
    return Task(
        f"{name}, CNN", with_copies(train, alter_images, COPIES["images"]), validation, test,
        lambda: make_cnn(shape, dropout=0.4), lambda: make_student(make_cnn(shape, dropout=0), width=0.25), epochs,
    )  # fmt: skip


def as_images(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., None].astype(np.float32) / 255


def make_cnn(shape: tuple[int, ...], *, dropout: float) -> keras.Model:
    stack: list[Any] = [keras.Input(shape, name="image")]
    for number, (filters, strides) in enumerate(((32, 1), (32, 2), (64, 1), (64, 2), (128, 1)), 1):
        stack += [
            layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=f"conv_{number}"),
            layers.BatchNormalization(momentum=0.9, name=f"norm_{number}"),
            layers.ReLU(name=f"relu_{number}"),
        ]
    stack += [layers.GlobalAveragePooling2D(name="pool"), layers.Dropout(dropout, name="dropped")]
    stack.append(layers.Dense(10, name="digit"))
    return keras.Sequential(stack, name="cnn")


def alter_images(x: np.ndarray) -> np.ndarray:
    empty = {"fill_mode": "constant", "fill_value": 0.0}
    alter = keras.Sequential([
        layers.RandomRotation(0.05, **empty), layers.RandomTranslation(0.1, 0.1, **empty),
        layers.RandomZoom(0.12, **empty),
    ])  # fmt: skip
    return np.concatenate([alter(x[start : start + 500], training=True) for start in range(0, len(x), 500)])


def sequence_task(snips: Path | None) -> Task:
    if snips is None:
        (x, y), test = digits(as_rows=True)
        train = with_copies((x[:900, ..., None], y[:900]), alter_images, COPIES["sequences"])
        train = (train[0][..., 0], train[1])
        return Task(
            "digits row by row, GRU", train, (x[900:], y[900:]), test, make_gru,
            lambda: make_student(make_gru(), width=0.25), (6, 12),
        )  # fmt: skip
    content = json.loads(snips.read_text("utf-8"))
    pairs = [content["train"][k] for k in np.random.default_rng(0).permutation(len(content["train"]))]
    pairs += content["test"]
    words = [re.findall(r"\w+", sentence.lower()) for sentence, _ in pairs]
    known = [word for word, count in Counter(itertools.chain(*words[:1000])).most_common() if count > 1]
    intents = sorted({intent for _, intent in pairs})
    x, y = as_numbers(words, known), np.array([intents.index(intent) for _, intent in pairs])
    sizes = len(known) + 2, len(intents)
    train, validation, test = ((x[part], y[part]) for part in np.split(np.arange(len(x)), (1000, 2500)))
    return Task(
        "SNIPS, bidirectional GRU", with_copies(train, alter_sentences, COPIES["sequences"]), validation, test,
        lambda: make_reader(*sizes, dropout=0.4), lambda: make_student(make_reader(*sizes, dropout=0), width=0.125),
        (3, 10),
    )  # fmt: skip


def as_numbers(sentences: list[list[str]], known: list[str]) -> np.ndarray:
    """Returns the numbers of words: 0 after the end, 1 for those that are not known."""
    numbers = {word: number for number, word in enumerate(known, 2)}
    x = np.zeros((len(sentences), STEPS), np.int32)
    for row, sentence in zip(x, sentences, strict=True):
        row[: len(sentence)] = [numbers.get(word, 1) for word in sentence[:STEPS]]
    return x


def make_reader(words: int, intents: int, *, dropout: float) -> keras.Model:
    return keras.Sequential([
        keras.Input((STEPS,), dtype="int32", name="words"),
        layers.Embedding(words, 64, mask_zero=True, name="meaning"),
        layers.Dropout(dropout, name="hidden"),
        layers.Bidirectional(layers.GRU(64), name="gru"),
        layers.Dropout(dropout, name="dropped"),
        layers.Dense(intents, name="intent"),
    ], name="reader")  # fmt: skip


def make_gru() -> keras.Model:
    stack = [keras.Input((8, 8), name="rows"), layers.GRU(128, name="gru"), layers.Dense(10, name="digit")]
    return keras.Sequential(stack, name="gru")


def alter_sentences(x: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(keras.random.randint((), 0, 2**30).numpy())
    altered = np.where((rng.random(x.shape) < HIDDEN) & (x > 0), 1, x)
    for number in np.flatnonzero(rng.random(len(x)) < CUT):
        length = np.count_nonzero(x[number])
        left = rng.integers(max(1, length // 2), length + 1)
        start = rng.integers(0, length - left + 1)
        part = altered[number, start : start + left].copy()
        altered[number] = 0
        altered[number, :left] = part
    return altered


def with_copies(samples: Samples, alter: Callable[[np.ndarray], np.ndarray], copies: int) -> Samples:
    keras.utils.set_random_seed(0)
    x, y = samples
    return np.concatenate([x, *(alter(x) for _ in range(copies - 1))]), np.tile(y, copies)


def run_quality(task: Task, teachers: list[keras.Model], folder: Path) -> dict[str, Any]:
    """Trains for each seed, prints a row for it, and returns all that belongs to the table."""
    print(f"\n{task.name}: {len(task.train[0]):,} samples with copies, {len(task.test[0]):,} for testing")
    first = begin_student(task, CHOOSING)
    sizes = [model.count_params() for model in (teachers[0], first)]
    print(f"{sizes[0]:,} parameters teach {sizes[1]:,}, which is 1/{sizes[0] / sizes[1]:.1f}")
    ways = {"alone": None, "taught": teachers[0]}
    found = {
        way: {rate: accuracy(train_student(task, first, teacher, rate, CHOOSING, folder), task.validation)
              for rate in RATES} for way, teacher in ways.items()
    }  # fmt: skip
    rates = {way: max(scores, key=lambda rate: scores[rate]) for way, scores in found.items()}
    for way, scores in found.items():
        print(f"{way} on validation: " + ", ".join(f"{rate:g}: {score:.2f}" for rate, score in scores.items()))
    print(f"{'seed':>5}{'teacher':>9}{'alone':>8}{'taught':>8}{'gain':>7}{'to teacher':>12}")
    rows = []
    for seed, teacher in enumerate(teachers):
        start = begin_student(task, seed)
        alone = accuracy(train_student(task, start, None, rates["alone"], seed, folder), task.test)
        taught = accuracy(train_student(task, start, teacher, rates["taught"], seed, folder), task.test)
        rows.append({"teacher": accuracy(teacher, task.test), "alone": alone, "taught": taught})
        show(str(seed), rows[-1])
    mean = {key: fmean(row[key] for row in rows) for key in rows[0]}
    spread = {key: max(row[key] for row in rows) - min(row[key] for row in rows) for key in rows[0]}
    show("mean", mean)
    print(f"{'range':>5}" + "".join(f"{spread[key]:{width}.2f}" for key, width in zip(spread, (9, 8, 8), strict=True)))
    return {
        "task": task.name, "test_samples": len(task.test[0]), "teacher_params": sizes[0], "student_params": sizes[1],
        "validation": found, "rates": rates, "seeds": rows, "mean": mean, "range": spread,
    }  # fmt: skip


def show(title: str, row: dict[str, float]) -> None:
    gain, left = row["taught"] - row["alone"], row["taught"] - row["teacher"]
    figures = "".join(f"{row[key]:{size}.2f}" for key, size in (("teacher", 9), ("alone", 8), ("taught", 8)))
    print(f"{title:>5}{figures}{gain:+7.2f}{left:+12.2f}", flush=True)


def train_teacher(task: Task, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    teacher = task.teacher()
    samples = taught_samples(*task.train, None, None, batch_size=BATCH, shuffle=True, seed=seed)
    compile_for(task, teacher, TEACHER_RATE, task.epochs[0])
    teacher.fit(samples, epochs=task.epochs[0], shuffle=False, verbose=0)
    return teacher


def begin_student(task: Task, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return task.student()


def train_student(
    task: Task, start: keras.Model, teacher: keras.Model | None, rate: float, seed: int, folder: Path
) -> keras.Model:
    """Trains a copy of a student; what differs without a teacher is the loss alone."""
    student = keras.models.clone_model(start)
    student.set_weights(start.get_weights())
    keras.utils.set_random_seed(seed)
    order = {"batch_size": BATCH, "shuffle": True, "seed": seed}
    if teacher is None:
        model, samples = student, taught_samples(*task.train, None, None, **order)
    else:
        model = Distiller(student, teacher, alpha=ALPHA, temperature=TEMPERATURE)
        samples = model.with_answers(*task.train, cache=folder, **order)
    compile_for(task, model, rate, task.epochs[1])
    model.fit(samples, epochs=task.epochs[1], shuffle=False, verbose=0)
    return student


def compile_for(task: Task, model: keras.Model, rate: float, epochs: int) -> None:
    steps = epochs * -(-len(task.train[0]) // BATCH)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def accuracy(model: keras.Model, samples: Samples) -> float:
    return 100 * float(np.mean(model.predict(samples[0], batch_size=500, verbose=0).argmax(-1) == samples[1]))


def run_passes(task: Task, teachers: list[keras.Model], folder: Path) -> list[dict[str, Any]]:
    """Compresses the teacher of each seed, trained again with and without what it answered before."""
    kinds = {"prune": (Prune, {"sparsity": 0.9}), "cluster": (Cluster, {"clusters": 3}), "qat": (Qat, {})}
    test = [array[:TESTED] for array in task.test]
    print(f"\n{'pass':10}{'seed':>5}{'before':>9}{'labels':>9}{'taught':>9}{'gain':>7}")
    rows = []
    for (kind, (make, fields)), (seed, teacher) in itertools.product(kinds.items(), enumerate(teachers)):
        row: dict[str, Any] = {"pass": kind, **fields, "seed": seed}
        for way, share in (("labels", 0.0), ("taught", SHARE)):
            recipe = Recipe(
                passes=(make(**fields, distill=share),), seed=seed, verification={"samples": len(test[0])},
                quantization={"scheme": "int8" if make is Qat else "float32"},
                training=Training(epochs=1, batch_size=BATCH, learning_rate=1e-3),
            )  # fmt: skip
            report = convert(teacher, "host", data=tuple(test), train=task.train, recipe=recipe,
                             output=folder / "out", benchmark=False)  # fmt: skip
            row |= {"before": 100 * report.before.scores.accuracy, way: 100 * report.after.scores.accuracy}
        rows.append(row)
        print(f"{kind:10}{seed:5}{row['before']:9.2f}{row['labels']:9.2f}{row['taught']:9.2f}"
              f"{row['taught'] - row['labels']:+7.2f}", flush=True)  # fmt: skip
    return rows


def speed_pairs() -> Iterator[tuple[str, keras.Model, dict[str, float]]]:
    """Yields (title, teacher, how the student is made of it)."""
    yield "VGG, 32 x 32", make_vgg(), {"width": 0.25}
    yield "ResNet of 38 layers, 32 x 32", make_resnet(), {"width": 0.5, "depth": 0.34}
    network = keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=10, classifier_activation=None)
    yield "MobileNetV2, 96 x 96", network, {"width": 0.35}


def convolution(x: Any, filters: int, size: int = 3, strides: int = 1) -> Any:
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization()(x)


def with_classes(image: Any, x: Any) -> keras.Model:
    return keras.Model(image, layers.Dense(10, name="class")(layers.GlobalAveragePooling2D()(x)))


def make_vgg() -> keras.Model:
    """Returns the network A of Simonyan and Zisserman 2015, arXiv:1409.1556, up to its dense layers."""
    x = image = keras.Input((32, 32, 3), name="image")
    for filters in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for each in filters:
            x = layers.ReLU()(convolution(x, each))
        x = layers.MaxPooling2D()(x)
    return with_classes(image, x)


def make_resnet() -> keras.Model:
    """Returns the network of He et al. 2016, arXiv:1512.03385, section 4.2, with n = 6, twice as wide."""
    image = keras.Input((32, 32, 3), name="image")
    x = layers.ReLU()(convolution(image, 32))
    for filters, strides in ((32, 1), (64, 2), (128, 2)):
        for step in (strides, 1, 1, 1, 1, 1):
            inner = convolution(layers.ReLU()(convolution(x, filters, strides=step)), filters)
            beside = convolution(x, filters, 1, step) if step > 1 else x
            x = layers.ReLU()(layers.Add()([inner, beside]))
    return with_classes(image, x)


class Clock(keras.callbacks.Callback):
    """Takes the times from one step's end to the next one's, in milliseconds, but for the first few."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        del logs
        now = time.perf_counter()
        if batch >= WARM_UP:
            self.taken.append(1e3 * (now - self._before))
        self._before = now


def run_speed(title: str, teacher: keras.Model, made: dict[str, float], folder: Path) -> dict[str, Any]:
    """Times the ways to train a student by turns."""
    count, size = SPEED_BATCH * STEPS_A_TURN, teacher.input_shape[1]
    (pixels, labels), _ = digits(as_rows=False)
    x = np.repeat(tf.image.resize(pixels[:count], (size, size)).numpy(), 3, axis=-1)
    y = labels[:count]
    student = make_student(teacher, **made)
    models = [student, Distiller(student, teacher), Distiller(student, teacher)]
    for model in models:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"], jit_compile=False)
    cached = models[2].with_answers(x, y, cache=folder, batch_size=SPEED_BATCH)
    fed = [(x, y), (x, y), (cached,)]
    forward, batch = tf.function(lambda inputs: teacher(inputs, training=False), autograph=False), x[:SPEED_BATCH]
    times: dict[str, list[float]] = {"student": [], "uncached": [], "cached": [], "teacher": []}
    for turn in range(TURNS):
        for way, model, samples in zip(times, models, fed, strict=False):
            clock = Clock()
            model.fit(*samples, batch_size=None if way == "cached" else SPEED_BATCH, callbacks=[clock], verbose=0)
            times[way] += clock.taken if turn else []  # the first one builds the graph
        for _ in range(STEPS_A_TURN):
            begun = time.perf_counter()
            forward(batch).numpy()
            times["teacher"] += [1e3 * (time.perf_counter() - begun)] if turn else []
    ms = {way: median(taken) for way, taken in times.items()}
    row = {
        "teacher": title, "teacher_params": teacher.count_params(), "student_params": student.count_params(),
        "batch": SPEED_BATCH, "ms": ms, "throughput_of_cached": ms["uncached"] / ms["cached"],
        "step_of_sum": ms["uncached"] / (ms["teacher"] + ms["student"]),
    }  # fmt: skip
    print(
        f"{title:30}{row['teacher_params'] / row['student_params']:8.1f}"
        + "".join(f"{ms[way]:10.1f}" for way in ("teacher", "student", "uncached", "cached"))
        + f"{row['throughput_of_cached']:10.2f}{row['step_of_sum']:10.3f}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TABLES)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--snips", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    wanted = [options.only] if options.only else TABLES
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        tasks, taught = [], []
        if set(wanted) & {"quality", "passes"}:
            tasks = [image_task(options.mnist), sequence_task(options.snips)][: 2 if "quality" in wanted else 1]
            taught = [[train_teacher(task, seed) for seed in range(options.seeds)] for task in tasks]
        if "quality" in wanted:
            rows["quality"] = [run_quality(*each, Path(folder)) for each in zip(tasks, taught, strict=True)]
        if "passes" in wanted:
            rows["passes"] = run_passes(tasks[0], taught[0], Path(folder))
        if "speed" in wanted:
            print(f"\n{'milliseconds a step, medians':30}{'smaller':>8}{'teacher':>10}{'student':>10}{'uncached':>10}"
                  f"{'cached':>10}{'gain':>10}{'of sum':>10}")  # fmt: skip
            rows["speed"] = [run_speed(*each, Path(folder)) for each in speed_pairs()]
    save_results(options.save, rows)


if __name__ == "__main__":
    main()
