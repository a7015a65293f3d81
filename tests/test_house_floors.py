"""Lower floors never import upper ones; rooms on one floor keep apart."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

FLOORS = {
    "errors": 0,
    "registry": 0,
    "embedded": 0,
    "staging": 0,
    "plain_yaml": 0,
    "installed": 0,
    "reading": 1,
    "hub": 1,
    "noise": 1,
    "kernels": 1,
    "blocks": 1,
    "ranks": 1,
    "engine": 2,
    "finetuner": 2,
    "probing": 3,
    "optim": 4,
    "methods": 5,
    "executors": 6,
    "federated": 7,
    "models": 5,
    "tasks": 5,
    "journal": 6,
    "training": 6,
    "meta": 6,
    "recipe": 7,
    "report": 7,
    "recipes": 7,
    "jobs": 8,
    "cli": 9,
    "__main__": 10,
}
NEIGHBOURS = {
    ("kernels", "noise"),
    ("registry", "errors"),
    ("training", "journal"),
    ("meta", "training"),
    ("finetuner", "engine"),
}


def room_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "zopeft" and len(parts) > 1 else None


def imports(path):
    """Yields the dotted names that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "zopeft":
                yield from (f"zopeft.{alias.name}" for alias in node.names)
            else:
                yield node.module


def files():
    for path in sorted((ROOT / "zopeft").rglob("*.py")):
        relative = path.relative_to(ROOT / "zopeft")
        if len(relative.parts) > 1 or relative.stem != "__init__":
            yield relative.parts[0].removesuffix(".py"), path
    for path in sorted((ROOT / "cli").rglob("*.py")):
        yield "cli", path


def test_every_room_has_a_floor():
    rooms = {room for room, _ in files()}
    assert len(rooms) >= 20
    assert rooms <= set(FLOORS)


def test_imports_go_down():
    wrong, seen = [], 0
    for room, path in files():
        for module in imports(path):
            other = room_of(module)
            if other is None or other == room or other not in FLOORS:
                continue
            seen += 1
            below = FLOORS[other] < FLOORS[room]
            if not below and (room, other) not in NEIGHBOURS:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert seen >= 60
    assert wrong == []
