"""The structure of the package: the direction of imports, what stays behind one interface, the length of files."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "video_rs"
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}
LONGEST = 250  # code lines of a file

# Each room imports from its own line and from those below it. A plain module is a room of its own.
ROOMS = [
    ["cli"],
    ["studies"],
    ["experiment"],
    ["inference"],
    ["training"],
    ["evaluation"],
    ["models", "data"],
    ["distributed"],
    ["checkpoint", "hub", "file_limits", "files", "terminal", "data_config", "errors", "rng", "signals"],
]
ROOMS_OF_DATA = [
    ["tools", "loader", "watchdog", "video_dataset", "clip_datasets", "chunk_dataset"],
    ["segments", "windows"],
    ["sampler", "sources"],
    ["video"],
    ["transforms", "clips"],
    ["shards"],
    ["storage"],
    ["limits"],
]


def imports(module, *, with_type_checking):
    """Yield the modules of the package that a module imports, wherever in the file."""
    nodes = [TREES[module]]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not with_type_checking:
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found = name if name in FILES else name.rpartition(".")[0]
            if found in FILES and found != "video_rs":
                yield found


def level(module, rooms, depth):
    """Return the line of ``rooms`` that a module is on; None for another package."""
    room = [*module.split("."), "", ""][depth]
    return next((number for number, names in enumerate(rooms) if room in names), None)


def upward(rooms, depth):
    """Return the imports that point up, or from one room to its neighbour, as ``importer -> imported``."""
    found = set()
    for module in FILES:
        for target in imports(module, with_type_checking=True):
            own, other = level(module, rooms, depth), level(target, rooms, depth)
            if own is not None and other is not None and other < own:
                found.add(f"{module} -> {target}")
    return found


def rooms_without_a_line(rooms, depth, prefix):
    modules = {module.split(".")[depth] for module in FILES if module.startswith(prefix + ".")}
    return modules - {room for names in rooms for room in names}


def circles():
    """Return the groups of modules that import each other, in a chain of any length."""
    graph = {module: set(imports(module, with_type_checking=False)) for module in FILES}
    reached = {module: closure(graph, module) for module in FILES}
    groups = {frozenset(other for other in reached[m] if m in reached[other]) for m in FILES if m in reached[m]}
    return {" <-> ".join(sorted(group)) for group in groups}


def closure(graph, module):
    found, nodes = set(), [module]
    while nodes:
        for target in graph[nodes.pop()] - found:
            found.add(target)
            nodes.append(target)
    return found


def code_lines(path):
    """Return the number of lines that are not blank, a comment or part of a docstring."""
    text, tree = path.read_text(encoding="utf-8"), ast.parse(path.read_text(encoding="utf-8"))
    lines, docstrings = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


@pytest.mark.parametrize(("rooms", "depth", "prefix"), [(ROOMS, 1, "video_rs"), (ROOMS_OF_DATA, 2, "video_rs.data")])
def test_imports_point_down(rooms, depth, prefix):
    assert rooms_without_a_line(rooms, depth, prefix) == set()
    assert upward(rooms, depth) == set()


def test_models_and_data_do_not_import_each_other():
    pairs = {(module.split(".")[1], target.split(".")[1]) for module in FILES for target in below(module)}
    assert not {("models", "data"), ("data", "models")} & pairs


def below(module):
    return imports(module, with_type_checking=True) if "." in module else ()


def test_no_circle():
    assert circles() == set()


def test_only_the_edge_sees_the_config():
    for module in FILES:
        if not module.startswith(("video_rs.cli", "video_rs.studies", "video_rs.experiment")):
            seen = [target for target in below(module) if target.startswith("video_rs.experiment")]
            assert not seen, module


def test_only_the_device_module_knows_torch_xla():
    found = {m for m, path in FILES.items() if "torch_xla" in path.read_text(encoding="utf-8")}
    assert found == {"video_rs.distributed.device"}
    for module, tree in TREES.items():
        compared = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Compare)]
        asked = [text for text in compared if ".type" in text and "'xla'" in text]
        assert not asked or module == "video_rs.distributed.device", module


def test_no_family_is_named_outside_models():
    """Algorithms ask a model through its protocol."""
    for module, tree in TREES.items():
        if module.startswith("video_rs.models"):
            continue
        calls = [
            node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        ]
        named = [ast.unparse(call) for call in calls if {"ResNetRS", "External"} & names_in(call)]
        assert not named, module


def names_in(node):
    return {
        ast.unparse(child).rpartition(".")[2] for child in ast.walk(node) if isinstance(child, ast.Name | ast.Attribute)
    }


def test_no_file_is_long():
    paths = [*FILES.values(), *(PACKAGE.parent / "tools").glob("*.py")]
    lengths = {path.relative_to(PACKAGE.parent).as_posix(): code_lines(path) for path in paths}
    assert {name: count for name, count in lengths.items() if count > LONGEST} == {}
