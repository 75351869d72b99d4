"""The code part of a cache key: a digest of every module of muwa that a stage reaches through its imports.

The imports are read from the sources; nothing is executed. Docstrings, comments, formatting and blocks
under `if TYPE_CHECKING:` do not enter the digest. The digest does not see a module that is imported by a
computed name (`importlib.import_module`): a test forbids that in the modules that a stage can reach.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from muwa.fingerprint import digest


def code_fingerprint(modules: Iterable[str]) -> str:
    """SHA-256 (hex) of the code of `modules` and of every muwa module that they import, directly or not.

    Args:
        modules: Names of modules, such as "muwa.gradients.mean". Order and repetition do not matter. For a
            module outside muwa (a test, a user's script) the digest covers its source and the muwa modules
            that it reaches. It does not cover what else the module imports.

    Raises:
        TypeError: A module has no Python source, for example `__main__` at the interactive prompt.
    """
    return _fingerprint_in_muwa(frozenset(modules))


@functools.cache
def _fingerprint_in_muwa(modules: frozenset[str]) -> str:
    return muwa_imports().fingerprint(modules)


@functools.cache
def muwa_imports() -> ImportGraph:
    """The import graph of muwa, made at the first call in this process."""
    return ImportGraph(Path(__file__).parent.parent, "muwa")


@dataclass(frozen=True)
class _Module:
    """What the graph needs to know about one module.

    Args:
        code: The digest of its code; "" if it has no code, as an empty `__init__`.
        imports: Dotted paths inside the package. Each names a module, or a name inside a module.
        lazy_imports: Paths that it imports under `if TYPE_CHECKING:`, if it defines `__getattr__`. Such a
            module (muwa/__init__.py) loads them when one of its names is first used. Empty for all others.
    """

    code: str
    imports: frozenset[str]
    lazy_imports: frozenset[str]


class ImportGraph:
    """Which modules of a package import which, read from the source files.

    All files of the package are read when the graph is made. A file that is edited during a long run
    therefore does not change the keys of code that the run has already imported. A file is parsed when it is
    first reached.

    Args:
        root: The folder of the package.
        package: The name under which the package is imported.
    """

    def __init__(self, root: Path, package: str):
        self._package = package
        self._files = {_module_name(path.relative_to(root), package): path for path in root.rglob("*.py")}
        self._sources = {name: path.read_bytes() for name, path in self._files.items()}
        self._modules: dict[str, _Module] = {}

    def fingerprint(self, modules: Iterable[str]) -> str:
        """SHA-256 (hex) of the code of all modules that `modules` reach; see `code_fingerprint`."""
        names = sorted(self.reached(modules))
        return digest([part for name in names for part in (name, self._module(name).code)])

    def reached(self, modules: Iterable[str]) -> set[str]:
        """Names of `modules` and of the modules of the package that they import, directly or through others.

        Importing a module runs the `__init__` of every package above it, so these are reached too. Modules
        without code are left out.

        Raises:
            TypeError: One of `modules` has no Python source.
        """
        given = set(modules)
        names = given - self._sources.keys()
        waiting = [path for name in given for path in (name, *self._module(name).imports)]
        seen: set[str] = set()
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            seen.add(path)
            loaded = self._loaded_by(path)
            # a package that only hands out names lazily decides nothing for a module below it
            loaded = [name for name in loaded if name == loaded[-1] or not self._module(name).lazy_imports]
            names.update(loaded)
            for name in loaded:
                waiting += self._module(name).imports
            if loaded:  # the innermost module holds the imported name, or is what the path names
                waiting += self._module(loaded[-1]).lazy_imports
        return {name for name in names if self._module(name).code}

    def _loaded_by(self, path: str) -> list[str]:
        """The modules of the package that an import of the dotted `path` loads, the outermost first."""
        parts = path.split(".")
        prefixes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        return [prefix for prefix in prefixes if prefix in self._sources]

    def _module(self, name: str) -> _Module:
        if name not in self._modules:
            inside = name in self._sources
            file = self._files[name] if inside else _source_file(name)
            tree = ast.parse(self._sources[name] if inside else file.read_bytes(), filename=str(file))
            parent = name if file.stem == "__init__" else name.rpartition(".")[0]
            self._modules[name] = self._described(tree, parent)
        return self._modules[name]

    def _described(self, tree: ast.Module, parent: str) -> _Module:
        """Read a parsed module; `parent` is the package from which its relative imports start."""
        lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
        all_imports = self._imports(tree, parent) if lazy else frozenset()
        _strip(tree)
        imports = self._imports(tree, parent)
        return _Module(digest([ast.dump(tree)]) if tree.body else "", imports, all_imports - imports)

    def _imports(self, tree: ast.Module, parent: str) -> frozenset[str]:
        """Dotted paths inside the package that a module imports, also inside functions."""
        paths: list[str] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                paths += [alias.name for alias in node.names]
                # `import a.b` binds a, and so whatever a loads lazily; `import a.b as c` binds only a.b
                paths += [alias.name.split(".")[0] for alias in node.names if not alias.asname]
            elif isinstance(node, ast.ImportFrom):
                source = _absolute(node, parent)
                paths += [f"{source}.{alias.name}" for alias in node.names]
        return frozenset(path for path in paths if path.split(".")[0] == self._package)


def _module_name(path: Path, package: str) -> str:
    """The dotted name of a source file, given relative to the folder of `package`."""
    parts = path.with_suffix("").parts
    return ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def _absolute(node: ast.ImportFrom, parent: str) -> str:
    """The dotted name of the module in a `from` import; leading dots are relative to the package `parent`."""
    if not node.level:
        return node.module or ""
    parents = parent.split(".")
    return ".".join((*parents[: len(parents) - node.level + 1], *filter(None, [node.module])))


def _source_file(name: str) -> Path:
    """The source file of a module outside the package."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if name not in sys.modules:
        try:
            spec = importlib.util.find_spec(name)
        except ImportError:  # a package above it does not exist
            spec = None
        file = spec.origin if spec else None
    if file is None or not file.endswith(".py") or not Path(file).is_file():
        raise TypeError(
            f"cache key of code in module {name}: its source file is {file}, want a .py file; move the "
            "function or class into a module that has one, so that a change of its code changes the key"
        )
    return Path(file)


def _strip(tree: ast.Module) -> None:
    """Remove what cannot change a result: docstrings, bare constants and blocks under `if TYPE_CHECKING:`."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):  # the body of a lambda is one expression
                setattr(node, field, list(_with_effect(statements)))


def _with_effect(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in statements:
        if isinstance(statement, ast.If) and _is_type_checking(statement.test):
            yield from _with_effect(statement.orelse)
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            yield statement


def _is_type_checking(test: ast.expr) -> bool:
    """Whether a condition is `TYPE_CHECKING` or `typing.TYPE_CHECKING`."""
    return "TYPE_CHECKING" in (getattr(test, "id", None), getattr(test, "attr", None))
