"""What Vela says of a file: the real compiler on a small int8 file, and what can go wrong with it."""

from pathlib import Path

import pytest

from edgecompress.converters import ethos_u
from edgecompress.converters.ethos_u import FlashSize, read_summary, vela_flash_bytes

IN_DRAM = "Vela keeps the weights in DRAM in this system"
HEADER = "network,weights_storage_area,on_chip_flash_memory_used,off_chip_flash_memory_used"


def test_the_real_compiler(digits_int8) -> None:
    found = vela_flash_bytes(digits_int8, "ethos-u55-128")
    assert found.unavailable_because is None
    assert found.size_bytes is not None
    # Two at the borders, which are float, and the rest.
    assert found.cpu_operators == 2
    assert found.npu_operators is not None
    assert found.npu_operators >= 5
    assert 2_000 < found.size_bytes < digits_int8.stat().st_size  # 5,072 weights of 8 bits, encoded, and commands


def test_zeros_take_less_flash(tmp_path, to_tflite, in_process) -> None:
    import keras
    import numpy as np

    from edgecompress.converters.ptq import QuantizationJob, quantize
    from edgecompress.data import Dataset
    from edgecompress.schemes import QuantizationScheme

    keras.utils.set_random_seed(0)
    sizes = []
    for name in ("dense", "sparse"):
        model = keras.Sequential([keras.Input((64,), name="x"), keras.layers.Dense(256), keras.layers.Dense(4)])
        kernel = np.random.default_rng(0).normal(size=(64, 256))
        if name == "sparse":
            kernel[np.abs(kernel) < 1.28] = 0  # four in five
        model.layers[0].kernel.assign(kernel)
        folder = tmp_path / name
        folder.mkdir()
        file = folder / "int8.tflite"
        samples = Dataset({"x": np.random.default_rng(1).random((20, 64), np.float32)})
        with in_process():
            quantize(
                to_tflite(model, folder), file, QuantizationJob(QuantizationScheme.INT8), calibration=samples, threads=1
            )
        sizes.append(vela_flash_bytes(file, "ethos-u55-128").size_bytes)
    assert sizes[1] < 0.6 * sizes[0]


def test_an_accelerator_that_keeps_weights_elsewhere(digits_int8) -> None:
    found = vela_flash_bytes(digits_int8, "ethos-u65-256")
    assert (found.size_bytes, found.unavailable_because) == (None, IN_DRAM)
    assert found.cpu_operators == 2


def test_a_float_file_stays_on_the_processor(tmp_path, to_tflite, digits_cnn) -> None:
    found = vela_flash_bytes(to_tflite(digits_cnn.model, tmp_path), "ethos-u55-128")
    assert found.npu_operators == 0
    assert found.cpu_operators is not None
    assert found.cpu_operators >= 5


@pytest.mark.parametrize(("content", "words"), [(b"not a model", "Vela ended with exit code"), (None, "No such file")])
def test_a_file_that_vela_refuses(tmp_path, content, words) -> None:
    file = tmp_path / "model.tflite"
    if content is not None:
        file.write_bytes(content)
    found = vela_flash_bytes(file, "ethos-u55-128")
    assert (found.size_bytes, found.cpu_operators, found.npu_operators) == (None, None, None)
    assert words in (found.unavailable_because or "")


def test_an_unknown_accelerator(digits_int8) -> None:
    assert "invalid choice" in (vela_flash_bytes(digits_int8, "ethos-u55-99").unavailable_because or "")


def test_without_vela_nothing_is_guessed(monkeypatch) -> None:
    monkeypatch.setattr(ethos_u, "version_of", lambda _name: None)
    found = vela_flash_bytes(Path("any.tflite"), "ethos-u55-128")
    assert found.size_bytes is None
    assert 'pip install "edgecompress[ethos-u]"' in (found.unavailable_because or "")


def test_a_compiler_that_hangs_is_ended(digits_int8) -> None:
    found = vela_flash_bytes(digits_int8, "ethos-u55-128", time_limit_s=0.01)
    assert found == FlashSize(unavailable_because="Vela was ended at its time limit")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{HEADER}\nnet,Off-chip Flash,0.0,8.0\n", FlashSize(8192)),
        (f"{HEADER}\nnet,Off-chip Flash,1.5,27.984375\n", FlashSize(30192)),
        (
            f"{HEADER}\nnet,DRAM,0.0,0.0\n",
            FlashSize(unavailable_because=IN_DRAM),
        ),
        *(
            (text, FlashSize(unavailable_because="Vela's summary has no flash sizes that can be read"))
            for text in ("", "network\nnet\n", f"{HEADER}\nnet,Flash,much,0\n", f"{HEADER}\n", f"{HEADER}\nnet\n")
        ),
    ],
)
def test_the_summary(text: str, found: FlashSize) -> None:
    assert read_summary(text) == found
