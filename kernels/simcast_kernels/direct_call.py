"""Custom operators that are called without PyTorch's dispatcher where nothing observes the call.

A call through ``torch.library.custom_op`` takes longer on the host than validation and launch of a kernel together. In
an eager training step nothing uses what it adds, so :class:`Operator` calls the implementation itself, within a
``torch.autograd.Function`` where gradients are recorded. The call goes through the dispatcher in compiled and exported
code, for tensor subclasses and tensors without data (fake, meta), and while a dispatch mode, a function mode, a
function transform, tracing or the profiler is active.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)
try:
    _OBSERVERS: tuple[Callable[[], Any], ...] = (
        torch._C._len_torch_dispatch_stack,
        torch._C._len_torch_function_stack,
        torch._C._autograd._profiler_enabled,  # pyright: ignore[reportAttributeAccessIssue]
        torch._C._get_tracing_state,
    )
    _TRANSFORM_LEVEL = torch._C._functorch.maybe_current_level  # pyright: ignore[reportAttributeAccessIssue]
    _CAN_DETECT = True
except AttributeError:  # a version of PyTorch with other names: every call goes through the dispatcher
    _CAN_DETECT = False


def custom_operator(name: str, *, mutates_args: Sequence[str] = ()) -> Callable[[Callable[..., Any]], "Operator"]:
    """Return a decorator that makes an :class:`Operator` named ``name`` of the function that computes it."""
    return lambda function: Operator(name, function, mutates_args=mutates_args)


def is_observed() -> bool:
    """Return whether a mode, a transform, tracing or the profiler has to see the calls of operators."""
    return not _CAN_DETECT or any(observer() for observer in _OBSERVERS) or _TRANSFORM_LEVEL() is not None


class Operator:
    """An operator of ``torch.library``; the module describes how it is called.

    Arguments are passed by position. An argument is a tensor or None, a list of tensors (annotated
    ``Sequence[Tensor]``), or a value without tensors.
    """

    def __init__(self, name: str, function: Callable[..., Any], *, mutates_args: Sequence[str]):
        """Register ``function``, which computes the operator on every device."""
        self._definition = torch.library.custom_op(name, mutates_args=mutates_args)(function)
        self._function, self._name = function, name
        annotations = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
        self._lists = tuple(i for i, annotation in enumerate(annotations) if annotation == Sequence[Tensor])
        self._recorded: Any = None
        self.register_fake = self._definition.register_fake

    def __call__(self, *arguments: Any) -> Any:
        """Compute the operator."""
        if torch.compiler.is_compiling() or is_observed() or not self._has_plain_tensors(arguments):
            return self._definition(*arguments)
        if not torch.is_grad_enabled():
            return self._function(*arguments)
        if self._recorded is None:  # differentiating the result raises an error
            return self._definition(*arguments)
        if not self._lists:
            return self._recorded.apply(*arguments)
        flat, lengths = self._flattened(arguments)
        output = self._recorded.apply(lengths, *flat)
        return list(output)

    def register_autograd(self, gradients: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Register the backward pass by the functions that ``torch.library.register_autograd`` takes.

        With lists of tensors the result must be a list too, and ``ctx.needs_input_grad`` is not that of the arguments.
        """
        self._definition.register_autograd(gradients, setup_context=setup_context)
        function = self._function

        def forward(ctx: Any, *arguments: Any) -> Any:
            output = function(*arguments)
            setup_context(ctx, arguments, output)
            return output

        def forward_of_lists(ctx: Any, lengths: Sequence[int], *flat: Any) -> Any:
            arguments = self._nested(flat, lengths)
            output = function(*arguments)
            setup_context(ctx, arguments, output)
            return tuple(output)

        def backward_of_lists(ctx: Any, *grads: Tensor | None) -> Any:
            return None, *self._flattened(gradients(ctx, list(grads)))[0]

        body: dict[str, Any] = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
        if self._lists:
            body = {"forward": staticmethod(forward_of_lists), "backward": staticmethod(backward_of_lists)}
        self._recorded = type(self._name.rpartition("::")[2], (torch.autograd.Function,), body)

    def _has_plain_tensors(self, arguments: Sequence[Any]) -> bool:
        for i, argument in enumerate(arguments):
            for value in argument if i in self._lists else (argument,):
                if isinstance(value, Tensor) and (type(value) not in _PLAIN or value.is_meta):
                    return False
        return True

    def _flattened(self, arguments: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """Return the arguments with the elements of lists in place of the lists, and the lengths of the lists."""
        flat, lengths = [], []
        for i, argument in enumerate(arguments):
            if i in self._lists:
                flat += argument
                lengths.append(len(argument))
            else:
                flat.append(argument)
        return flat, lengths

    def _nested(self, flat: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
        """Return the arguments that :meth:`_flattened` flattened."""
        arguments, rest, sizes = [], iter(flat), iter(lengths)
        for i in range(len(flat) - sum(lengths) + len(lengths)):
            arguments.append([next(rest) for _ in range(next(sizes))] if i in self._lists else next(rest))
        return arguments
