"""Operations on float32 vectors that numba's own loops leave in memory and these keep in registers.

A loop of numba that adds to an array stores it after every step, since the arrays may overlap. Written as vectors of
LLVM, a gather of 16 channels takes a tenth and a layer of 64 units a quarter of the time. Any target of LLVM has them:
vectors wider than a register are split. Arrays are flat, contiguous and float32; bounds are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from vq3dcli.compiled import FAST

LANES = 16
"""Channels that `blend` takes at a time."""
UNITS = 64
"""Outputs of `layer`."""
_FLOAT = ir.FloatType()
_INDEX = ir.IntType(64)


def _operation(function: Callable[..., Any]) -> Any:
    return intrinsic(function)


def _pointer(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _vector_at(builder: Any, pointer: Any, index: Any, count: int) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), ir.VectorType(_FLOAT, count).as_pointer())


def _load(builder: Any, pointer: Any, index: Any, count: int) -> Any:
    vector = builder.load(_vector_at(builder, pointer, index, count))
    vector.align = 4
    return vector


def _store(builder: Any, vector: Any, pointer: Any, index: Any) -> None:
    builder.store(vector, _vector_at(builder, pointer, index, vector.type.count)).align = 4


def _splat(builder: Any, number: Any, count: int) -> Any:
    undefined = ir.Constant(ir.VectorType(_FLOAT, count), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count))


def _add_product(builder: Any, a: Any, b: Any, total: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=FAST), total, flags=FAST)


@_operation
def blend(_: Any, table: Any, o00: Any, o01: Any, o10: Any, o11: Any, w00: Any, w01: Any, w10: Any, w11: Any, x: Any,
          at: Any) -> Any:  # fmt: skip
    """`x[at : at + 16] += w00 * table[o00 : o00 + 16] + ...`: four texels, weighted."""
    signature = types.void(table, *[types.int64] * 4, *[types.float32] * 4, x, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        texels, out = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 9))
        total = _load(builder, out, args[10], LANES)
        for corner in range(4):
            weight, texel = _splat(builder, args[5 + corner], LANES), _load(builder, texels, args[1 + corner], LANES)
            total = _add_product(builder, weight, texel, total)
        _store(builder, total, out, args[10])
        return context.get_dummy_value()

    return signature, generate


@_operation
def layer(_: Any, x: Any, first: Any, count: Any, weights: Any, start: Any, at: Any) -> Any:
    """`x[at : at + 64] = relu(bias + sum_i x[first + i] * weight[i])`, i < count.

    `weights[start:]` are 64 biases, then 64 weights for each input. Inputs and outputs are not the same numbers of x.
    """
    signature = types.void(x, types.int64, types.int64, weights, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, matrix = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 3))
        total = cgutils.alloca_once_value(builder, _load(builder, matrix, args[4], UNITS))
        with cgutils.for_range(builder, args[2]) as loop:
            row = builder.add(args[4], builder.mul(builder.add(loop.index, _INDEX(1)), _INDEX(UNITS)))
            value = builder.load(builder.gep(numbers, [builder.add(args[1], loop.index)]))
            value = _splat(builder, value, UNITS)
            weight = _load(builder, matrix, row, UNITS)
            builder.store(_add_product(builder, value, weight, builder.load(total)), total)
        result = builder.load(total)
        zero = ir.Constant(result.type, [0.0] * UNITS)
        # Not greater than 0 is NaN, too, and stays one.
        _store(builder, builder.select(builder.fcmp_ordered("<=", result, zero), zero, result), numbers, args[5])
        return context.get_dummy_value()

    return signature, generate


@_operation
def outputs(_: Any, x: Any, first: Any, count: Any, weights: Any, at: Any) -> Any:
    """`x[at + k] = bias[k] + sum_i x[first + i] * weight[k, i]`, k < 4, i < count, a multiple of 64.

    `weights` are the rows of four outputs, then four biases.
    """
    signature = types.void(x, types.int64, types.int64, weights, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, matrix = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 3))
        kind = ir.VectorType(_FLOAT, UNITS)
        totals = [cgutils.alloca_once_value(builder, ir.Constant(kind, [0.0] * UNITS)) for _ in range(4)]
        with cgutils.for_range(builder, builder.udiv(args[2], _INDEX(UNITS))) as loop:
            block = builder.mul(loop.index, _INDEX(UNITS))
            units = _load(builder, numbers, builder.add(args[1], block), UNITS)
            for k, total in enumerate(totals):
                row = builder.add(builder.mul(args[2], _INDEX(k)), block)
                weight = _load(builder, matrix, row, UNITS)
                builder.store(_add_product(builder, units, weight, builder.load(total)), total)
        name = f"llvm.vector.reduce.fadd.v{UNITS}f32"
        add = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOAT, [_FLOAT, kind]), name)
        biases = builder.mul(args[2], _INDEX(4))
        for k, total in enumerate(totals):
            bias = builder.load(builder.gep(matrix, [builder.add(biases, _INDEX(k))]))
            result = builder.call(add, [bias, builder.load(total)], fastmath=FAST)
            builder.store(result, builder.gep(numbers, [builder.add(args[4], _INDEX(k))]))
        return context.get_dummy_value()

    return signature, generate


@_operation
def back_outputs(_: Any, x: Any, first: Any, count: Any, weights: Any, back: Any, at: Any, gradient: Any) -> Any:
    """Of `outputs`, behind ReLU: gradients `back[at : at + 4]` go to those of its inputs, `back[first:]`, and weights.

    An input that is not above 0 has none. `gradient` is laid out as `weights`; biases are the caller's.
    """
    signature = types.void(x, types.int64, types.int64, weights, back, types.int64, gradient)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, matrix, backs, sums = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 3, 4, 6))
        given = [builder.load(builder.gep(backs, [builder.add(args[5], _INDEX(k))])) for k in range(4)]
        of_output = [_splat(builder, number, UNITS) for number in given]
        zero = ir.Constant(ir.VectorType(_FLOAT, UNITS), [0.0] * UNITS)
        with cgutils.for_range(builder, builder.udiv(args[2], _INDEX(UNITS))) as loop:
            block = builder.mul(loop.index, _INDEX(UNITS))
            units = _load(builder, numbers, builder.add(args[1], block), UNITS)
            total = zero
            for k, of_one in enumerate(of_output):
                row = builder.add(builder.mul(args[2], _INDEX(k)), block)
                total = _add_product(builder, of_one, _load(builder, matrix, row, UNITS), total)
                summed = _add_product(builder, of_one, units, _load(builder, sums, row, UNITS))
                _store(builder, summed, sums, row)
            total = builder.select(builder.fcmp_ordered(">", units, zero), total, zero)
            _store(builder, total, backs, builder.add(args[1], block))
        return context.get_dummy_value()

    return signature, generate


@_operation
def add_outer(_: Any, x: Any, first: Any, count: Any, back: Any, at: Any, gradient: Any, start: Any) -> Any:
    """Of `layer`: `gradient[start:]`, biases and weights, gains the products of 64 `back[at:]` with 1 and inputs."""
    signature = types.void(x, types.int64, types.int64, back, types.int64, gradient, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, backs, sums = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 3, 5))
        units = _load(builder, backs, args[4], UNITS)
        _store(builder, builder.fadd(units, _load(builder, sums, args[6], UNITS), flags=FAST), sums, args[6])
        with cgutils.for_range(builder, args[2]) as loop:
            row = builder.add(args[6], builder.mul(builder.add(loop.index, _INDEX(1)), _INDEX(UNITS)))
            value = _splat(builder, builder.load(builder.gep(numbers, [builder.add(args[1], loop.index)])), UNITS)
            _store(builder, _add_product(builder, value, units, _load(builder, sums, row, UNITS)), sums, row)
        return context.get_dummy_value()

    return signature, generate


@_operation
def mix(_: Any, x: Any, first: Any, count: Any, matrix: Any, start: Any, stride: Any, at: Any) -> Any:
    """`x[at : at + 16] = sum_i x[first + i] * matrix[start + i * stride :]`, i < count, a multiple of 4."""
    signature = types.void(x, types.int64, types.int64, matrix, types.int64, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, rows = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 3))
        zero = ir.Constant(ir.VectorType(_FLOAT, LANES), [0.0] * LANES)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(4)]  # sums that need not wait for each other
        with cgutils.for_range(builder, builder.udiv(args[2], _INDEX(4))) as loop:
            for k, total in enumerate(totals):
                index = builder.add(builder.mul(loop.index, _INDEX(4)), _INDEX(k))
                value = _splat(builder, builder.load(builder.gep(numbers, [builder.add(args[1], index)])), LANES)
                row = _load(builder, rows, builder.add(args[4], builder.mul(index, args[5])), LANES)
                builder.store(_add_product(builder, value, row, builder.load(total)), total)
        a, b, c, d = (builder.load(total) for total in totals)
        sums = builder.fadd(builder.fadd(a, b, flags=FAST), builder.fadd(c, d, flags=FAST), flags=FAST)
        _store(builder, sums, numbers, args[6])
        return context.get_dummy_value()

    return signature, generate


@_operation
def spread(_: Any, table: Any, o00: Any, o01: Any, o10: Any, o11: Any, w00: Any, w01: Any, w10: Any, w11: Any, x: Any,
           at: Any) -> Any:  # fmt: skip
    """Of `blend`: `table[o00 : o00 + 16] += w00 * x[at : at + 16]`, and so on. No two of the texels are the same."""
    signature = types.void(table, *[types.int64] * 4, *[types.float32] * 4, x, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        texels, numbers = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 9))
        given = _load(builder, numbers, args[10], LANES)
        for corner in range(4):
            weight, place = _splat(builder, args[5 + corner], LANES), args[1 + corner]
            _store(builder, _add_product(builder, weight, given, _load(builder, texels, place, LANES)), texels, place)
        return context.get_dummy_value()

    return signature, generate
