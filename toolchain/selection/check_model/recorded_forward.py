"""One forward pass that is watched: which functions ran, on which line of the model's code, and where the output came from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from toolchain.selection.check_model import user_lines
from toolchain.selection.check_model.subject import preserve_state

PASSED_THROUGH = {
    "flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous", "permute", "transpose", "clone", "__getitem__", "float",
    "to",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a torch function."""

    function: str
    module: str  # the innermost module that ran it
    line: str  # of the model's code
    inputs: tuple[int, ...]  # identities of the tensors it read
    input_shapes: tuple[tuple[int, ...], ...]
    arguments: tuple[Any, ...]  # without tensors
    options: Mapping[str, Any]  # without tensors


@dataclass(frozen=True, kw_only=True)
class RecordedForward:
    """A forward pass of a model in evaluation mode."""

    output: Any
    calls: tuple[Call, ...]
    producers: Mapping[int, Call]  # by the identity of a tensor
    module_calls: Mapping[str, int]  # how often each module ran

    def output_producer(self) -> Call | None:
        """Return the call that computed the output, before it was only reshaped; None where it is not known."""
        call = self.producers.get(id(self.output))
        while call is not None and call.function in PASSED_THROUGH and call.inputs:
            call = self.producers.get(call.inputs[0])
        return call


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.producers: dict[int, Call] = {}
        self.kept: list[Tensor] = []  # so that no identity is used twice
        self.running: list[str] = []  # modules, the innermost last
        self.module_calls: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        name = getattr(func, "__name__", "")
        if name in {"__get__", "size", "dim"}:  # attributes of a tensor
            return result
        tensors = _list_tensors((*args, *options.values()))
        call = Call(
            function=name, module=self.running[-1] if self.running else "", line=user_lines.find_calling_line(), inputs=tuple(map(id, tensors)),
            input_shapes=tuple(tuple(tensor.shape) for tensor in tensors),
            arguments=tuple(value for value in args if not isinstance(value, Tensor)),
            options={key: value for key, value in options.items() if not isinstance(value, Tensor)},
        )  # fmt: skip
        self.calls.append(call)
        for tensor in _list_tensors((result,)):
            self.producers.setdefault(id(tensor), call) if name.endswith("_") else self.producers.update(
                {id(tensor): call}
            )
        self.kept += [*tensors, *_list_tensors((result,))]
        return result

    def watch(self, name: str, module: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
        """Count the runs of a module, and know when it is running; the caller removes the hooks."""

        def enter(_: nn.Module, __: Any) -> None:
            self.running.append(name)
            self.module_calls[name] = self.module_calls.get(name, 0) + 1

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            self.running.pop()

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)


def _list_tensors(values: Sequence[Any]) -> list[Tensor]:
    tensors = list[Tensor]()
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += _list_tensors(value)
    return tensors


def record(model: nn.Module, image: Tensor) -> RecordedForward:
    """Run the model once as it is, and watch it.

    Args:
        model: in the mode to watch; left as it was.
        image: float32 [batch, 3, height, width].

    Raises:
        Exception: whatever `forward` raises.
    """
    recorder = _Recorder()
    handles = [handle for name, module in model.named_modules() for handle in recorder.watch(name, module)]
    try:
        with torch.no_grad(), preserve_state(model), recorder:
            output = model(image.clone())
    finally:
        for handle in handles:
            handle.remove()
    return RecordedForward(
        output=output, calls=tuple(recorder.calls), producers=recorder.producers, module_calls=recorder.module_calls
    )
