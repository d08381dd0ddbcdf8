"""How a Python function becomes a torch.library operator, opaque to torch.compile, without an argument that is known by
its position.

Such a function takes tensors and one settings object, all by keyword, and returns a named tuple of tensors. The
operator's schema is made of its annotations: the tensors, and as keyword-only arguments the leaves of the settings (a
dataclass of numbers, names, and dataclasses of those). A field more in the settings is an argument more in the schema,
and nothing else has to know.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Generic, ParamSpec, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Outputs = TypeVar("Outputs", bound=tuple[Tensor, ...])
SCHEMA: dict[type, str] = {Tensor: "Tensor", float: "float", int: "SymInt", bool: "bool", str: "str"}


def schema_type(annotation: Any) -> str:
    """ "float?" for `float | None`."""
    kinds = get_args(annotation) or (annotation,)
    (kind,) = (k for k in kinds if k is not NoneType)
    return SCHEMA[kind] + "?" * (NoneType in kinds)


def leaves(kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, schema type) of every number and name in a settings class."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        inside = (*path, field.name)
        if is_dataclass(hints[field.name]):
            yield from leaves(hints[field.name], inside)
        else:
            yield inside, schema_type(hints[field.name])


def build(kind: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """The settings object from the operator's keyword arguments."""
    hints = get_type_hints(kind)
    return kind(
        **{
            field.name: build(hints[field.name], values, f"{prefix}{field.name}_")
            if is_dataclass(hints[field.name])
            else values[prefix + field.name]
            for field in fields(kind)
        }
    )


class Operator(Generic[Arguments, Outputs]):
    """`function` as the operator `name`, called as the function is; make one with `operator`."""

    def __init__(self, name: str, function: Callable[Arguments, Outputs]):
        self.function = function
        """what it does, without torch.library around it"""
        hints = get_type_hints(function)
        self.outputs: Any = hints["return"]
        self.settings: Any = hints["settings"]
        self.tensors = [parameter for parameter in inspect.signature(function).parameters if parameter != "settings"]
        self.paths: dict[str, tuple[str, ...]] = {}
        arguments = [f"{schema_type(hints[tensor])} {tensor}" for tensor in self.tensors] + ["*"]
        for path, kind in leaves(self.settings):
            self.paths["_".join(path)] = path
            arguments.append(f"{kind} {'_'.join(path)}")
        returns = ", ".join(["Tensor"] * len(self.outputs._fields))
        schema = f"({', '.join(arguments)}) -> ({returns})"

        def run(*tensors: Tensor | None, **values: Any) -> Any:
            return self._call(function, tensors, values)

        self.library_operator = torch.library.custom_op(name, run, mutates_args=(), schema=schema)

    def _call(self, function: Callable[..., Any], tensors: tuple[Tensor | None, ...], values: Mapping[str, Any]) -> Any:
        named = dict(zip(self.tensors, tensors, strict=True))
        outputs = tuple(function(**named, settings=build(self.settings, values)))
        return outputs if len(outputs) > 1 else outputs[0]

    def flat(self, arguments: Mapping[str, Any]) -> tuple[list[Tensor | None], dict[str, Any]]:
        """A call's arguments in the order and under the names of the schema."""
        values: dict[str, Any] = {}
        for name, path in self.paths.items():
            value = arguments["settings"]
            for step in path:
                value = getattr(value, step)
            values[name] = value
        return [arguments[tensor] for tensor in self.tensors], values

    def __call__(self, *args: Arguments.args, **arguments: Arguments.kwargs) -> Outputs:
        if args or set(arguments) != {*self.tensors, "settings"}:
            raise TypeError(f"{self.function.__name__} takes {', '.join(self.tensors)} and settings, all by keyword")
        tensors, values = self.flat(arguments)
        outputs = self.library_operator(*tensors, **values)
        return self.outputs(outputs) if isinstance(outputs, Tensor) else self.outputs(*outputs)

    def register_fake(self, function: Callable[..., Outputs]) -> None:
        """`function` takes the same arguments and makes empty outputs of the right shapes and dtypes."""

        def fake(*tensors: Tensor | None, **values: Any) -> Any:
            return self._call(function, tensors, values)

        self.library_operator.register_fake(fake)

    def register_autograd(
        self,
        backward: Callable[[Any, Any, dict[str, bool]], dict[str, Tensor | None]],
        save: Callable[..., None],
    ) -> None:
        """save(ctx, outputs, tensors..., settings) keeps what backward(ctx, upstream, needed) takes; upstream has the
        fields of the outputs, `needed` says for each tensor whether it wants a gradient, and the gradients come back
        under the names of the tensors. An upstream gradient is None where nothing depends on the output."""

        def setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
            ctx.set_materialize_grads(False)
            settings = build(self.settings, keyword_only_inputs)
            save(ctx, self.outputs(*output), **dict(zip(self.tensors, inputs, strict=True)), settings=settings)

        def flat_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
            needed = dict(zip(self.tensors, ctx.needs_input_grad, strict=True))
            gradients = backward(ctx, self.outputs(*upstream), needed)
            return tuple(gradients.get(tensor) for tensor in self.tensors)

        self.library_operator.register_autograd(flat_backward, setup_context=setup_context)


def operator(name: str) -> Callable[[Callable[Arguments, Outputs]], Operator[Arguments, Outputs]]:
    """Decorator: the function as torch.ops.<name>."""
    return lambda function: Operator(name, function)
