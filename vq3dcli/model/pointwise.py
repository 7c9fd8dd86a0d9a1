"""GELU by tanh, and softmax, with gradients on a CPU, where PyTorch's own take as long as a matrix product.

    x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)    (Hendrycks and Gimpel, 2016)

The same functions, with an exponential of vectors that is good to the last bits of float32, and numbers of bfloat16
read and written as they are. Attention of one token to those before it, which reads each key and value once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from torch import Tensor

from vq3dcli.compiled import FAST, compiled_fast
from vq3dcli.rendering.fused import share
from vq3dcli.rendering.simd import LANES, blend, operation, pointer, splat, vector_at, vector_exp

_SLOPE, _CUBE = 2.0 * math.sqrt(2.0 / math.pi), 0.044715
_NUMBERS = ir.VectorType(ir.FloatType(), LANES)
_WORDS, _HALVES = (ir.VectorType(ir.IntType(bits), LANES) for bits in (32, 16))
_AT_ONCE = 1 << 16


def _constant(value: float, kind: Any = _NUMBERS) -> Any:
    return ir.Constant(kind, [value] * LANES)


def _numbers(builder: Any, context: Any, kind: Any, array: Any, index: Any) -> Any:
    """Sixteen numbers; those of int16 are the upper halves of float32, bfloat16."""
    data = pointer(context, builder, kind, array)
    if kind.dtype == types.float32:
        vector = builder.load(vector_at(builder, data, index, LANES))
        vector.align = 4
        return vector
    half = builder.load(builder.bitcast(builder.gep(data, [index]), _HALVES.as_pointer()))
    half.align = 2
    return builder.bitcast(builder.shl(builder.zext(half, _WORDS), _constant(16, _WORDS)), _NUMBERS)


def _keep(builder: Any, context: Any, kind: Any, array: Any, index: Any, vector: Any) -> None:
    data = pointer(context, builder, kind, array)
    if kind.dtype == types.float32:
        builder.store(vector, vector_at(builder, data, index, LANES)).align = 4
        return
    # To the nearest, away from zero where two are as near: even ones would take a fifth more of a GELU's time.
    word = builder.add(builder.bitcast(vector, _WORDS), _constant(0x8000, _WORDS))
    half = builder.trunc(builder.lshr(word, _constant(16, _WORDS)), _HALVES)
    builder.store(half, builder.bitcast(builder.gep(data, [index]), _HALVES.as_pointer())).align = 2


def _gate(builder: Any, x: Any) -> tuple[Any, Any]:
    """sigmoid(2 u) and x^2."""
    square = builder.fmul(x, x, flags=FAST)
    cubic = builder.fadd(_constant(_SLOPE), builder.fmul(square, _constant(_SLOPE * _CUBE), flags=FAST), flags=FAST)
    small = vector_exp(builder, builder.fneg(builder.fmul(x, cubic, flags=FAST)), LANES)
    return builder.fdiv(_constant(1.0), builder.fadd(_constant(1.0), small, flags=FAST), flags=FAST), square


@operation
def _gelu16(_: Any, x: Any, at: Any, out: Any, slope: Any) -> Any:
    signature = types.void(x, types.int64, out, slope)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        given = _numbers(builder, context, signature.args[0], args[0], args[1])
        gate, square = _gate(builder, given)
        steep = builder.fmul(square, _constant(3.0 * _SLOPE * _CUBE), flags=FAST)
        steep = builder.fmul(given, builder.fadd(_constant(_SLOPE), steep, flags=FAST), flags=FAST)
        rest = builder.fmul(steep, builder.fsub(_constant(1.0), gate, flags=FAST), flags=FAST)
        slope = builder.fmul(gate, builder.fadd(_constant(1.0), rest, flags=FAST), flags=FAST)
        _keep(builder, context, signature.args[2], args[2], args[1], builder.fmul(given, gate, flags=FAST))
        _keep(builder, context, signature.args[3], args[3], args[1], slope)
        return context.get_dummy_value()

    return signature, generate


@compiled_fast
def _gelu(x: Any, out: Any, slope: Any, row: int) -> None:
    for i in range(0, len(x), row):
        _gelu16(x, i, out, slope)


def _across(builder: Any, vector: Any, name: str) -> Any:
    """The sum ("fadd") or the largest ("fmax") of a vector's numbers, in all places."""
    first = [ir.Constant(ir.FloatType(), 0.0)] if name == "fadd" else []
    kind = ir.FunctionType(ir.FloatType(), [each.type for each in (*first, vector)])
    reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.{name}.v{LANES}f32")
    return splat(builder, builder.call(reduce, [*first, vector], fastmath=FAST), LANES)


