"""The signature of a class or function, read from its source without importing its module.

A module that imports torch takes seconds to import. Settings are checked before that, so that a wrong one is
refused at once. `muwa.settings.signatures` reads the same signatures from imported functions. Of modules
outside muwa only the names of settings are read.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, get_args

from muwa.settings.other_modules import is_plain_class, is_plain_function, source_file
from muwa.types.ranges import FieldsOf

_FOLDER = Path(__file__).parents[1]
# Modules that annotations may name and that import nothing heavy.
_LIGHT = ("typing", "collections.abc", "pathlib", "annotated_types", "muwa.types.ranges")


class _Any(type):
    def __getattr__(cls, name: str) -> type[Part]:
        if name.startswith("_"):
            raise AttributeError(name)
        return Part  # nn.Module


class Part(metaclass=_Any):
    """Stands for any class in an annotation: only a node with a `_target_` makes an object of it."""


@dataclass(frozen=True)
class SourceSignature:
    """What a class or function takes.

    Args:
        signature: Its parameters. An annotation that needs a heavy import is `Any`.
        is_class: Whether it is a class. All its settings must be given then.
    """

    signature: Signature
    is_class: bool


@cache
def source_signature(target: str) -> SourceSignature | None:
    """The signature of a target; None if the source does not define it, or defines it in another way.

    Args:
        target: Its full name: "muwa.methods.slug.Slug".
    """
    if (found := _definition(target)) is None:
        return None
    module, node = found
    if isinstance(module, _OtherModule) and not module.is_plain(node):
        return None
    if isinstance(node, ast.ClassDef):
        parameters = _fields(module, node)
        return (
            None if parameters is None else SourceSignature(Signature([*parameters.values()]), is_class=True)
        )
    if isinstance(node, ast.FunctionDef):
        return SourceSignature(Signature([*_arguments(module, node.args)]), is_class=False)
    return None


@cache
def class_value(target: str, name: str) -> Any:
    """The value of a class attribute, of the class or of a base; None if the source does not tell it.

    Args:
        target: The full name of the class.

    Returns:
        A constant, a tuple of them, or the full name of a class.
    """
    found = _definition(target)
    if found is None or not isinstance(node := found[1], ast.ClassDef):
        return None
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and ast.unparse(item.target) == name and item.value is not None:
            return _value(found[0], item.value)
    inherited = (found[0].full_name(ast.unparse(base).partition("[")[0]) for base in node.bases)
    values = (class_value(base, name) for base in inherited if base)
    return next((value for value in values if value is not None), None)


def _value(module: _Module, node: ast.AST) -> Any:
    """A constant, a tuple, or the full name of a class; None for anything else. Nothing is evaluated."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Tuple):
        return tuple(_value(module, one) for one in node.elts)
    target = module.full_name(ast.unparse(node))
    found = _definition(target) if target else None
    if found is None:
        return None
    return target if isinstance(found[1], ast.ClassDef) else _value(*found)


def returned_class(target: str) -> str | None:
    """The full name of the class that a function says it returns; None if the source does not tell it."""
    found = _definition(target)
    if found is None or not isinstance(node := found[1], ast.FunctionDef) or node.returns is None:
        return None
    return found[0].full_name(ast.unparse(node.returns).strip("'\""))


def _definition(target: str) -> tuple[_Module, ast.AST] | None:
    """(The module that defines a name, the statement there); None if it is not found."""
    module_name, _, name = target.rpartition(".")
    module = _module(module_name) or _other_module(module_name)
    node = module.definitions.get(name) if module else None
    return (module, node) if module and node else None


class _Module(Mapping[str, Any]):
    """The names of a module, as annotations need them: each is evaluated when it is asked for."""

    def __init__(self, name: str, path: Path):
        self.name = name
        self._path = path

    @cached_property
    def definitions(self) -> dict[str, ast.AST]:
        """Name -> the statement that defines it: a class, a function, an assignment or an import."""
        found: dict[str, ast.AST] = {}
        tree = ast.parse(self._path.read_text(encoding="utf-8"))
        for imported in ast.walk(tree):  # also below `if TYPE_CHECKING:`
            if isinstance(imported, ast.ImportFrom):
                found.update({alias.asname or alias.name: imported for alias in imported.names})
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node.value
        return found

    def __getitem__(self, name: str) -> Any:
        node = self.definitions.get(name)
        if node is None:
            raise KeyError(name)  # a builtin
        if isinstance(node, ast.ClassDef):
            return Part
        if isinstance(node, ast.ImportFrom):
            return _imported(node, name)
        return self.evaluated(node)

    def full_name(self, name: str) -> str | None:
        """The full name of what this module calls `name`; None if it neither defines nor imports it so."""
        node = self.definitions.get(name)
        if isinstance(node, ast.ImportFrom):
            alias = next(alias for alias in node.names if name in (alias.asname, alias.name))
            return f"{node.module}.{alias.name}" if node.module and not node.level else None
        return f"{self.name}.{name}" if node else None

    def evaluated(self, expression: ast.AST | None) -> Any:
        """An annotation or the value of an assignment. `Any` if it cannot be evaluated without an import."""
        if expression is None:
            return Any
        text = expression.value if isinstance(expression, ast.Constant) else ast.unparse(expression)
        if not isinstance(text, str):
            return text
        try:
            return eval(text, {}, self)  # from the source of muwa itself
        except (NameError, AttributeError, TypeError, KeyError):
            return Any

    def __iter__(self) -> Iterator[str]:
        return iter(self.definitions)

    def __len__(self) -> int:
        return len(self.definitions)


