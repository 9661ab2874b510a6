"""Sentences of reviews and tweets with how people rated them, and a small Keras model that tells praise from blame.

The sentences come with the package vaderSentiment 0.5 (C.J. Hutto, MIT licence): 10,605 of movie reviews, 3,708 of
product reviews, 4,200 tweets and 5,190 of newspaper editorials, each with the mean of twenty ratings from -4 to 4
(Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014).
"""

from __future__ import annotations

import collections
import io
import re
import tarfile
import zipfile
from pathlib import Path

import keras
import numpy as np

PACKAGE = Path(__file__).parents[1] / ".venv" / "wheels" / "vaderSentiment-0.5.zip"
VOCABULARY, STEPS = 6000, 32
_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_MOVIES, _OTHERS = "movieReviewSnippets", ("amazonReviewSnippets", "tweets", "nytEditorialSnippets")
_NEUTRAL = 0.5  # nearer to 0 than this, people did not agree on the sign
_TEST = 2000
_UNKNOWN = 1  # 0 is padding


def read_sentences(package: Path = PACKAGE) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Returns (sentence, mean rating) of the movie reviews, and of the other sources."""
    if not package.is_file():
        raise SystemExit(
            f"{package} is missing: run `make setup`, or `pip download --no-deps --dest {package.parent} "
            "vaderSentiment==0.5`"
        )
    with zipfile.ZipFile(package) as outer, tarfile.open(fileobj=io.BytesIO(outer.read(_ARCHIVE))) as inner:
        return _read_table(inner, _MOVIES), [row for name in _OTHERS for row in _read_table(inner, name)]


def _read_table(archive: tarfile.TarFile, name: str) -> list[tuple[str, float]]:
    file = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
    rows = [line.split("\t", 2) for line in file.read().decode().splitlines()] if file else []
    return [(sentence, float(rating)) for _, rating, sentence in rows]


def reviews(package: Path = PACKAGE) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns (x, y) for training, 17,454 sentences of all sources, and (x, y) for testing, 2,000 of movie reviews.

    x: int32 of shape (n, STEPS), numbers of words below VOCABULARY, after padding (0) so that the last step is the
    sentence's last word; y: 1 for praise and 0 for blame. Sentences that are neither are left out, and so is what is
    tested on from the training samples.
    """
    rng = np.random.default_rng(0)
    movies, others = (
        [(split_words(sentence), rating > 0) for sentence, rating in source if abs(rating) >= _NEUTRAL]
        for source in read_sentences(package)
    )
    order = rng.permutation(len(movies))
    rest = [*(movies[i] for i in order[_TEST:]), *others]
    counts = collections.Counter(word for words, _ in rest for word in words)
    numbers = {word: number for number, (word, _) in enumerate(counts.most_common(VOCABULARY - 2), 2)}
    test, (x, y) = (_encode(rows, numbers) for rows in ([movies[i] for i in order[:_TEST]], rest))
    tested = {row.tobytes() for row in test[0]}
    fresh = np.array([i for i in rng.permutation(len(x)) if x[i].tobytes() not in tested])
    return (x[fresh], y[fresh]), test


def split_words(sentence: str) -> list[str]:
    """Returns the words in lower case, the exclamation and question marks, and the emoticons."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[!?]|[:;]-?[()dp]", sentence.lower())


def _encode(rows: list[tuple[list[str], bool]], numbers: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    x = np.zeros((len(rows), STEPS), np.int32)
    for row, (words, _) in zip(x, rows, strict=True):
        known = [numbers.get(word, _UNKNOWN) for word in words[-STEPS:]]
        row[STEPS - len(known) :] = known
    return x, np.array([good for _, good in rows], np.int64)


def make_gru() -> keras.Model:
    layers = keras.layers
    return keras.Sequential([
        keras.Input((STEPS,), dtype="int32", name="words"),
        layers.Embedding(VOCABULARY, 64, name="meaning"),
        layers.GRU(128, name="gru"),
        layers.Dropout(0.5, name="drop"),
        layers.Dense(2, activation="softmax", name="mood"),
    ], name="sentiment")  # fmt: skip


def train(model: keras.Model, samples: tuple[np.ndarray, np.ndarray], *, epochs: int) -> None:
    """Trains the model of `make_gru`, and compiles it.

    Half of each word's numbers are dropped in training, by a layer that is not in the model itself: it is for training
    alone, and layers that follow one another directly can be merged.
    """
    embedding, *rest = model.layers
    forgetful = keras.Sequential([model.inputs[0], embedding, keras.layers.Dropout(0.5), *rest])
    for each in (forgetful, model):
        each.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    best = keras.callbacks.EarlyStopping(patience=epochs, restore_best_weights=True)
    forgetful.fit(*samples, epochs=epochs, batch_size=64, validation_split=0.1, callbacks=[best], verbose=0)