def _vectors(builder: Any, count: Any) -> Any:
    return cgutils.for_range(builder, builder.udiv(count, ir.Constant(count.type, LANES)))


@operation
def _softmax_row(_: Any, x: Any, at: Any, count: Any, room: Any, out: Any) -> Any:
    signature = types.void(x, types.int64, types.int64, room, out)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        given, room, out = (signature.args[k] for k in (0, 3, 4))
        lanes = ir.Constant(args[1].type, LANES)
        most = cgutils.alloca_once_value(builder, _numbers(builder, context, given, args[0], args[1]))
        with _vectors(builder, args[2]) as loop:
            here = _numbers(builder, context, given, args[0], builder.add(args[1], builder.mul(loop.index, lanes)))
            before = builder.load(most)
            builder.store(builder.select(builder.fcmp_ordered(">", here, before), here, before), most)
        largest, total = (
            _across(builder, builder.load(most), "fmax"),
            cgutils.alloca_once_value(builder, _constant(0.0)),
        )
        with _vectors(builder, args[2]) as loop:
            place = builder.mul(loop.index, lanes)
            here = _numbers(builder, context, given, args[0], builder.add(args[1], place))
            below = builder.fsub(here, largest, flags=FAST)
            share = vector_exp(builder, below, LANES)
            share = builder.select(builder.fcmp_ordered("<", below, _constant(-80.0)), _constant(0.0), share)
            _keep(builder, context, room, args[3], place, share)
            builder.store(builder.fadd(builder.load(total), share, flags=FAST), total)
        scale = builder.fdiv(_constant(1.0), _across(builder, builder.load(total), "fadd"), flags=FAST)
        with _vectors(builder, args[2]) as loop:
            place = builder.mul(loop.index, lanes)
            share = builder.fmul(_numbers(builder, context, room, args[3], place), scale, flags=FAST)
            _keep(builder, context, out, args[4], builder.add(args[1], place), share)
        return context.get_dummy_value()

    return signature, generate


@operation
def _softmax_back_row(_: Any, share: Any, at: Any, count: Any, of_out: Any, of_x: Any) -> Any:
    signature = types.void(share, types.int64, types.int64, of_out, of_x)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = ir.Constant(args[1].type, LANES)
        total = cgutils.alloca_once_value(builder, _constant(0.0))

        def both(index: Any) -> tuple[Any, Any, Any]:
            place = builder.add(args[1], builder.mul(index, lanes))
            return place, *(_numbers(builder, context, signature.args[k], args[k], place) for k in (0, 3))

        with _vectors(builder, args[2]) as loop:
            _, share, back = both(loop.index)
            product = builder.fmul(share, back, flags=FAST)
            builder.store(builder.fadd(builder.load(total), product, flags=FAST), total)
        mean = _across(builder, builder.load(total), "fadd")
        with _vectors(builder, args[2]) as loop:
            place, share, back = both(loop.index)
            own = builder.fmul(share, builder.fsub(back, mean, flags=FAST), flags=FAST)
            _keep(builder, context, signature.args[4], args[4], place, own)
        return context.get_dummy_value()

    return signature, generate


@compiled_fast
def _softmax(x: Any, out: Any, row: int) -> None:
    room = np.empty(row, np.float32)
    for at in range(0, len(x), row):
        _softmax_row(x, at, row, room, out)


@compiled_fast
def _softmax_back(share: Any, of_out: Any, of_x: Any, row: int) -> None:
    for at in range(0, len(share), row):
        _softmax_back_row(share, at, row, of_out, of_x)


