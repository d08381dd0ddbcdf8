"""How a Python function becomes a torch.library operator, opaque to torch.compile, without an argument that is known by
its position.

Such a function takes tensors and one settings object, all by keyword, and returns a named tuple of tensors. The
operator's schema is made of its annotations: the tensors, and as keyword-only arguments the leaves of the settings (a
dataclass of numbers, names, and dataclasses of those). A field more in the settings is an argument more in the schema,
and nothing else has to know.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
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


class Settings:
    """A settings class as an operator's keyword-only arguments: those of a part carry its name in front."""

    def __init__(self, kind: type, prefix: str = ""):
        self.kind = kind
        self.schema: dict[str, str] = {}
        """argument -> type"""
        self.paths: dict[str, tuple[str, ...]] = {}
        """argument -> the attributes that lead to it"""
        self.parts: dict[str, Settings | str] = {}
        """field -> its own settings, or its argument"""
        hints = get_type_hints(kind)
        for field in fields(kind):
            name = prefix + field.name
            if is_dataclass(hints[field.name]):
                inner = self.parts[field.name] = Settings(hints[field.name], name + "_")
                self.schema |= inner.schema
                self.paths |= {argument: (field.name, *path) for argument, path in inner.paths.items()}
            else:
                self.parts[field.name] = name
                self.schema[name], self.paths[name] = schema_type(hints[field.name]), (field.name,)

    def flat(self, settings: object) -> dict[str, Any]:
        """argument -> value."""
        values: dict[str, Any] = {}
        for argument, path in self.paths.items():
            value = settings
            for attribute in path:
                value = getattr(value, attribute)
            values[argument] = value
        return values

    def build(self, values: Mapping[str, Any]) -> Any:
        """The object from its arguments."""
        return self.kind(
            **{
                field: values[source] if isinstance(source, str) else source.build(values)
                for field, source in self.parts.items()
            }
        )


class Operator(Generic[Arguments, Outputs]):
    """`function` as the operator `name`, called as the function is; make one with `operator`."""

    def __init__(self, name: str, function: Callable[Arguments, Outputs]):
        self.function = function
        """what it does, without torch.library around it"""
        hints = get_type_hints(function)
        self.outputs: Any = hints["return"]
        self.settings = Settings(hints["settings"])
        self.tensors = [parameter for parameter in inspect.signature(function).parameters if parameter != "settings"]
        arguments = [f"{schema_type(hints[tensor])} {tensor}" for tensor in self.tensors]
        arguments += ["*", *(f"{kind} {name}" for name, kind in self.settings.schema.items())]
        returns = ", ".join(["Tensor"] * len(self.outputs._fields))
        schema = f"({', '.join(arguments)}) -> ({returns})"

        def apply(*tensors: Tensor | None, **values: Any) -> Any:
            return self._call(function, tensors, values)

        self.library_operator: Any = torch.library.custom_op(name, apply, mutates_args=(), schema=schema)
        self.save: Callable[..., None] | None = None
        self.backward: Callable[[Any, Any, dict[str, bool]], dict[str, Tensor | None]] | None = None

    def _call(self, function: Callable[..., Any], tensors: tuple[Tensor | None, ...], values: Mapping[str, Any]) -> Any:
        named = dict(zip(self.tensors, tensors, strict=True))
        outputs: tuple[Tensor, ...] = tuple(function(**named, settings=self.settings.build(values)))
        return outputs[0] if len(outputs) == 1 else outputs

    def flat(self, arguments: Mapping[str, Any]) -> tuple[list[Tensor | None], dict[str, Any]]:
        """A call's arguments in the order and under the names of the schema."""
        return [arguments[tensor] for tensor in self.tensors], self.settings.flat(arguments["settings"])

    def __call__(self, *args: Arguments.args, **arguments: Arguments.kwargs) -> Outputs:
        if args or set(arguments) != {*self.tensors, "settings"}:
            raise TypeError(f"{self.function.__name__} takes {', '.join(self.tensors)} and settings, all by keyword")
        tensors, values = self.flat(arguments)
        if self.backward is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            apply: Any = Recorded.apply  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            return self.outputs(*apply(self, arguments["settings"], values, *tensors))
        return self.outputs(*self.run(tensors, values))

    def run(self, tensors: Sequence[Tensor | None], values: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The library's operator; of a single output torch makes no tuple."""
        outputs: Any = self.library_operator(*tensors, **values)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    def register_fake(self, function: Callable[..., Outputs]) -> None:
        """`function` takes the same arguments and makes empty outputs of the right shapes and dtypes: contiguous ones
        however the inputs lie in memory, as the operator's are."""

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

        self.save, self.backward = save, backward

        def setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
            self.keep(ctx, inputs, output, self.settings.build(keyword_only_inputs))

        def flat_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
            return self.gradients(ctx, ctx.needs_input_grad, upstream)

        self.library_operator.register_autograd(flat_backward, setup_context=setup_context)

    def keep(self, ctx: Any, tensors: Sequence[Tensor | None], outputs: Sequence[Tensor], settings: object) -> None:
        """What the backward takes."""
        assert self.save is not None
        ctx.set_materialize_grads(False)
        self.save(ctx, self.outputs(*outputs), **dict(zip(self.tensors, tensors, strict=True)), settings=settings)

    def gradients(
        self, ctx: Any, needed: Sequence[bool], upstream: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        """Of each tensor."""
        assert self.backward is not None
        if torch.is_grad_enabled():  # a backward that is itself to be differentiated
            raise ValueError(
                f"{self.function.__name__} has no second derivatives: leave out create_graph=True, or use "
                "impl='reference', which has them"
            )
        by_tensor = self.backward(ctx, self.outputs(*upstream), dict(zip(self.tensors, needed, strict=True)))
        return tuple(by_tensor.get(tensor) for tensor in self.tensors)


class Recorded(torch.autograd.Function):
    """The same derivative outside graphs of torch.compile. What torch.library makes of it looks up every argument's
    default in a list of all arguments that it makes anew each time: at forty arguments, milliseconds of Python in every
    forward (bench/NOTES.md)."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, operator: Operator[..., Any], settings: object, values: Mapping[str, Any], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        outputs = operator.run(tensors, values)
        operator.keep(ctx, tensors, outputs, settings)
        ctx.operator = operator
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, None, *ctx.operator.gradients(ctx, ctx.needs_input_grad[3:], upstream)


def operator(name: str) -> Callable[[Callable[Arguments, Outputs]], Operator[Arguments, Outputs]]:
    """Decorator: the function as torch.ops.<name>."""
    return lambda function: Operator(name, function)
