"""The house: what a room may import. Data flow one way, so no arrow leads up."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the front door down; a room knows those of the lines below its own, and itself.
STOREYS = (
    ("calibrate", "voc_server", "bundle"),
    ("__main__",),
    ("main", "completion"),
    ("train", "export", "review"),
    ("evaluate", "predict", "prepare", "diagnose"),
    ("reports", "checkpoint_config"),
    ("recipes", "config_checks"),
    ("training_recipes",),
    ("config", "config_paths"),
    ("metrics", "scores"),
    ("features",),
    ("data", "runtime"),
    ("models",),
    ("files", "command_line"),
    ("names", "options"),
    ("errors",),
)
STOREY_OF = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}

# What is for some rooms alone.
ONLY_IN = {
    "torch": (),
    "weight_conversion": (),
    "orbax": ("runtime",),
    "jax": ("models", "train", "scores", "evaluate", "predict", "runtime", "features", "export"),
    "onnx": ("export",),
}

# Where a configuration is known: what makes one, asks for one or keeps one, and the doors, which
# make typed options of it. Whoever is behind them takes those.
OF_CONFIGURATIONS = {
    *(
        "config.py",
        "config_checks.py",
        "recipes.py",
        "training_recipes.py",
        "command_line.py",
        "checkpoint_config.py",
        "options.py",
    ),
    *("prepare/settings.py", "train/resume.py"),
}
DOORS = {
    *("models/__init__.py", "train/loop.py", "evaluate/run.py", "evaluate/calibrate.py"),
    *("predict/predictor.py", "diagnose/run.py", "diagnose/doubt_run.py", "review/serve.py"),
}


def imports(path: Path) -> Iterator[str]:
    """The dotted names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> list[tuple[str, Path]]:
    """Each module of the package, with its room; a room's own door is none of the room."""
    package = ROOT / "mlic_jax"
    paths = set(package.rglob("*.py")) - {package / "__init__.py", *package.glob("*/__main__.py")}
    return [
        (path.relative_to(package).parts[0].removesuffix(".py"), path) for path in sorted(paths)
    ]


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda x: getattr(x, "name", x))
def test_no_arrow_leads_up(room, path):
    for name in imports(path):
        top, *rest = name.split(".")
        for library, rooms in ONLY_IN.items():
            assert top != library or room in rooms, f"{path} imports {name}"
        if top == "mlic_jax" and rest != ["__version__"] and rest[0] != room:
            assert STOREY_OF[rest[0]] > STOREY_OF[room], f"{path} imports {name}"


def test_a_configuration_goes_no_further_than_the_doors():
    knowing = {
        path.relative_to(ROOT / "mlic_jax").as_posix()
        for _, path in modules()
        if any(name.startswith("ml_collections") for name in imports(path))
    }
    assert knowing == OF_CONFIGURATIONS | DOORS


def test_every_room_says_what_it_is_for():
    assert {room for room, _ in modules()} == STOREY_OF.keys()
    for _, path in modules():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
