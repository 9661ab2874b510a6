import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_every_package_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    inside = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "edgecompress").rglob("__init__.py")}
    assert listed == inside | {"edgecompress.converters", "edgecompress.device_profiles"}


def test_constraints_name_exact_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    names = [line.split("==")[0].lower().replace("_", "-") for line in lines]
    assert all(line.count("==") == 1 and not set(line) & set(" @/:;") for line in lines)
    assert names == sorted(names)
    for extra in ("convert", "dev"):
        for requirement in PROJECT["project"]["optional-dependencies"][extra]:
            assert requirement.split(">")[0].split(";")[0].strip() in names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    tracked = ("edgecompress", "converters", "device_profiles", "pyproject.toml", "README.md", "LICENSE")
    copy.mkdir()
    for name in tracked:
        (copy / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, copy]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_profiles_types_and_no_foreign_top_level_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"edgecompress"}
    assert {"edgecompress/py.typed", "edgecompress/device_profiles/pixel.toml"} <= set(names)
    assert "edgecompress/converters/tflite.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_works_where_a_user_has_modules_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "converters.py").write_text("raise RuntimeError('the user\\'s own')\n")
    code = "import edgecompress; print(edgecompress.__file__, edgecompress.list_profiles()[0])"
    environment = {"PYTHONPATH": str(wheel)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [f"{wheel}/edgecompress/__init__.py", "android-arm64"]