@operation
def _product(_: Any, x: Any, at: Any, y: Any, there: Any, count: Any) -> Any:
    signature = types.float32(x, types.int64, y, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = cgutils.alloca_once_value(builder, _constant(0.0))
        with _vectors(builder, args[4]) as loop:
            place = builder.mul(loop.index, ir.Constant(args[1].type, LANES))
            a, b = (
                _numbers(builder, context, signature.args[k], args[k], builder.add(args[k + 1], place)) for k in (0, 2)
            )
            product = builder.fmul(a, b, flags=FAST)
            builder.store(builder.fadd(builder.load(total), product, flags=FAST), total)
        zero = ir.Constant(ir.IntType(32), 0)
        return builder.extract_element(_across(builder, builder.load(total), "fadd"), zero)

    return signature, generate


@compiled_fast
def _attend(query: Any, keys: Any, values: Any, slots: int, channels: int, visible: int, out: Any) -> None:
    count = (visible + LANES - 1) // LANES * LANES
    scores, shares, room = np.full(count, -np.inf, np.float32), np.empty(count, np.float32), np.empty(count, np.float32)
    scale = np.float32(1.0 / math.sqrt(channels))
    out[:] = np.float32(0.0)
    for r in range(len(query) // channels):
        at, first = r * channels, r * slots * channels
        for j in range(visible):
            scores[j] = scale * _product(query, at, keys, first + j * channels, channels)
        _softmax_row(scores, 0, count, room, shares)
        last = first + (visible - 1) * channels
        for j in range(0, visible, 4):  # the last of them again, with no share, where there are no more
            here = first + j * channels
            b, d, e = (
                min(here + channels, last), min(here + 2 * channels, last), min(here + 3 * channels, last)
            )  # fmt: skip
            for c in range(0, channels, LANES):
                blend(values, here + c, b + c, d + c, e + c, shares[j], shares[j + 1], shares[j + 2], shares[j + 3],
                      out, at + c)  # fmt: skip


def attend_to_slots(query: Tensor, keys: Tensor, values: Tensor, visible: int) -> Tensor:
    """softmax(q k^T / sqrt(C)) v of the first `visible` slots of keys and values `[B, H, L, C]`, float32.

    C is a multiple of 16. The bits of a row of the query `[B, H, 1, C]` depend on that row alone.
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    given, there, seen = (each.reshape(-1).numpy() for each in (query, keys, values))
    _attend(given, there, seen, keys.shape[2], keys.shape[3], visible, out.view(-1).numpy())
    return out


def _of_all(kernel: Callable[..., None], *inputs: Tensor, row: int = LANES, results: int = 1) -> list[Tensor]:
    """What a kernel makes of tensors of one shape and type, some rows of numbers at a time: as many of that shape."""
    given = [each.contiguous() for each in inputs]
    excess = -given[0].numel() % row
    flat = [torch.nn.functional.pad(each.reshape(-1), (0, excess)) if excess else each.reshape(-1) for each in given]
    flat += [torch.empty_like(flat[0]) for _ in range(results)]
    arrays = [(each.view(torch.int16) if each.dtype == torch.bfloat16 else each).numpy() for each in flat]
    size = max(_AT_ONCE // row, 1) * row
    share(len(arrays[0]), lambda part: kernel(*(array[part] for array in arrays), row), size=size, kernel=kernel)
    return [out[: len(out) - excess].reshape(inputs[0].shape) for out in flat[len(inputs) :]]


class FastGELU(torch.autograd.Function):
    """Of a tensor of float32 or bfloat16; its slope is kept, not the tensor: as large, and less work later."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: D102
        out, slope = _of_all(_gelu, x.detach(), results=2)
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx: Any, of_out: Tensor) -> Tensor:  # noqa: D102
        (slope,) = ctx.saved_tensors
        return of_out * slope


class FastSoftmax(torch.autograd.Function):
    """Over the last dimension, a multiple of 16, of a tensor of float32 or bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: D102
        (out,) = _of_all(_softmax, x.detach(), row=x.shape[-1])
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, of_out: Tensor) -> Tensor:  # noqa: D102
        (out,) = ctx.saved_tensors
        return _of_all(_softmax_back, out, of_out.to(out.dtype), row=out.shape[-1])[0]
