from __future__ import annotations

import json
import re
import tomllib
from enum import StrEnum
from importlib import resources
from pathlib import Path

import pytest
from pydantic import BaseModel

from edgecompress import profiles
from edgecompress.errors import ProfileError
from edgecompress.profiles import Profile, Target, list_profiles, load_profile, profile_schema
from edgecompress.schemes import Granularity, IoType, QuantizationScheme

FOLDER = resources.files("edgecompress.device_profiles")
README = FOLDER.joinpath("README.md").read_text("utf-8")
BUNDLED = (
    "android-arm64",
    "coral-usb",
    "cortex-m4",
    "cortex-m7",
    "esp32-s3",
    "ethos-u55-128",
    "host",
    "pixel",
    "raspberry-pi-5",
    "raspberry-pi-zero-2w",
)
INTEGER_ONLY = ("coral-usb", "cortex-m4", "cortex-m7", "esp32-s3", "ethos-u55-128")
MICROCONTROLLERS = ("cortex-m4", "cortex-m7", "esp32-s3")
MINIMAL = """
name = "mine"
title = "Mine"
[chip]
name = "C"
isa = "arm64-v8a"
cpu = "one"
[runtime]
name = "litert"
targets = ["cpu"]
[quantization]
schemes = ["int8"]
[check]
rules = ["litert-cpu"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, "utf-8")
    return path


def refusal(profile: str | Path) -> str:
    with pytest.raises(ProfileError) as caught:
        load_profile(profile)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def all_models() -> list[type[BaseModel]]:
    return [each for each in vars(profiles).values() if isinstance(each, type) and issubclass(each, profiles._Part)]


# What is bundled


def test_the_listing_is_complete_and_sorted() -> None:
    assert list_profiles() == BUNDLED


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_profile_loads_under_its_own_name_and_cites_its_facts(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description
    assert profile.sources or name == "host"
    assert len({source.url for source in profile.sources}) == len(profile.sources)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_profile_names_the_schema_first(name: str) -> None:
    first = FOLDER.joinpath(f"{name}.toml").read_text("utf-8").splitlines()[0]
    assert first == "#:schema ./profile.schema.json"


@pytest.mark.parametrize("name", BUNDLED)
def test_integer_only_devices_take_no_float_scheme_and_no_float_border(name: str) -> None:
    profile = load_profile(name)
    assert profile.integer_only == (name in INTEGER_ONLY)
    if profile.integer_only:
        assert set(profile.quantization.schemes) <= {QuantizationScheme.INT8, QuantizationScheme.INT16X8}
        assert profile.quantization.input_type == profile.quantization.output_type == IoType.INT8
    else:
        assert QuantizationScheme.FLOAT32 in profile.quantization.schemes


def test_one_scheme_that_needs_no_data_is_enough_not_to_be_integer_only(tmp_path: Path) -> None:
    assert load_profile(write(tmp_path, MINIMAL)).integer_only
    assert not load_profile(write(tmp_path, MINIMAL.replace('["int8"]', '["int8", "dynamic"]'))).integer_only


@pytest.mark.parametrize("name", MICROCONTROLLERS)
def test_a_microcontroller_keeps_room_for_the_program(name: str) -> None:
    profile = load_profile(name)
    chip, limits = profile.chip, profile.limits
    assert chip.flash_bytes is not None
    assert chip.ram_bytes is not None
    assert limits.file_bytes is not None
    assert limits.arena_bytes is not None
    assert limits.file_bytes < chip.flash_bytes
    assert limits.arena_bytes < chip.ram_bytes
    assert profile.quantization.dense is Granularity.PER_TENSOR


def test_the_edge_tpu_takes_int8_only_and_any_size() -> None:
    coral = load_profile("coral-usb")
    assert coral.quantization.schemes == (QuantizationScheme.INT8,)
    assert coral.runtime.targets[0] is Target.EDGE_TPU
    assert coral.limits == profiles.Limits()


@pytest.mark.parametrize("name", BUNDLED)
def test_what_the_kernels_like_has_a_source(name: str) -> None:
    profile = load_profile(name)
    multiple = profile.kernels.rank_multiple
    assert multiple in (4, 8, 16)
    assert multiple == 8 or "at a time" in " ".join(source.fact for source in profile.sources)
    assert profile.kernels.prefers == ("speed" if name == "raspberry-pi-5" else "size")


@pytest.mark.parametrize("name", BUNDLED)
def test_each_target_has_its_rules(name: str) -> None:
    profile = load_profile(name)
    assert len(profile.check.rules) == len(profile.runtime.targets)


# A profile of one's own


def test_a_minimal_profile_gets_the_defaults(tmp_path: Path) -> None:
    profile = load_profile(str(write(tmp_path, MINIMAL)))
    assert profile.runtime.threads == 1
    assert profile.quantization.input_type is IoType.FLOAT32
    assert profile.quantization.dense is Granularity.PER_CHANNEL
    assert profile.limits.file_bytes is None
    assert profile.kernels == profiles.Kernels(rank_multiple=8, prefers="size")


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL, "utf-8-sig")
    assert load_profile(path).name == "mine"


def test_a_path_object_is_a_path_whatever_its_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").write_text(MINIMAL, "utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_profile(Path("mine")).name == "mine"


def test_a_profile_cannot_be_changed(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        profile.name = "other"  # type: ignore[misc]


# What is refused


def test_an_unknown_name_gets_the_nearest_one() -> None:
    message = refusal("pixle")
    assert "'pixle'" in message
    assert "did you mean 'pixel'?" in message
    assert all(name in message for name in BUNDLED)
    assert ".toml" in message


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    message = refusal(tmp_path / "hosts.toml")
    assert "hosts.toml: no such file" in message
    assert "did you mean 'host'?" in message


def test_a_folder_is_not_a_profile(tmp_path: Path) -> None:
    message = refusal(f"{tmp_path}/")
    assert "is a folder" in message
    assert "give the path of a .toml file" in message


def test_a_binary_file_is_not_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    path.write_bytes(b"TFL3\xff\xfe\x00\x80")
    message = refusal(path)
    assert "model.toml: is not a text file" in message
    assert "Fix: " in message


def test_bad_toml_is_located(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, MINIMAL.replace('title = "Mine"', "title = Mine")))
    assert "not valid TOML" in message
    assert "line 3" in message


@pytest.mark.parametrize(
    ("change", "key", "remedy"),
    [
        (('cpu = "one"', 'cpu = "one"\ncoers = 4'), "'chip.coers'", "did you mean 'cores'?"),
        (("[runtime]", "[runtim]"), "unknown key 'runtim'", "did you mean 'runtime'?"),
        (('isa = "arm64-v8a"\n', ""), "'chip.isa'", "is missing: Instruction set"),
        (('["int8"]', '["int9"]'), "'quantization.schemes.0'", "did you mean 'int8'?"),
        (('name = "litert"', 'name = "tensorrt"'), "'runtime.name'", "Allowed: litert, tflite-micro, tflite-runtime"),
        (('["int8"]', '"int8"'), "'quantization.schemes'", "must be a list"),
        (('["int8"]', '["int8", "int8"]'), "'quantization'", "a scheme is listed twice"),
        (('["int8"]', "[]"), "'quantization.schemes'", "at least 1 item"),
        (('["cpu"]', '["cpu"]\nthreads = "4"'), "'runtime.threads'", "valid integer; received '4' (str)"),
        (('["cpu"]', '["cpu"]\nthreads = true'), "'runtime.threads'", "valid integer; received True (bool)"),
        (('["cpu"]', '["cpu"]\nthreads = 0'), "'runtime.threads'", "greater than 0; received 0 (int)"),
        (('["litert-cpu"]', '["litert-cpu"]\n[limits]\nlatency_ms = inf'), "'limits.latency_ms'", "finite number"),
        (('title = "Mine"', 'title = "Mine"\nkernels.rank_multiple = 0'), "'kernels.rank_multiple'", "greater than 0"),
        (('title = "Mine"', 'title = "Mine"\nkernels.prefers = "sped"'), "'kernels.prefers'", "did you mean 'speed'?"),
        (('title = "Mine"', 'title = "Mine"\nlimits = 3'), "'limits'", "must be a table; received 3 (int)"),
        (('title = "Mine"', 'title = "Mine"\nschema_version = 2'), "'schema_version'", "Allowed: 1"),
        (('name = "mine"', 'name = "My Board"'), "'name'", "received 'My Board' (str)"),
        (('["litert-cpu"]', '["litert-cpu"]\n[[sources]]\nfact = "x"\nurl = "x"'), "'sources.0.url'", "https?://"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_named_with_its_remedy(
    tmp_path: Path, change: tuple[str, str], key: str, remedy: str
) -> None:
    assert MINIMAL.count(change[0]) == 1
    message = refusal(write(tmp_path, MINIMAL.replace(*change)))
    assert "mine.toml: " in message
    assert key in message
    assert remedy in message


# What is written about profiles


def test_the_schema_file_is_up_to_date() -> None:
    written = FOLDER.joinpath("profile.schema.json").read_text("utf-8")
    assert written == json.dumps(profile_schema(), indent=2) + "\n"


def test_the_schema_has_a_description_for_each_field() -> None:
    schema = profile_schema()
    for model in [schema, *schema["$defs"].values()]:
        for name, field in model.get("properties", {}).items():
            target = schema["$defs"][field["$ref"].rsplit("/", 1)[-1]] if "$ref" in field else field
            assert target.get("description") or field.get("description"), name


def test_the_readme_explains_each_field() -> None:
    explained = set(re.findall(r"^\| `(\w+)`", README, flags=re.MULTILINE))
    sections = {"chip", "runtime", "quantization", "kernels", "check", "limits", "package", "sources"}
    assert sections == {heading.strip("[]") for heading in re.findall(r"^### `([^`]+)`", README, flags=re.MULTILINE)}
    for model in all_models():
        assert set(model.model_fields) - sections <= explained, model.__name__


def test_the_readme_names_each_value() -> None:
    enums = [each for each in vars(profiles).values() if isinstance(each, type) and issubclass(each, StrEnum)]
    named = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL)))
    assert {str(value) for enum in enums for value in enum} <= named


def test_the_readme_lists_the_profiles_as_they_are() -> None:
    rows = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| `")]
    listed = {row[0].strip("`"): row for row in rows if len(row) == 5}
    assert tuple(listed) == BUNDLED
    for name, row in listed.items():
        profile = load_profile(name)
        assert row[3] in ("all", ", ".join(profile.quantization.schemes))
        assert row[4] == ", ".join(profile.package.formats)
    assert set(load_profile("host").quantization.schemes) == set(QuantizationScheme)


def test_the_readme_example_is_a_valid_profile(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    assert Profile.model_validate(tomllib.loads(example)) == load_profile(write(tmp_path, example))
    assert load_profile(write(tmp_path, example)).name == "my-board"
