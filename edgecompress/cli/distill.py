"""`edgecompress distill`"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgecompress.cli.compress import compress_and_print
from edgecompress.cli.options import MODEL_PATH, model_options, output_options, verification_options
from edgecompress.cli.passes import PassFields, recipe_of, technique_of, training_options

if TYPE_CHECKING:
    from edgecompress.techniques import Distill

_SIZE = PassFields(lambda _text: None, "width=0.5 or width=0.5,depth=0.5,rank=16")
_SIZE_LIKE = re.compile(r"\s*([\w-]+\s*=|\d*\.?\d+\s*$)")
_TERM = PassFields(
    lambda text: {"kind": text.strip()},
    "soft_labels or features,teacher_layer=conv3,student_layer=conv2,projector=linear,weight=0.1",
)


class Student(click.ParamType[Any]):
    """The path of a model, or how much of the teacher the student is to have."""

    name = "file or size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if Path(value).exists() or not _SIZE_LIKE.match(value):
            return Path(value)
        fields = _SIZE.convert(value if "=" in value else f"width={value}", param, ctx)
        if "=" not in value or fields.keys() - {"width", "depth", "rank"}:
            self.fail(f"{value!r} is neither a file nor a size such as width=0.5,depth=0.5,rank=16", param, ctx)
        return fields


@click.command("distill")
@click.option(
    "--teacher",
    multiple=True,
    required=True,
    type=MODEL_PATH,
    help="Model that teaches: .keras, .h5, .tflite or a SavedModel folder. Several teach by their mean.",
)
@click.option(
    "--student",
    required=True,
    type=Student(),
    help="Model of Keras 3 to train, or width=…, depth=…, rank=…: what to keep of the (first) teacher.",
)
@click.option("-o", "--output", type=MODEL_PATH, help="File to write. Default: MODEL-distilled.keras, here.")
@click.option("--alpha", type=click.FloatRange(0, 1), help="Weight of the teacher; 1 needs no labels. Default: 0.7.")
@click.option(
    "--temperature", type=click.FloatRange(min=0, min_open=True), help="What softens the answers. Default: 4."
)
@click.option(
    "--loss",
    "losses",
    multiple=True,
    type=_TERM,
    help="What is compared, instead of the answers only: soft_labels, features,teacher_layer=…,student_layer=…, …",
)
@click.option("--no-cache", is_flag=True, help="Run the teacher in every step; do not keep its answers on disk.")
@training_options
@click.option("--data", help="Samples to verify on. Default: some of --train, which are then not trained on.")
@verification_options
@model_options
@output_options
def command(
    teacher: tuple[Path, ...],
    student: Path | dict[str, Any],
    output: Path | None,
    alpha: float | None,
    temperature: float | None,
    losses: tuple[dict[str, Any], ...],
    no_cache: bool,
    train: str | None,
    data: str | None,
    resume: bool,
    input_shape: tuple[tuple[str, tuple[int, ...]], ...],
    input_range: tuple[float, float] | None,
    custom_objects: tuple[str, ...],
    unsafe: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """Train a student, a smaller model of Keras 3, by the answers of a teacher, and write it as a .keras file.

    \b
    Example: edgecompress distill --teacher big.keras --student width=0.5 --train train.npz -o student.keras
    Example: edgecompress distill --teacher big.keras --student small.keras --train train.npz --temperature 2
    """  # noqa: D301 (click wants the character itself)
    given = {"alpha": alpha, "temperature": temperature, "losses": losses or None, "cache": False if no_cache else None}
    fields = {key: value for key, value in given.items() if value is not None}
    model, technique = _task(teacher, student, fields)
    return compress_and_print(
        model, output or Path(f"{model.stem}-distilled.keras"),
        recipe_of(None, {**settings, "distill": technique.model_dump(exclude_defaults=True)}),
        train=train, data=data, resume=resume, input_shape=input_shape, input_range=input_range,
        custom_objects=custom_objects, unsafe=unsafe, as_json=as_json, quiet=quiet,
    )  # fmt: skip


def _task(teachers: tuple[Path, ...], student: Path | dict[str, Any], fields: dict[str, Any]) -> tuple[Path, Distill]:
    """Returns the model to begin with, and the pass: a student that is made is made of the first teacher."""
    from edgecompress.errors import UsageError
    from edgecompress.techniques import Distill

    files = tuple(map(str, teachers)) if len(teachers) > 1 else str(teachers[0])
    if isinstance(student, Path):
        return student, technique_of(Distill, "distill", {"teacher": files, **fields})
    if teachers[0].suffix == ".tflite":
        raise UsageError(
            "a student is made of a Keras model, and this is none", where=teachers[0],
            fix="give a model of your own as --student, or the .keras file that the .tflite file was made from",
        )  # fmt: skip
    several = {"teacher": files} if len(teachers) > 1 else {}
    return teachers[0], technique_of(Distill, "--student", {**student, **several, **fields})
