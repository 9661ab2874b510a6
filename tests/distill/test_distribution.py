"""Distillers in strategies of tf.distribute train as on one device. Each strategy has processes of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from edgecompress.distill import Features, SoftLabels
from tests.distilling import compiled, mlp_student, mlp_teacher

ROOT = Path(__file__).parents[2]
TIME_LIMIT_S = 240
SAMPLES, BATCH = 128, 32

# Arguments: the file for what was trained; the kinds of training; files of teachers; "inside" the scope or "outside".
CHILD = """
import sys
import numpy as np
import tensorflow as tf
{setup}
from tests.distill.test_distribution import make, train, write
from tests.distilling import mlp_teacher

out, kinds, teacher, where = sys.argv[1:]
teacher = mlp_teacher() if where == "outside" else teacher or None
figures = {{}}
for kind in kinds.split(","):
    with strategy.scope():
        distiller = make(kind, teacher)
    figures[kind] = train(distiller, kind, out + ".answers")
write(out, figures)
"""

MIRRORED = """
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
"""

WORKERS = """
strategy = tf.distribute.MultiWorkerMirroredStrategy()
assert strategy.num_replicas_in_sync == 2
"""


def samples():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(SAMPLES, 8, 8, 1)).astype(np.float32)
    return x, rng.integers(0, 10, SAMPLES), rng.uniform(0, 2, SAMPLES).astype(np.float32)


def train(distiller, kind, folder):
    """Trains a few steps in a fixed order; returns figures of each epoch and of the end, and weights, as JSON."""
    x, y, weight = samples()
    if kind == "answers":
        given = distiller.with_answers(x, y, weight, cache=folder, batch_size=BATCH, seed=3)
        history = distiller.fit(given, epochs=2, verbose=0).history
    else:
        history = distiller.fit(
            x, y, sample_weight=weight, batch_size=BATCH, epochs=2, shuffle=False, verbose=0
        ).history
    tested = distiller.evaluate(x, y, batch_size=BATCH, verbose=0, return_dict=True)
    answers = distiller.predict(x, batch_size=BATCH, verbose=0)
    return {
        "history": history, "tested": tested, "answers": answers.tolist(),
        "weights": [variable.numpy().tolist() for variable in distiller.weights],
    }  # fmt: skip


def make(kind, teacher=None):
    losses = None
    if kind == "features":
        teacher = mlp_student(seed=5)
        keras.utils.set_random_seed(1)
        projector = keras.layers.Dense(12, kernel_initializer=keras.initializers.GlorotUniform(seed=0))
        losses = [SoftLabels(), Features("hidden", "hidden", projector=projector)]
    return compiled(
        mlp_student(kernel_regularizer="l2"), teacher or mlp_teacher(), losses=losses, options={"metrics": ["accuracy"]}
    )


def write(path, figures):
    Path(path).write_text(json.dumps(figures))


def start(setup, out, kinds, *, teacher="", where="inside", **environment):
    command = [sys.executable, "-c", CHILD.format(setup=setup), str(out), ",".join(kinds), str(teacher), where]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait(*processes):
    try:
        errors = [process.communicate(timeout=TIME_LIMIT_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error[-3000:]


def assert_alike(one, other):
    assert one["history"].keys() == other["history"].keys()
    for name in ("history", "tested"):
        for figure, value in one[name].items():
            np.testing.assert_allclose(value, other[name][figure], rtol=1e-5, err_msg=figure)
    np.testing.assert_allclose(one["answers"], other["answers"], atol=1e-5)
    for a, b in zip(one["weights"], other["weights"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    """A function from a kind of training, and a teacher, to what one device makes of it."""

    def run(kind, teacher=None):
        return train(make(kind, teacher), kind, tmp_path_factory.mktemp("answers"))

    return run


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_replicas_of_one_process_train_as_one_device(on_one_device, tmp_path, where):
    kinds = ["arrays", "answers", "features"] if where == "inside" else ["arrays"]
    wait(start(MIRRORED, tmp_path / "out", kinds, where=where))
    found = json.loads((tmp_path / "out").read_text())
    for kind in kinds:
        assert_alike(found[kind], on_one_device(kind))


def test_replicas_share_a_tflite_teacher(on_one_device, cnn_tflite, tmp_path):
    wait(start(MIRRORED, tmp_path / "out", ["arrays"], teacher=cnn_tflite))
    assert_alike(json.loads((tmp_path / "out").read_text())["arrays"], on_one_device("arrays", cnn_tflite))


def test_two_workers_train_as_one_device(on_one_device, tmp_path):
    kinds = ["arrays", "answers"]
    hosts = free_hosts(2)
    processes = [
        start(
            WORKERS, tmp_path / f"out{index}", kinds,
            TF_CONFIG=json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}),
        )
        for index in range(2)
    ]  # fmt: skip
    wait(*processes)
    first, second = (json.loads((tmp_path / f"out{index}").read_text()) for index in range(2))
    for kind in kinds:
        assert first[kind]["weights"] == second[kind]["weights"]
        assert first[kind]["history"] == second[kind]["history"]
        assert_alike(first[kind], on_one_device(kind))


def free_hosts(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    hosts = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return hosts