class _OtherModule(_Module):
    """A module outside muwa. Nothing in it is evaluated: only the names of settings are read."""

    @cached_property
    def definitions(self) -> dict[str, ast.AST]:
        """As in a module of muwa; none if the file cannot be read, which its import will say."""
        try:
            return super().definitions
        except (SyntaxError, ValueError, OSError):
            return {}

    def evaluated(self, expression: ast.AST | None) -> Any:
        """`Any`."""
        return Any

    def is_plain(self, node: ast.AST | None) -> bool:
        """Whether a class or function takes what its source says, as far as it stands in this module."""
        if isinstance(node, ast.FunctionDef):
            return is_plain_function(node)
        if not isinstance(node, ast.ClassDef):
            return False
        bases = [self.definitions.get(ast.unparse(base).partition("[")[0]) for base in node.bases]
        own = [base for base in bases if isinstance(base, ast.ClassDef)]
        mixed = node.decorator_list and any(_has_init(base) for base in own)
        return is_plain_class(node) and not mixed and all(map(self.is_plain, own))


def _has_init(node: ast.ClassDef) -> bool:
    return any(isinstance(item, ast.FunctionDef) and item.name == "__init__" for item in node.body)


@cache
def _other_module(name: str) -> _OtherModule | None:
    """A module outside muwa; None if its source is not found."""
    path = None if name.partition(".")[0] == _FOLDER.name else source_file(name)
    return _OtherModule(name, path) if path else None


@cache
def _module(name: str) -> _Module | None:
    """A module of muwa by its name; None if there is no such file."""
    package, *parts = name.split(".")
    path = _FOLDER.joinpath(*parts).with_suffix(".py")
    return _Module(name, path) if package == _FOLDER.name and parts and path.is_file() else None


def _imported(node: ast.ImportFrom, name: str) -> Any:
    """What `from module import name` gives: the object if the module is light, else as its source says."""
    assert node.module
    if node.module in _LIGHT:
        alias = next(alias for alias in node.names if name in (alias.asname, alias.name))
        return getattr(importlib.import_module(node.module), alias.name)
    module = _module(node.module)
    return module[name] if module and name in module else Part


def _fields(module: _Module, node: ast.ClassDef) -> dict[str, Parameter] | None:
    """The settings of a class: the fields of a dataclass and of its bases, or what `__init__` takes.

    None if a base class is defined outside muwa.
    """
    own = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    if "__init__" in own:
        return {one.name: one for one in _arguments(module, own["__init__"].args, method=True)}
    found: dict[str, Parameter] = {}
    for base in reversed(node.bases):
        inherited = _fields_of_base(module, base)
        if inherited is None:
            return None
        found |= inherited
    if any(ast.unparse(decorator).startswith("dataclass") for decorator in node.decorator_list):
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            if "ClassVar" not in ast.unparse(item.annotation):
                found[item.target.id] = _parameter(module, item.target.id, item.annotation, item.value)
    return found


def _fields_of_base(module: _Module, base: ast.expr) -> dict[str, Parameter] | None:
    """The fields of a base class; None if it is defined outside muwa, except for the bases of typing."""
    name = ast.unparse(base).partition("[")[0]
    if name in ("Protocol", "ABC", "Generic"):
        return {}
    node = module.definitions.get(name)
    if isinstance(node, ast.ClassDef):
        return _fields(module, node)
    other = _module(node.module) if isinstance(node, ast.ImportFrom) and node.module else None
    found = other.definitions.get(name) if other else None
    return _fields(other, found) if other and isinstance(found, ast.ClassDef) else None


def _arguments(module: _Module, args: ast.arguments, *, method: bool = False) -> Iterator[Parameter]:
    """The parameters of a function; without `self`, if it is a method."""
    listed = [*args.posonlyargs, *args.args][method:]
    defaults = [*[None] * (len(listed) - len(args.defaults)), *args.defaults]
    pairs = [*zip(listed, defaults, strict=True), *zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    for arg, default in pairs:
        yield _parameter(module, arg.arg, arg.annotation, default)
    if args.kwarg:
        annotation = module.evaluated(args.kwarg.annotation)
        record = next((x for x in get_args(annotation)[1:] if isinstance(x, FieldsOf)), None)
        fields = source_signature(record.target) if record else None
        if fields is None:
            yield Parameter(args.kwarg.arg, Parameter.VAR_KEYWORD)
        else:
            yield from fields.signature.parameters.values()


def _parameter(module: _Module, name: str, annotation: ast.AST | None, default: ast.AST | None) -> Parameter:
    """A parameter. A config gives all settings by name."""
    return Parameter(
        name,
        Parameter.KEYWORD_ONLY,
        default=Parameter.empty if default is None else ast.unparse(default),
        annotation=module.evaluated(annotation),
    )
