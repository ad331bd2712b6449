"""The text of a setting, parsed as Python and not run: calls of known names with literal arguments."""

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from msgspec.structs import replace

from app.errors import SettingsError
from app.photos.resample import FILTERS
from app.photos.transforms import IMAGENET_MEAN, IMAGENET_STD
from app.photos.validation import COMMON, Transform, placed

Expand = Callable[[Mapping[str, Any]], list[Transform]]  # a call that makes several transforms

# fastai 2.8.12 vision/core.py:24; the filters of Pillow
CONSTANTS: Final[Mapping[str, Any]] = {
    "imagenet_stats": (list(IMAGENET_MEAN), list(IMAGENET_STD)),
    "cifar_stats": ([0.491, 0.482, 0.447], [0.247, 0.243, 0.261]),
    "mnist_stats": ([0.131], [0.308]),
    **{name.upper(): number for number, name in enumerate(FILTERS)},
    "ANTIALIAS": 1,
}
ENUMERATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "PadMode": {name.title(): name for name in ("zeros", "border", "reflection")},
    "ResizeMethod": {
        **{name.title(): name for name in ("squish", "crop", "pad")},
        **{name.upper(): name for name in ("squish", "crop", "pad", "no")},
    },
}


class Text:
    """The text of one setting, and the meaning of its calls."""

    def __init__(
        self,
        setting: str,
        text: str,
        signatures: Mapping[str, str],
        expanded: Mapping[str, Expand] | None = None,
        shift: int = 0,
    ) -> None:
        """Parse it; `shift` columns of the first line were put before it. Raises SettingsError."""
        self.setting = setting
        self._signatures = signatures
        self._expanded = expanded or {}
        self._shift = shift
        try:
            self._tree = ast.parse(text.strip() or "[]", mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None) or text[: text.find("\0")].count("\n") + 1
            raise SettingsError(
                f"{setting}: line {line}: this is not Python ({error.args[0]}). Copy the text from your "
                "notebook."
            ) from error

    def value(self) -> Any:
        """Return the value of the whole text. Raises SettingsError."""
        return self._value(self._tree)

    def transforms(self) -> list[Transform]:
        """Return all transforms in it, in order. Raises SettingsError."""
        return self._transforms(self._tree)

    def _transforms(self, node: ast.expr) -> list[Transform]:
        """Return the transforms in an expression. Raises SettingsError."""
        match node:
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [transform for element in elements for transform in self._transforms(element)]
            case ast.Starred(value=inner):
                return self._transforms(inner)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._transforms(left) + self._transforms(right)
        return self._flat(self._value(node), node)

    def _flat(self, value: Any, node: ast.expr) -> list[Transform]:
        match value:
            case None:
                return []
            case Transform(name="Compose", arguments=arguments):
                return self._flat(arguments.get("transforms"), node)
            case Transform():
                return [value]
            case list() | tuple():
                return [transform for each in value for transform in self._flat(each, node)]
        self._refuse(node, f"{value!r} is not a transform.")

    def _place(self, node: ast.AST) -> str:
        line = getattr(node, "lineno", 1)
        column = getattr(node, "col_offset", 0) + 1 - (self._shift if line == 1 else 0)
        return f"{self.setting}: line {line}, column {max(column, 1)}: "

    def _refuse(self, node: ast.AST, problem: str) -> NoReturn:
        raise SettingsError(f"{self._place(node)}{problem}")

    def _value(self, node: ast.expr) -> Any:
        """Return the value of an expression. Raises SettingsError."""
        match node:
            case ast.Constant(value=value):
                return value
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                values = self._elements(elements)
                return values if isinstance(node, ast.List) else tuple(values)
            case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(
                value := self._value(operand), int | float
            ):
                return -value
            case ast.BinOp(op=ast.Add()):
                return self._transforms(node)
            case ast.Name() | ast.Attribute():
                return self._named(node)
            case ast.Call():
                return self._call(node)
        self._refuse(node, f"`{ast.unparse(node)[:80]}` is not a call or a literal.")

    def _elements(self, elements: Sequence[ast.expr]) -> list[Any]:
        values: list[Any] = []
        for element in elements:
            if isinstance(element, ast.Starred):
                inner = self._value(element.value)
                values += inner if isinstance(inner, list | tuple) else [inner]
            else:
                values.append(self._value(element))
        return values

    def _named(self, node: ast.Name | ast.Attribute) -> Any:
        """A constant, a member of an enumeration, or a class that stands for a call without arguments."""
        *owners, name = ast.unparse(node).split(".")
        if owners and name in ENUMERATIONS.get(owners[-1], {}):
            return ENUMERATIONS[owners[-1]][name]
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in self._expanded:
            self._refuse(node, f"{name} stands without parentheses: write {name}().")
        if name in self._signatures:
            return Transform(name, {}, self._place(node))
        self._unknown(node)

    def _call(self, node: ast.Call) -> Any:
        parts = ast.unparse(node.func).split(".")
        name = next((n for n in (".".join(parts[-2:]), parts[-1]) if n in self._signatures), None)
        if name is None:
            self._unknown(node.func)
        arguments = self._arguments(node, name)
        made = Transform(name.partition(".")[0], arguments, self._place(node))
        if name not in self._expanded:
            return made
        try:
            with placed(made):
                return [replace(each, place=made.place) for each in self._expanded[name](arguments)]
        except ValueError as error:
            raise SettingsError(f"{error}.") from error

    def _arguments(self, node: ast.Call, name: str) -> dict[str, Any]:
        parameters = self._signatures[name].split()
        values = self._elements(node.args)
        if len(values) > len(parameters):
            self._refuse(node, f"{name} has {len(values)} arguments; it takes {len(parameters)}.")
        arguments = dict(zip(parameters, values, strict=False))
        for keyword in node.keywords:
            if keyword.arg not in (*parameters, *COMMON) or keyword.arg in arguments:
                self._refuse(keyword, f"{name} has no argument `{keyword.arg}`, or has it twice.")
            arguments[str(keyword.arg)] = self._value(keyword.value)
        if not isinstance(arguments.get("order", 0), int):
            self._refuse(node, f"the order of {name} is {arguments['order']!r}; a whole number was expected.")
        return arguments

    def _unknown(self, node: ast.expr) -> NoReturn:
        known = ", ".join(sorted(self._signatures))
        self._refuse(
            node,
            f"`{ast.unparse(node)[:80]}` is not known. Leave it out if it changes nothing at validation; "
            f"known are {known}.",
        )
