"""Which number types a file gets, and what is refused before any work because no such file can be had."""

from __future__ import annotations

from collections.abc import Iterable

from edgecompress.converters.ptq import io_type
from edgecompress.errors import ConversionError, DataError, UsageError
from edgecompress.profiles import Profile
from edgecompress.recipes import Recipe
from edgecompress.schemes import Algorithm, QuantizationScheme
from edgecompress.tfmot.quantized_graph import trains_quantized


def refuse_scheme(recipe: Recipe, device: Profile, *, samples: bool) -> None:
    """Refuses, before any work, what cannot end well.

    Args:
        recipe: What is asked for.
        device: What it is for.
        samples: Whether there are samples to calibrate with.

    Raises:
        UsageError: The device does not take the scheme.
        DataError: It needs calibration samples, and there are none.
        ConversionError: A file of that scheme cannot have what is asked for.
    """
    wanted = recipe.quantization.scheme
    allowed = device.quantization.schemes
    if wanted != "auto" and wanted not in allowed:
        raise UsageError(
            f"the profile {device.name!r} does not take the scheme {str(wanted)!r}", expected=", ".join(allowed),
            fix="choose one of these with --scheme, or another profile",
        )  # fmt: skip
    form, forms = recipe.quantization.recurrent, device.quantization.recurrent
    if form != "auto" and form not in forms:
        raise UsageError(
            f"the profile {device.name!r} does not take recurrent layers in the form {str(form)!r}",
            expected=", ".join(forms) or "none", fix="choose one of these with --recurrent, or another profile",
        )  # fmt: skip
    if recipe.qat is not None or wanted != "auto":
        refuse_settings(recipe, trained_scheme(recipe, device))
    if recipe.qat is not None and not trains_quantized(trained_scheme(recipe, device)):
        able = [str(scheme) for scheme in allowed if trains_quantized(scheme)]
        raise UsageError(
            f"{trained_scheme(recipe, device)} rounds nothing that qat could train for",
            expected=", ".join(able) or None, fix="leave --qat out, or choose another --scheme",
        )  # fmt: skip
    asked_for = wanted_schemes(recipe, device)
    if not samples and all(scheme.needs_calibration for scheme in asked_for):
        who = f"the profile {device.name!r} takes" if wanted == "auto" else "you asked for"
        raise DataError(
            f"{who} full integer quantization ({', '.join(asked_for)}), which needs calibration samples",
            fix="pass --data samples.npz (100 to 500 typical inputs)",
        )


def trained_scheme(recipe: Recipe, device: Profile) -> QuantizationScheme:
    """Returns the scheme that is trained for: training cannot be repeated for one after another."""
    return wanted_schemes(recipe, device)[0]


def may_quantize(schemes: Iterable[QuantizationScheme]) -> bool:
    """Returns whether a file of one of these schemes has integer kernels."""
    return any(scheme not in (QuantizationScheme.FLOAT16, QuantizationScheme.FLOAT32) for scheme in schemes)


def wanted_schemes(recipe: Recipe, device: Profile) -> tuple[QuantizationScheme, ...]:
    """Returns the schemes that the file may have, the best first."""
    wanted = recipe.quantization.scheme
    return device.quantization.schemes if wanted == "auto" else (QuantizationScheme(wanted),)


def calibrates(recipe: Recipe, device: Profile) -> bool:
    """Returns whether samples may have to set ranges of activations; qat for int8 learns them."""
    return recipe.qat is None or trained_scheme(recipe, device) is not QuantizationScheme.INT8


def refuse_settings(recipe: Recipe, scheme: QuantizationScheme) -> None:
    """Refuses what was asked for and a file of this scheme cannot have, rather than leaving it out without a word."""
    settings = recipe.quantization
    for side, wanted in (("input", settings.input_type), ("output", settings.output_type)):
        if wanted is not None and io_type(scheme, wanted) is not wanted:
            raise ConversionError(
                f"{scheme} files have no {wanted} {side}s", expected=f"{io_type(scheme, wanted)} {side}s",
                fix=f"leave --{side}-type out, or choose another --scheme",
            )  # fmt: skip
    if settings.recurrent != "auto" and not scheme.needs_calibration:
        raise ConversionError(
            f"recurrent layers of {scheme} files have no other form than a loop in float", fix="leave --recurrent out"
        )
    trained = recipe.qat is not None and scheme is QuantizationScheme.INT8
    without_scales = scheme in (QuantizationScheme.FLOAT16, QuantizationScheme.FLOAT32)
    if (trained or without_scales) and settings.algorithm != Algorithm.MIN_MAX:
        what = "qat trains the scales of int8 files, so there are none" if trained else f"{scheme} files have no scales"
        fix = "leave --algorithm out, or choose another --scheme"
        raise ConversionError(f"{what} for {settings.algorithm} to find", fix=fix)
