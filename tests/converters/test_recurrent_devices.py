"""What runs recurrent files elsewhere: tflite-micro, bit for bit as LiteRT's reference kernels; Vela; the Edge TPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecompress.artifacts import read_artifact
from edgecompress.benchmark.micro import run_micro
from edgecompress.check.edge_tpu import edge_tpu_findings
from edgecompress.converters.ethos_u import vela_flash_bytes
from edgecompress.converters.ptq import QuantizationJob
from edgecompress.converters.recurrent import RecurrentNetwork
from edgecompress.data import Dataset, InputSpec
from edgecompress.models import load_model
from edgecompress.profiles import RecurrentLowering
from edgecompress.schemes import Granularity, IoType, Observer, QuantizationScheme

keras = pytest.importorskip("keras")

LOOP, STEP, UNROLLED, FUSED = RecurrentLowering
STEPS, FEATURES, UNITS, SAMPLES = 8, 8, 12, 6
BORDERS = {QuantizationScheme.INT8: IoType.INT8, QuantizationScheme.INT16X8: IoType.INT16}
KINDS = ("GRU", "LSTM")


class Files:
    """Files of one layer, each written when it is first asked for."""

    def __init__(self, rows: np.ndarray, folder: Path) -> None:
        self._rows, self._folder = rows, folder
        self._networks: dict[tuple[str, QuantizationScheme], RecurrentNetwork] = {}
        self._files: dict[tuple[str, QuantizationScheme, RecurrentLowering], Path] = {}

    def __call__(self, kind: str, scheme: QuantizationScheme, form: RecurrentLowering) -> Path:
        if (kind, scheme, form) not in self._files:
            if (kind, scheme) not in self._networks:
                self._networks[kind, scheme] = self._network(kind, scheme)
            self._files[kind, scheme, form] = self._networks[kind, scheme].write(form, hoist=False).path
        return self._files[kind, scheme, form]

    def _network(self, kind: str, scheme: QuantizationScheme) -> RecurrentNetwork:
        keras.utils.set_random_seed(0)
        layer = getattr(keras.layers, kind)(UNITS, name="layer", bias_initializer="glorot_uniform")
        source = load_model(keras.Sequential([keras.Input((STEPS, FEATURES), name="rows"), layer]))
        folder = self._folder / f"{kind}-{scheme}"
        folder.mkdir()
        border = BORDERS[scheme]
        return RecurrentNetwork(
            source, [InputSpec("rows", (1, STEPS, FEATURES), "float32")],
            QuantizationJob(scheme, dense=Granularity.PER_TENSOR, input_type=border, output_type=border),
            samples=Dataset({"rows": self._rows}), observer=Observer.MIN_MAX, folder=folder,
        )  # fmt: skip


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory) -> Iterator[Files]:
    (x, _), _ = digits.digits(as_rows=True)
    return Files(x[:50], tmp_path_factory.mktemp("devices"))


@pytest.mark.parametrize("form", [LOOP, STEP, UNROLLED])
@pytest.mark.parametrize("scheme", BORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_tflite_micro_gives_the_integers_of_the_reference_kernels(files, kind, scheme, form) -> None:
    pytest.importorskip("tflite_micro")
    file = files(kind, scheme, form)
    inputs = random_integers(file)
    expected = run_reference(file, inputs)
    found = run_micro(file, inputs)
    assert 1000 < found.arena_bytes < 30_000
    for name, array in expected.items():
        np.testing.assert_array_equal(found.outputs[name], array)
        assert np.ptp(array.astype(int)) > 20  # something was computed


def random_integers(file: Path) -> dict[str, np.ndarray]:
    """Every number that the inputs can have, states among them."""
    rng = np.random.default_rng(0)
    found = {}
    for name, tensor in read_artifact(file).signature.inputs.items():
        limits = np.iinfo(tensor.dtype)
        found[name] = rng.integers(limits.min, limits.max, (SAMPLES, *tensor.shape[1:]), tensor.dtype, endpoint=True)
    return found


def run_reference(file: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    interpreter = Interpreter(str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    run = interpreter.get_signature_runner()
    answers = [run(**{name: array[i : i + 1] for name, array in inputs.items()}) for i in range(SAMPLES)]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


@pytest.mark.parametrize("form", [STEP, UNROLLED])
@pytest.mark.parametrize("scheme", BORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_vela_leaves_nothing_to_the_cpu(files, kind, scheme, form) -> None:
    pytest.importorskip("ethosu.vela")
    found = vela_flash_bytes(files(kind, scheme, form), "ethos-u55-128")
    assert found.unavailable_because is None
    assert found.cpu_operators == 0
    assert found.npu_operators


def test_vela_does_not_compile_loops(files) -> None:
    """Which is why the profiles of Ethos-Us do not have them; version 5.2 ends with an error."""
    pytest.importorskip("ethosu.vela")
    found = vela_flash_bytes(files("GRU", QuantizationScheme.INT8, LOOP), "ethos-u55-128")
    assert found.npu_operators is None
    assert "Vela" in str(found.unavailable_because)


@pytest.mark.parametrize(("kind", "form"), [("GRU", UNROLLED), ("GRU", STEP), ("LSTM", UNROLLED), ("LSTM", FUSED)])
def test_the_edge_tpu_rules_find_nothing(files, kind, form) -> None:
    assert edge_tpu_findings(read_artifact(files(kind, QuantizationScheme.INT8, form))) == ()


def test_the_edge_tpu_rules_refuse_a_loop(files) -> None:
    findings = edge_tpu_findings(read_artifact(files("GRU", QuantizationScheme.INT8, LOOP)))
    assert [finding.rule for finding in findings if finding.where.startswith("WHILE")] == ["edge_tpu.operator"]
