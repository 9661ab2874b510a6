"""Child process: litert-quantizer calibrates and quantizes a float .tflite file. Started by `ptq.quantize`."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from litert_quantizer import algorithm_manager, qtyping, quantizer
from litert_quantizer.calibrator import CalibrationMode, Calibrator
from litert_quantizer.recipe_manager import RecipeManager
from litert_quantizer.utils import qsv_utils

from edgecompress.flatbuffer import read_model, text
from edgecompress.graphs import decode_graphs
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
_WEIGHTS_ONLY = (QuantizationScheme.DYNAMIC, QuantizationScheme.INT4_WEIGHTS)
_LEAST_TABLE = 1024  # values: below, the operator that turns its answers into float would cost more than is saved
_LARGEST_ERROR = 0.1  # of the typical row of a table, relative; the example of sentences has 0.05 and answers as well
_WEIGHTED = (_Op.FULLY_CONNECTED, _Op.CONV_2D, _Op.DEPTHWISE_CONV_2D, _Op.CONV_2D_TRANSPOSE)


def quantize_file(job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Does one job of `ptq.quantize`; a refusal comes back as {"error": text}."""
    content = Path(job["source"]).read_bytes()
    try:
        recipe = _recipe(job)
        scheme = QuantizationScheme(job["scheme"])
        of_tables = _add_tables(recipe, content) if scheme in _WEIGHTS_ONLY else {}
        tool = quantizer.Quantizer(content, recipe.get_quantization_recipe())
        statistics = {**of_tables, **(_calibrate(content, recipe, job, progress) if job["calibration"] else {})}
        _take_known(statistics, content, job)
        result = tool.quantize(statistics or None, enable_progress_bar=False, enable_progress_report=False)
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
    per_channel, per_tensor = qtyping.QuantGranularity.CHANNELWISE, qtyping.QuantGranularity.TENSORWISE
    dense = per_tensor if Granularity(job["dense"]) is Granularity.PER_TENSOR else per_channel
    _add(recipe, scheme, _Op.ALL_SUPPORTED, _Name.MIN_MAX_UNIFORM_QUANT, per_channel)
    _add(recipe, scheme, _Op.FULLY_CONNECTED, _Name.MIN_MAX_UNIFORM_QUANT, dense)
    for op in _WEIGHTED if algorithm is not _Name.MIN_MAX_UNIFORM_QUANT else ():
        # An algorithm that does not take an operator, or not with these bits, leaves it to min-max, not in float.
        with contextlib.suppress(ValueError):
            _add(recipe, scheme, op, algorithm, dense if op is _Op.FULLY_CONNECTED else per_channel)
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


def _add_tables(recipe: RecipeManager, content: bytes) -> dict[str, Any]:
    """Has the tables of lookups stored in 8 bits, which the library does with full integer quantization only.

    What a lookup gives has the range of its table, so that nothing has to be calibrated.

    Returns:
        The ranges, by the names of the tensors.
    """
    graphs = decode_graphs(read_model(content))
    used = Counter(
        graph.tensors[index].buffer for graph in graphs for operator in graph.operators
        for index in operator.inputs if index >= 0
    )  # fmt: skip
    ranges: dict[str, Any] = {}
    for graph in graphs:
        for operator in graph.operators:
            table = graph.tensors[operator.inputs[0]] if operator.name == "GATHER" else None
            if table is None or table.data is None or table.dtype != "float32" or used[table.buffer] > 1:
                continue
            values, result = np.frombuffer(table.data, np.float32), graph.tensors[operator.outputs[0]]
            if len(values) < _LEAST_TABLE or not _suits_8_bits(values.reshape(table.shape[0], -1)):
                continue
            ends = {"min": values.min().reshape(1, 1), "max": values.max().reshape(1, 1)}
            ranges |= {table.name: ends, result.name: ends}
            granularity = qtyping.QuantGranularity.TENSORWISE
            recipe.add_static_config(
                f"^{re.escape(result.name)};", _Op.GATHER, 8, 8, granularity, _Name.MIN_MAX_UNIFORM_QUANT
            )
    return ranges


