"""Counts in files that the real converter and quantizer wrote."""

import keras
import numpy as np
import pytest
from keras import layers

from edgecompress.converters.ptq import QuantizationJob, quantize
from edgecompress.data import Dataset
from edgecompress.passes.base import LayerProof, PassResult
from edgecompress.schemes import Granularity, QuantizationScheme
from edgecompress.techniques import Qat
from edgecompress.verify.kernels import KernelInFile, check_kernels, kernels_in


@pytest.fixture(scope="module")
def float_file(to_tflite, tmp_path_factory):
    """A convolution with half of its weights zero, and a dense layer of three values."""
    x = keras.Input((8, 8, 2), name="image")
    y = layers.Flatten()(layers.Conv2D(4, 3, name="conv")(x))
    model = keras.Model(x, layers.Dense(5, name="dense")(y))
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 4)).astype("float32")
    kernel[np.argsort(np.abs(kernel), axis=None).reshape(kernel.shape) % 2 == 0] = 0
    model.get_layer("conv").set_weights([kernel, np.ones(4)])
    model.get_layer("dense").set_weights([rng.choice([0.5, -1, 0.25], size=(144, 5)), np.zeros(5)])
    return to_tflite(model, tmp_path_factory.mktemp("kernels"))


def result(*proofs: tuple[str, int, float, int]) -> PassResult:
    """What a pass reached: layer, weights, sparsity, distinct values."""
    keys = ("layer", "weights", "sparsity", "distinct")
    return PassResult(
        kind="prune", plan=(), proof=tuple(LayerProof(wanted="", **dict(zip(keys, one, strict=True))) for one in proofs)
    )


def kernel(tensor: str, *, integers: bool = True) -> KernelInFile:
    return KernelInFile(tensor=tensor, op="CONV_2D", integers=integers, weights=100, sparsity=0.7, distinct=20)


def test_a_float_file(float_file) -> None:
    conv, dense = kernels_in(float_file)
    assert (conv.op, conv.weights, conv.sparsity) == ("CONV_2D", 72, 0.5)
    assert (dense.op, dense.weights, dense.distinct) == ("FULLY_CONNECTED", 720, 3)


@pytest.mark.parametrize("dense", list(Granularity))
def test_an_int8_file_keeps_them(float_file, tmp_path, in_process, dense: Granularity) -> None:
    samples = np.random.default_rng(0).normal(size=(20, 8, 8, 2)).astype("float32")
    job = QuantizationJob(QuantizationScheme.INT8, dense=dense)
    with in_process():
        quantize(float_file, tmp_path / "int8.tflite", job, calibration=Dataset({"image": samples}), threads=1)
    kernels = kernels_in(tmp_path / "int8.tflite")
    assert kernels[0].sparsity >= 0.5
    assert kernels[1].distinct == 3
    assert check_kernels([result(("conv", 72, 0.5, 37), ("dense", 720, 0.0, 3))], kernels) == ((), ())


def test_what_was_lost_is_said() -> None:
    assert check_kernels([result(("conv", 100, 0.8, 16))], [kernel("net/conv/Conv2D")]).lost == (
        "conv: sparsity was 80.0%, in the file it is 70.0%",
        "conv: 16 distinct values became 20 in the file",
    )


def test_the_last_pass_says_what_there_is_to_keep() -> None:
    passes = [result(("conv", 100, 0.8, 16)), result(("conv", 100, 0.1, 50))]
    assert check_kernels(passes, [kernel("net/conv/Conv2D")]) == ((), ())


def test_float_weights_may_be_multiplied_by_a_normalization() -> None:
    assert check_kernels([result(("conv", 100, 0.7, 16))], [kernel("net/conv/Conv2D", integers=False)]) == ((), ())


def test_a_kernel_that_cannot_be_told_apart_is_named() -> None:
    passes = [result(("convolution", 100, 0.8, 16), ("conv_2", 99, 0.8, 16))]
    assert check_kernels(passes, [kernel("net/conv_2/Conv2D")]) == ((), ("convolution", "conv_2"))


def test_a_layer_with_several_kernels_is_known_by_its_name() -> None:
    passes = [result(("separable (pointwise_kernel)", 100, 0.8, 30))]
    assert len(check_kernels(passes, [kernel("net/quant_separable/FakeQuant")]).lost) == 1


def test_qat_keeps_what_was_reached_before() -> None:
    before = result(("conv", 100, 0.8, 16))
    after = before.model_copy(update={"kind": "qat", "proof": result(("conv", 100, 0.7, 20)).proof})
    assert len(check_kernels([before, after], [kernel("conv")], Qat()).lost) == 2
    free = Qat(preserve_sparsity=False, preserve_clusters=False)
    assert check_kernels([before, after], [kernel("conv")], free) == ((), ())


def test_layers_with_numbered_names_are_told_apart() -> None:
    passes = [result(("conv2d", 100, 0.8, 30), ("conv2d_1", 100, 0.7, 30))]
    assert check_kernels(passes, [kernel("net/conv2d_1/Conv2D"), kernel("net/conv2d/Conv2D")]).lost == (
        "conv2d: sparsity was 80.0%, in the file it is 70.0%",
    )
