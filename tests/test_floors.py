"""The house keeps its order: a file imports only from floors below its own, and an outside library has one place."""

import ast
import sys
from collections import Counter
from functools import cache
from pathlib import Path

from helpers import REPOSITORY

PACKAGE = REPOSITORY / "jaxpneumo"

# From the ground up. Folders of one floor do not import each other.
FLOORS = (
    ("process",),
    ("dicom", "augment", "model"),
    ("data",),
    ("run",),
    ("synthetic",),
    ("train", "predict"),
    ("export", "score"),
    ("evaluate", "api"),
    ("report", "serve"),
    ("bench",),
    ("main",),
    ("__main__",),
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}

# Where each library may be imported that has one place; a folder stands for its files.
PLACES = {
    "absl": ("main.py",),
    "albumentations": ("augment/host.py",),
    "dicomweb_client": ("serve/dicomweb.py",),
    "flax": ("model", "run/state.py"),
    "grain": ("data/source.py",),
    "h5py": ("model/weight_files.py",),
    "highdicom": ("dicom/capture.py", "dicom/presentation.py", "dicom/segmentation.py", "dicom/structured_report.py"),
    "imagecodecs": ("dicom/stored.py", "predict/png.py"),
    "jax.experimental.multihost_utils": ("run/sharding.py",),
    "jinja2": ("report",),
    "markupsafe": ("report",),
    "matplotlib": ("evaluate/data_figure.py", "report/figures.py", "train/log.py"),
    "onnx": ("export/onnx_graph.py",),
    "onnxruntime": ("predict/onnx_session.py",),
    "openvino": ("predict/onnx_session.py",),
    "optax": ("run/state.py", "train"),
    "orbax": ("run/checkpoint.py",),
    "pydicom": ("dicom",),
    "pynetdicom": ("serve/listener.py",),
    "safetensors": ("model/weight_files.py",),
    "scipy": ("score",),
    "simplejpeg": ("dicom",),
    "starlette": ("serve",),
    "tensorboardX": ("train/log.py",),
    "torch": ("model/weight_files.py",),
    "tqdm": ("process/progress.py", "data/verify.py"),
    "uvicorn": ("serve",),
}
# What may be imported anywhere; every other library needs a place above.
ANYWHERE = {"cv2", "jax", "ml_collections", "numpy"}
# What makes meshes and shardings. `Mesh` and `Sharding`, the types, may be named anywhere.
SHARDING = {"AxisType", "NamedSharding", "PartitionSpec", "make_mesh", "shard_map"}

FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("jaxpneumo", "tests", "configs", "benchmarks")
ALL_FILES = sorted(
    path for folder in ("jaxpneumo", "tests", "configs", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")
)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere, also inside functions; of `from a import b` both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: an import that is relative to the file does not show its floor"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def part(path: Path) -> str:
    """The folder below the package, or the name of a file that lies in none."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def upward(path: Path) -> list[str]:
    """Imports of this package that do not go to a floor below the file's own."""
    own, found = part(path), []
    for name in sorted(name for name in imported(path) if name.startswith("jaxpneumo.")):
        other = name.split(".")[1]
        # The package's own names, such as the version, are below everything.
        if other in FLOOR_OF and other != own and FLOOR_OF[other] >= FLOOR_OF[own]:
            found.append(f"{path.relative_to(PACKAGE)} imports {name}")
    return found


def misplaced(path: Path) -> list[str]:
    """Imports of outside libraries away from their places."""
    file = path.relative_to(PACKAGE).as_posix()
    found = []
    for name in imported(path):
        for library, places in PLACES.items():
            inside = any(file == place or file.startswith(f"{place}/") for place in places)
            if (name == library or name.startswith(f"{library}.")) and not inside:
                found.append(f"{file} imports {name}")
    return found


def test_the_floors_are_told_as_they_are():
    told = " < ".join(", ".join(floor) for floor in FLOORS)
    for name in ("README.md", "CONTRIBUTING.md"):
        assert told in " ".join((REPOSITORY / name).read_text(encoding="utf-8").split()), name


def test_every_folder_has_a_floor():
    assert {part(path) for path in FILES} - {"__init__"} == set(FLOOR_OF)


def test_a_file_imports_only_from_floors_below_its_own():
    assert not [line for path in FILES if part(path) != "__init__" for line in upward(path)]


def test_an_outside_library_stays_in_its_place():
    assert not [line for path in FILES for line in misplaced(path)]


def test_every_outside_library_has_a_place_or_may_go_anywhere():
    outside = {name.split(".")[0] for path in FILES for name in imported(path)} - set(sys.stdlib_module_names)
    assert outside - {"jaxpneumo"} == {name.split(".")[0] for name in (*PLACES, *ANYWHERE)}


def test_meshes_and_shardings_are_made_in_one_file():
    found = []
    for path in FILES:
        names = imported(path) | {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        named = {name.rsplit(".", 1)[-1] for name in names if name.startswith("jax.")} & SHARDING
        if named and path != PACKAGE / "run/sharding.py":
            found.append(f"{path.relative_to(PACKAGE)} uses {', '.join(sorted(named))}")
    assert not found


def test_no_two_files_have_one_name():
    names = Counter(path.name for path in FILES if path.name not in ("__init__.py", "__main__.py"))
    assert not [name for name, times in names.items() if times > 1]


def test_no_class_name_is_used_twice():
    classes = Counter(node.name for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef))
    assert not [name for name, times in classes.items() if times > 1]


def test_a_file_has_at_most_430_lines():
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    lines = {str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {file: count for file, count in lines.items() if not 1 <= count <= 430}


def test_the_rules_see_what_breaks_them(tmp_path, monkeypatch):
    """Planted: an import from above, one inside a function, a library out of its place."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    file = tmp_path / "predict" / "a.py"
    file.parent.mkdir()
    lines = ("from jaxpneumo.train import loop", "def f():", "    import grain", "    from jaxpneumo import evaluate")
    file.write_text("\n".join(lines) + "\n")
    assert [line.split(" imports ")[1] for line in upward(file)] == [
        "jaxpneumo.evaluate",
        "jaxpneumo.train",
        "jaxpneumo.train.loop",
    ]
    assert misplaced(file) == ["predict/a.py imports grain"]
