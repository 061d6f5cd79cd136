"""Plain YAML values to dataclasses, refusing what does not fit: unknown key, wrong type.

Stands in for ``hydra.utils.instantiate``, which calls whatever ``_target_`` names and knows no
types; here a target is a dataclass of bitsweep or of a package that the user listed.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from bitsweep.compose import choices, nearest
from bitsweep.errors import UserError

T = TypeVar("T")
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "path"}


def target(where: str, value: Any, plugins: Sequence[str] = ()) -> Any:
    """The object that a mapping with ``_target_: package.module.Class`` describes.

    Raises:
        UserError: no ``_target_``, one outside bitsweep and ``plugins``, or one that is not there.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        raise UserError(f"{where}: needs _target_: package.module.Class")
    path = value["_target_"]
    package = path.partition(".")[0]
    if package not in ("bitsweep", *plugins):
        raise UserError(
            f"{where}._target_={path}: only bitsweep's classes are taken; "
            f"if you trust this package, add plugins=[{package}]"
        )
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}._target_={path}: can not be imported ({error})") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{where}._target_={path}: is not a dataclass")
    return build(cls, where, {key: item for key, item in value.items() if key != "_target_"})


def build(cls: type[T], where: str, value: Mapping[str, Any]) -> T:
    """A ``cls`` (a dataclass) from plain values; ``where`` is the key they stand under.

    Raises:
        UserError: an unknown or missing key, or a value of another type than the field's.
    """
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            known = list(fields)
            raise UserError(
                f"{where}.{key}={show(value[key])}: no such key"
                f"{nearest(str(key), known) or choices(known)}"
            )
    hints = _hints(cls)
    for name, item in fields.items():
        bare = item.default is dataclasses.MISSING
        if name not in value and bare and item.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}.{name}: must be given")
    values = {key: fit(f"{where}.{key}", item, hints[key]) for key, item in value.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def fit(where: str, value: Any, hint: Any) -> Any:
    """``value`` as the type ``hint`` wants it: lists become tuples, whole numbers floats.

    Raises:
        UserError: it is of another type; says which are taken.
    """
    try:
        return _fit(where, value, hint)
    except TypeError:
        pass
    guess = nearest(value, map(str, get_args(hint))) if isinstance(value, str) else ""
    if (get_origin(hint) or hint) in (tuple, list) and isinstance(value, str):
        guess = f"; write {where}=[{value}]"
    raise UserError(f"{where}={show(value)}: takes {describe(hint)}{guess}")


def _fit(where: str, value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, (str, TypeVar)):
        return value
    if origin in (Union, types.UnionType):
        return _fit_any(where, value, args)
    if origin is Literal:
        return _require(value, value in args and type(value) in {type(arg) for arg in args})
    if origin in (tuple, list) or hint in (tuple, list):
        _require(value, isinstance(value, (list, tuple)))
        items = [fit(f"{where}[{i}]", item, (*args, Any)[0]) for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _require(value, isinstance(value, Mapping))
        return {key: fit(f"{where}.{key}", item, args[-1]) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, where, _require(value, isinstance(value, Mapping)))
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(_require(value, number))
    if hint is int:
        return _require(value, isinstance(value, int) and not isinstance(value, bool))
    if hint is Path:
        return Path(_require(value, isinstance(value, str)))
    if hint in (bool, str, type(None)):
        return _require(value, isinstance(value, hint))
    return value


def _fit_any(where: str, value: Any, args: tuple[Any, ...]) -> Any:
    for arg in args:
        try:
            return _fit(where, value, arg)
        except TypeError:
            continue
    raise TypeError


def _require(value: Any, right: bool) -> Any:
    if not right:
        raise TypeError
    return value


def _hints(cls: type) -> dict[str, Any]:
    """Types of the fields; Any for those that only a type checker can import."""
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {item.name: Any for item in dataclasses.fields(cls)}


def describe(hint: Any) -> str:
    """A type in the user's words: ``a whole number or null``, ``one of none, mse``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else describe(arg) for arg in args)
    if origin is Literal:
        return f"one of {', '.join(map(show, args))}"
    if origin in (tuple, list):
        return "a list"
    if (isinstance(origin, type) and issubclass(origin, Mapping)) or dataclasses.is_dataclass(hint):
        return "a mapping"
    return NAMES.get(hint, str(hint))


def show(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
