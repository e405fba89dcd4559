"""How the base classifier is computed: its precision, and whether torch compiles it. Both are part of what f is.

Reduced precision is torch's autocast: parameters and noisy inputs stay float32, and convolutions and products see both
cast once. A compiled network is a copy of the model, frozen as it then was and checked against it; weights that change
afterwards make another one.
"""

from __future__ import annotations

import copy
import shutil
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from art_rs_plugin.core import checks
from art_rs_plugin.votes import Forward

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# Operations that n votes must take before "auto" compiles: a few seconds of them, as compiling takes a few. The figure
# for GPUs is a guess from their peak rates.
_WORTH_COMPILING = {"cpu": 5e12, "cuda": 5e13}
# How far compiled logits may be from the model's own, as a share of the largest: several times what was seen.
_TOLERANCE = {"fp32": 1e-3, "tf32": 5e-2, "fp16": 5e-2, "bf16": 1e-1}


class Arithmetic:
    """The arithmetic of one estimator's f.

    :param precision: A name in `PRECISIONS`. "fp32" is what torch makes of float32, whatever autocast surrounds it.
    :param compile: True, False, or "auto": where a compiler is at hand and the votes of one input are work enough.
    :raises ValueError: Another value, or a precision that the device does not have.
    """

    def __init__(self, precision: str, compile: bool | str, device: torch.device) -> None:
        self.precision = checks.one_of("precision", precision, PRECISIONS)
        if compile != "auto" and not isinstance(compile, bool):  # 1 is True to `in`, but not to `is`
            raise ValueError(f"`compile` must be one of 'auto', True, False, got {compile!r}")
        self.compile = compile
        self._device = device
        self._operations: int | None = None  # of one vote; counting them costs a small network's run seconds,
        self._most: int | None = None  # and this is more, unless a weight is met more often than there are coordinates
        self._failed = False  # whether "auto" has found that there is nothing to compile, or to compile with
        self.program: Program | None = None
        if device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(False):
            name = torch.cuda.get_device_name(device)
            raise ValueError(f'`precision` must be one that the GPU has, got "bf16" on {name}; use "fp16" or "fp32"')

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arithmetic) and self._options == other._options

    __hash__ = None  # type: ignore[assignment]

    @property
    def _options(self) -> tuple[str, bool | str, torch.device]:
        return self.precision, self.compile, self._device

    def as_is(self) -> torch.autocast:
        """A context that casts nothing, whatever surrounds it: for what is computed from logits, and for gradients."""
        return torch.autocast(self._device.type, enabled=False)

    def apply(self, model: Forward, x: torch.Tensor) -> torch.Tensor:
        """`model(x)` in this precision, without the compiler, differentiable: logits in float32."""
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
            logits = model(x)
        # what is no tensor is somebody else's to refuse
        return logits.float() if isinstance(logits, torch.Tensor) and logits.dtype == dtype else logits

    def prepare(self, model: torch.nn.Module, make_example: Callable[[], torch.Tensor], votes: int) -> None:
        """Make `program` what `model` is to be computed by: compiled for batches like the example, or None.

        "auto" judges by the `votes` of an input. Costs a look at all weights where a program is there.

        :raises RuntimeError: `compile=True`, and the model cannot be compiled, or its compiled form differs from it.
        """
        if not self._compiles(model, make_example, votes):
            self.program = None
        elif self.program is None or not self.program.fits(model):
            self.program = None  # nothing of a former f is left, should this one fail
            try:
                self.program = Program(model, self, make_example())
            except Exception as error:
                said = str(error).strip().partition("\n")[0]  # torch says much more, which the cause holds
                problem = f"the model cannot be compiled: {type(error).__name__}: {said}"
                if self.compile is True:
                    raise RuntimeError(f"{problem}; pass compile=False") from error
                warnings.warn(f"{problem}; it runs eagerly, as with compile=False", stacklevel=2)
                self._failed = True

    @property
    def tf32(self) -> bool:
        """Whether a GPU computes float32 in TF32, by torch's own settings."""
        return self._device.type == "cuda" and torch.backends.cudnn.allow_tf32

    def _compiles(self, model: torch.nn.Module, make_example: Callable[[], torch.Tensor], votes: int) -> bool:
        """Whether to compile: as told, or where so many votes are worth it and there is something to compile with."""
        if isinstance(self.compile, bool) or self._failed:
            return self.compile is True
        worth = _WORTH_COMPILING.get(self._device.type, float("inf"))
        if self._most is None:
            weights = sum(parameter.numel() for parameter in model.parameters())
            self._most = 2 * weights * make_example()[0].numel()
        if self._most * votes < worth:
            return False
        if self._operations is None:
            self._operations = _operations(partial(self.apply, model), make_example()[:2]) // 2
        if self._operations * votes < worth:
            return False
        if self._device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            self._failed = True
            problem = "torch finds no C++ compiler (g++, clang++)"
            warnings.warn(f"{problem}: the model runs eagerly, as with compile=False", stacklevel=2)
        return not self._failed


