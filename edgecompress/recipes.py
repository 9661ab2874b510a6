"""Recipes: what is done to a model, as data. The command line's options and a TOML file say the same things."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edgecompress.errors import RecipeError
from edgecompress.profiles import RecurrentLowering
from edgecompress.schemas import explain_validation_error
from edgecompress.schemes import Algorithm, IoType, Observer, QuantizationScheme
from edgecompress.techniques import Qat, Technique, Training

# Strict: TOML has types of its own, and "200" or true in place of 200 is a mistake.
_Count = Annotated[int, Field(gt=0, strict=True)]
_Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]

CALIBRATION_SAMPLES = 200


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quantization(_Part):
    """How the numbers of the file are stored."""

    scheme: QuantizationScheme | Literal["auto"] = Field("auto", description="A scheme, or the profile's best one.")
    algorithm: Algorithm = Field(Algorithm.MIN_MAX, description="How the scales of the weights are found.")
    input_type: IoType | None = Field(None, description="Type of the inputs; absent: the profile's.")
    output_type: IoType | None = Field(None, description="Type of the outputs; absent: the profile's.")
    recurrent: RecurrentLowering | Literal["auto"] = Field(
        "auto", description="Form of recurrent layers in int8 and int16x8 files, or the best of the profile's."
    )
    observer: Observer = Field(
        Observer.MIN_MAX, description="How ranges inside recurrent layers of int8 and int16x8 files are found."
    )
    calibration_samples: _Count = Field(
        CALIBRATION_SAMPLES, description="Samples that set activation ranges, and show low_rank the activations."
    )


class Verification(_Part):
    """How the finished file is compared with the float model."""

    samples: _Count = Field(500, description="Held-out samples, at most.")
    max_accuracy_drop: _Fraction | None = Field(
        None, description="Largest accepted loss of accuracy, as a fraction: 0.01 is one point."
    )


class Recipe(_Part):
    """Everything that decides the bytes of the finished file, apart from the model and the data."""

    schema_version: Literal[1] = Field(1, description="Version of this format.")
    seed: Annotated[int, Field(ge=0, strict=True)] = Field(0, description="Seed of every random choice.")
    passes: tuple[Technique, ...] = Field((), description="What is done to the model, in this order.")
    training: Training = Training()
    quantization: Quantization = Quantization()
    verification: Verification = Verification()

    @field_validator("passes")
    @classmethod
    def _qat_comes_last(cls, passes: tuple[Technique, ...]) -> tuple[Technique, ...]:
        kinds = [each.kind for each in passes]
        if "qat" in kinds[:-1]:
            raise ValueError("'qat' must be the last pass: it fixes the number types of the file")
        return passes

    @property
    def qat(self) -> Qat | None:
        """Quantization-aware training, if it is the last pass."""
        return self.passes[-1] if self.passes and isinstance(self.passes[-1], Qat) else None


def load_recipe(path: str | Path) -> Recipe:
    """Returns the recipe in a TOML file.

    Raises:
        RecipeError: The file is missing, is not TOML, or has an unknown key or a wrong value.
    """
    try:
        text = Path(path).read_text("utf-8-sig")  # some editors put a byte order mark first
        return Recipe.model_validate(tomllib.loads(text))
    except FileNotFoundError:
        raise RecipeError("no such file", where=path, fix="check the path given to --recipe") from None
    except UnicodeDecodeError:
        raise RecipeError("is not a text file", where=path, fix="give a .toml file, in UTF-8") from None
    except OSError as error:
        raise RecipeError(
            f"cannot be read: {error.strerror}", where=path, fix="give the path of a .toml file"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"not valid TOML: {error}", where=path, fix="correct that line") from None
    except ValidationError as error:
        raise RecipeError(explain_validation_error(error, Recipe), where=path) from None
