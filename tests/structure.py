"""The structure of the package as numbers, read from its sources: `python tests/structure.py [CHECKOUT]` prints them."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FAMILIES = {"Clip", "Diffusion", "Vlm"}
Functions = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: Path) -> dict[str, Path]:
    """Module name -> file, for every module of muwa in a checkout."""
    return {
        path.relative_to(root).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
        for path in sorted((root / "muwa").rglob("*.py"))
    }


def functions(tree: ast.Module) -> Iterator[Functions]:
    """Every function and method, inner ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Functions))


def parameters(function: Functions) -> int:
    """How many parameters a function takes, `self` and `cls` not counted."""
    a = function.args
    names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"])) + (a.vararg is not None) + (a.kwarg is not None)


def body_lines(function: Functions) -> int:
    """Lines of a function's body, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def family_tests(tree: ast.Module) -> int:
    """How many `isinstance` and `issubclass` tests name a model family."""
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name))
    tests = (call for call in calls if call.func.id in ("isinstance", "issubclass") and len(call.args) == 2)
    return sum(
        bool(FAMILIES & {n.id for n in ast.walk(call.args[1]) if isinstance(n, ast.Name)}) for call in tests
    )


def imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """The modules of muwa that a module imports when it is loaded; `if TYPE_CHECKING:` blocks do not count."""
    found: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, Functions) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            ):
                continue
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found.add(inner if inner in modules else node.module)
            else:
                visit(getattr(node, "body", []))

    visit(tree.body)
    return found & modules


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """Module -> 1 + the highest level among the modules that it imports.

    Raises:
        ValueError: Modules import each other in a circle; gives it.
    """
    done: dict[str, int] = {}

    def level(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            raise ValueError(f"circular import: {' -> '.join((*above[above.index(name) :], name))}")
        if name not in done:
            done[name] = 1 + max((level(other, (*above, name)) for other in graph[name]), default=0)
        return done[name]

    for name in graph:
        level(name, ())
    return done


def measure(root: Path) -> dict[str, int | float]:
    """What the limits are on."""
    files = sources(root)
    trees = {name: ast.parse(path.read_text()) for name, path in files.items()}
    lines = [line for path in files.values() for line in path.read_text().splitlines()]
    every = [(name, f) for name, tree in trees.items() for f in functions(tree)]
    graph = {name: imports(tree, set(files)) - {name} for name, tree in trees.items()}
    families = {name: family_tests(tree) for name, tree in trees.items()}
    return {
        "modules at the root": sum(path.parent == root / "muwa" for path in files.values()),
        "isinstance tests on families": sum(families.values()),
        "isinstance tests on families outside muwa.models": sum(
            count for name, count in families.items() if not name.startswith("muwa.models")
        ),
        "functions of ten or more parameters": sum(parameters(f) >= 10 for _, f in every),
        "functions of nine or more parameters": sum(parameters(f) >= 9 for _, f in every),
        "bodies over 50 lines": sum(body_lines(f) > 50 for _, f in every),
        "bodies over 45 lines": sum(body_lines(f) > 45 for _, f in every),
        "fmt: skip": sum(bool(re.search(r"#\s*fmt:\s*skip", line)) for line in lines),
        "lines over 110 columns, per cent": round(
            100 * sum(len(line) > 110 for line in lines) / len(lines), 2
        ),
        "levels of imports": max(levels(graph).values()),
        "modules": len(files),
        "lines": len(lines),
    }


def worst(root: Path) -> Iterator[str]:
    """Where the limits are reached: long bodies, wide signatures, the longest chain of imports."""
    files = sources(root)
    trees = {name: ast.parse(path.read_text()) for name, path in files.items()}
    for name, tree in trees.items():
        for f in functions(tree):
            if body_lines(f) > 45:
                yield f"{name}.{f.name}: a body of {body_lines(f)} lines"
            if parameters(f) >= 9:
                yield f"{name}.{f.name}: {parameters(f)} parameters"
        if count := family_tests(tree):
            yield f"{name}: {count} isinstance tests on families"
    graph = {name: imports(tree, set(files)) - {name} for name, tree in trees.items()}
    height = levels(graph)
    name = max(height, key=lambda one: height[one])
    chain = [name]
    while graph[name]:
        name = max(graph[name], key=lambda one: height[one])
        chain.append(name)
    yield " -> ".join(chain)


if __name__ == "__main__":
    checkout = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    for what, value in measure(checkout).items():
        print(f"{value:>8}  {what}")
    print("\n".join(worst(checkout)))
