"""Child process: litert-quantizer calibrates and quantizes a float .tflite file. Started by `ptq.quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from litert_quantizer import algorithm_manager, qtyping, quantizer
from litert_quantizer.calibrator import CalibrationMode, Calibrator
from litert_quantizer.recipe_manager import RecipeManager

from edgecompress.isolate import Progress, serve_one_job
from edgecompress.schemes import Algorithm, Granularity, IoType, QuantizationScheme

_ALL = ".*"
_SIGNATURE_KEY = "serving_default"
_Op = qtyping.TFLOperationName
_Name = algorithm_manager.AlgorithmName
_ALGORITHMS = {
    Algorithm.MIN_MAX: _Name.MIN_MAX_UNIFORM_QUANT,
    Algorithm.MSE: _Name.MSE,
    Algorithm.OCTAV: _Name.OCTAV,
    Algorithm.GPTQ: _Name.GPTQ,
}
_WEIGHTED = (
    _Op.FULLY_CONNECTED, _Op.CONV_2D, _Op.DEPTHWISE_CONV_2D, _Op.CONV_2D_TRANSPOSE, _Op.EMBEDDING_LOOKUP,
)  # fmt: skip


def quantize_file(job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Does one job of `ptq.quantize`; a refusal comes back as {"error": text}."""
    content = Path(job["source"]).read_bytes()
    try:
        recipe = _recipe(job)
        tool = quantizer.Quantizer(content, recipe.get_quantization_recipe())
        ranges = _calibrate(content, recipe, job, progress) if job["calibration"] else None
        result = tool.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    except Exception as error:  # noqa: BLE001 (the library raises many kinds for what it cannot quantize)
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    Path(job["destination"]).write_bytes(bytes(result.quantized_model))
    return {}


def _recipe(job: dict[str, Any]) -> RecipeManager:
    """Min-max for every operator, then the wanted algorithm and granularity for those with weights."""
    scheme = QuantizationScheme(job["scheme"])
    algorithm = _ALGORITHMS[Algorithm(job["algorithm"])]
    recipe = RecipeManager()
    if scheme is QuantizationScheme.FLOAT16:
        half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        recipe.add_quantization_config(_ALL, _Op.ALL_SUPPORTED, config, _Name.FLOAT_CASTING)
        return recipe
    _add(recipe, scheme, _Op.ALL_SUPPORTED, _Name.MIN_MAX_UNIFORM_QUANT, qtyping.QuantGranularity.CHANNELWISE)
    per_tensor = Granularity(job["dense"]) is Granularity.PER_TENSOR
    # An algorithm that does not know an operator leaves it to min-max, rather than in float.
    known = algorithm_manager.get_supported_ops(algorithm)
    for op in _WEIGHTED:
        tensorwise = per_tensor and op is _Op.FULLY_CONNECTED
        if op in known and (tensorwise or algorithm is not _Name.MIN_MAX_UNIFORM_QUANT):
            granularity = qtyping.QuantGranularity.TENSORWISE if tensorwise else qtyping.QuantGranularity.CHANNELWISE
            _add(recipe, scheme, op, algorithm, granularity)
    if scheme.needs_calibration:
        for op, kind in ((_Op.INPUT, job["input_type"]), (_Op.OUTPUT, job["output_type"])):
            _set_border(recipe, op, IoType(kind))
    return recipe


def _add(recipe: RecipeManager, scheme: QuantizationScheme, op: Any, algorithm: Any, granularity: Any) -> None:
    if scheme is QuantizationScheme.INT8:
        recipe.add_static_config(_ALL, op, 8, 8, granularity, algorithm)
    elif scheme is QuantizationScheme.INT16X8:
        recipe.add_static_config(_ALL, op, 16, 8, granularity, algorithm)
    else:
        bits = 4 if scheme is QuantizationScheme.INT4_WEIGHTS else 8
        recipe.add_dynamic_config(_ALL, op, bits, granularity, algorithm)


def _set_border(recipe: RecipeManager, op: Any, kind: IoType) -> None:
    if kind is IoType.FLOAT32:
        recipe.add_quantization_config(_ALL, op, None, _Name.NO_QUANTIZE)
    elif kind is IoType.UINT8:
        config = qtyping.OpQuantizationConfig(
            activation_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=8, symmetric=False, granularity=qtyping.QuantGranularity.TENSORWISE,
                dtype=qtyping.TensorDataType.UINT,
            ),
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=8),
            compute_precision=qtyping.ComputePrecision.INTEGER,
        )  # fmt: skip
        recipe.add_quantization_config(_ALL, op, config, _Name.MIN_MAX_UNIFORM_QUANT)


def _calibrate(content: bytes, recipe: RecipeManager, job: dict[str, Any], progress: Progress) -> Any:
    # GPTQ needs the activations themselves; for all else the runtime's own profiler finds the ranges, much sooner.
    gptq = Algorithm(job["algorithm"]) is Algorithm.GPTQ
    mode = CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS if gptq else CalibrationMode.CALIBRATION_PROFILER_BASED
    calibrator = Calibrator(content, num_threads=job["threads"], mode=mode)
    inputs = {name: np.load(file, mmap_mode="r") for name, file in job["calibration"].items()}
    samples = len(next(iter(inputs.values())))
    for index in range(samples):
        sample = {name: np.ascontiguousarray(array[index : index + 1]) for name, array in inputs.items()}
        calibrator.calibrate({_SIGNATURE_KEY: [sample]}, recipe)
        progress(index + 1, samples)
    return calibrator.get_model_qsvs()


if __name__ == "__main__":
    serve_one_job(quantize_file)