def _suits_8_bits(table: Any) -> bool:
    """Whether one scale for a whole table, which is all that lookups know, leaves its typical row as it is.

    A single large value makes the steps wide for all.
    """
    step = float(np.ptp(table)) / 255
    typical = float(np.median(np.sqrt(np.mean(np.square(table), axis=1))))
    return step / math.sqrt(12) <= _LARGEST_ERROR * typical  # rounding is as good as uniform: step / sqrt(12)


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
    """Returns the ranges of the activations and, for GPTQ, the second moments of what matrix products take in."""
    scheme = QuantizationScheme(job["scheme"])
    runs: list[tuple[RecipeManager, CalibrationMode, Any]] = []
    if scheme.needs_calibration:
        # The runtime's own profiler is much the quickest. The library's default, a moving average over single samples,
        # would cut off what only some samples reach: the range of a regression's output would shrink to its mean.
        runs.append((recipe, CalibrationMode.CALIBRATION_PROFILER_BASED, qsv_utils.min_max_update))
    if Algorithm(job["algorithm"]) is Algorithm.GPTQ:
        # A recipe of its own: in one with other operators, the one before a matrix product would hide its input.
        only = RecipeManager()
        _add(only, scheme, _Op.FULLY_CONNECTED, _Name.GPTQ, qtyping.QuantGranularity.CHANNELWISE)
        runs.append((only, CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS, qsv_utils.gptq_and_moving_average_update))
    inputs = {name: np.load(file, mmap_mode="r") for name, file in job["calibration"].items()}
    samples = len(next(iter(inputs.values())))
    statistics: dict[str, Any] = {}
    for number, (operators, mode, update) in enumerate(runs):
        calibrator = Calibrator(content, num_threads=job["threads"], mode=mode, qsv_update_func=update)
        for index in range(samples):
            sample = {name: np.ascontiguousarray(array[index : index + 1]) for name, array in inputs.items()}
            calibrator.calibrate({_SIGNATURE_KEY: [sample]}, operators)
            progress(number * samples + index + 1, len(runs) * samples)
        for tensor, found in calibrator.get_model_qsvs().items():
            statistics[tensor] = {**found, **statistics.get(tensor, {})}  # the range of the first run is the whole one
    return statistics


def _take_known(statistics: dict[str, Any], content: bytes, job: dict[str, Any]) -> None:
    """Puts ranges that are known otherwise in the place of those that the samples show, and keeps all of them."""
    tensors = decode_graphs(read_model(content))[0].tensors
    inputs = {text(each.Name()): tensors[each.TensorIndex()].name for each in _signature_inputs(content)}
    for name, ends in job["ranges"].items():
        tensor = inputs.get(name, name)
        # In the type that the library has: another would move scales by the last bit.
        kind = np.asarray(statistics.get(tensor, {}).get("min", np.float32(0))).dtype
        low, high = np.array(ends, kind).reshape(2, 1, 1)
        statistics[tensor] = {**statistics.get(tensor, {}), "min": low, "max": high}
    if job["statistics"] is not None:
        found = {
            name: [float(np.ravel(one[end])[0]) for end in ("min", "max")]
            for name, one in statistics.items() if np.size(one.get("min", ())) == 1
        }  # fmt: skip
        with Path(job["statistics"]).open("wb") as file:
            ranges = np.array(list(found.values()), np.float64).reshape(-1, 2)
            np.savez(file, names=np.array(list(found)), ranges=ranges)


def _signature_inputs(content: bytes) -> list[Any]:
    signature = read_model(content).SignatureDefs(0)
    return [signature.Inputs(place) for place in range(signature.InputsLength())]


if __name__ == "__main__":
    serve_one_job(quantize_file)