def replicas(model: torch.nn.Module, count: int) -> Sequence[torch.nn.Module]:
    """`count` modules that share the model's weights and nothing else, so that they may run side by side.

    A forward pass may keep things on its modules: two at once on the same ones would see each other's. One alone is the
    model itself, and so it is, with a warning, where the model cannot be copied.
    """
    if count == 1:
        return [model]
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        return [copy.deepcopy(model, dict(shared)) for _ in range(count)]
    except Exception as error:
        warnings.warn(
            f"the model cannot be copied ({type(error).__name__}: {error}), so that one worker casts all votes",
            stacklevel=2,
        )
        return [model]


class Program:
    """A frozen copy of a model, compiled for one shape of batch; on a CPU it may run in several threads at once.

    It sees when weights, buffers, modules or torch's settings change, but not a plain attribute that a forward pass
    reads: after such a change `set_params(model=model)` makes it anew.

    :ivar stale: Whether torch has let go of what it compiled, so that the next use makes it anew.
    """

    def __init__(self, model: torch.nn.Module, arithmetic: Arithmetic, example: torch.Tensor) -> None:
        self._structure = repr(model)
        self._settings = _settings(example.device)
        self._copy = copied = copy.deepcopy(model).requires_grad_(False)
        self.stale = self._built = False

        def run(x: torch.Tensor) -> torch.Tensor:
            return arithmetic.apply(copied, x)

        # a code object of its own: torch counts recompilations per code object, and stops at eight
        run.__code__ = run.__code__.replace()
        # fullgraph: what cannot be compiled as a whole is an error, never run eagerly unsaid
        self._run = torch.compile(run, fullgraph=True, dynamic=False, backend=self._once)
        compiled, eager = _alone(lambda: (self._compile(example), run(example)), example.device)
        difference = float((compiled - eager).abs().max() / eager.abs().max().clamp_min(1e-30))
        kind = "tf32" if arithmetic.tf32 and arithmetic.precision == "fp32" else arithmetic.precision
        if eager.isfinite().all() and not difference <= _TOLERANCE[kind]:
            raise RuntimeError(f"its compiled logits differ from its own by {difference:.2g} of the largest")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (rows, nb_classes) of a batch like the example."""
        if x.device.type == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # what it was compiled for; another number would compile it anew
        logits: torch.Tensor = self._run(x)
        return logits

    def fits(self, model: torch.nn.Module) -> bool:
        """Whether `model` is what this was compiled from, by its modules and all of its weights, and torch as set."""
        device = next((parameter.device for parameter in self._copy.parameters()), torch.device("cpu"))
        return (
            not self.stale
            and _settings(device) == self._settings
            and repr(model) == self._structure
            and _same_weights(model, self._copy)
        )

    def _once(self, graph: Any, inputs: Any) -> Any:
        """Torch's compiler, which must not be needed again: what it then made would be neither frozen nor checked."""
        from torch._dynamo import lookup_backend  # not at the top: a second at every start

        if self._built:
            self.stale = True
            raise RuntimeError("the model must be one graph for every batch of a shape, and would be compiled anew")
        self._built = True
        return lookup_backend("inductor")(graph, inputs)

    def _compile(self, example: torch.Tensor) -> torch.Tensor:
        from torch._dynamo import config as tracing
        from torch._inductor import config

        # frozen weights are what lets convolutions be folded with normalisation and packed; read while tracing
        options = {"freezing": True} | ({"triton.cudagraphs": True} if example.device.type == "cuda" else {})
        # a number that differs from the last program's is a constant of this one: torch 2.6 fails to make it an input
        with config.patch(options), tracing.patch(specialize_float=True):
            logits = self(example)
            for _ in range(2 if example.device.type == "cuda" else 0):
                logits = self(example)  # a CUDA graph is recorded by the second call and replayed from the third on
            return logits.clone()


def _operations(function: Forward, x: torch.Tensor) -> int:
    """Floating-point operations of `function(x)`, as far as torch counts them; 0 where it cannot."""
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            function(x)
    except Exception:  # a model that fails will say so when it votes
        return 0
    return int(counter.get_total_flops())


def _alone(function: Callable[[], Any], device: torch.device) -> Any:
    """What `function` returns, computed as workers compute: without a graph, on a CPU in a thread of one thread."""
    result: list[Any] = []
    error: list[BaseException] = []

    def run() -> None:
        threads = torch.get_num_threads()
        try:
            if device.type == "cpu":
                torch.set_num_threads(1)
            with torch.inference_mode():
                result.append(function())
        except BaseException as raised:
            error.append(raised)
        finally:
            torch.set_num_threads(threads)

    if device.type == "cpu":
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    if error:
        raise error[0]
    return result[0]


def _settings(device: torch.device) -> tuple[Any, ...]:
    """What of torch's global state a compiled program depends on: under another it would be compiled anew."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_default_dtype(),
        None if device.type == "cpu" else torch.get_num_threads(),
    )


def _same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two modules hold the same tensors by name, place, shape and value; a NaN is no value."""

    def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}

    mine, theirs = tensors(one), tensors(other)
    if mine.keys() != theirs.keys():
        return False
    pairs = [(value, theirs[name]) for name, value in mine.items()]
    if any(a.shape != b.shape or a.dtype != b.dtype or a.device != b.device for a, b in pairs):
        return False
    # one answer from the device, not one for each tensor
    return not pairs or not bool(torch.stack([(a != b).any() for a, b in pairs]).any())
