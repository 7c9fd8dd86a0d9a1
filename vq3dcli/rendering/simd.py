"""Operations on float32 vectors that numba's own loops leave in memory and these keep in registers.

A loop of numba that adds to an array stores it after every step, since the arrays may overlap. Written as vectors of
LLVM, a gather of 16 channels takes a tenth and a layer of 64 units a quarter of the time. Any target of LLVM has them:
vectors wider than a register are split. Arrays are flat, contiguous and float32; bounds are the caller's.
"""

from __future__ import annotations

import math
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
GROUP = 4
"""Points that `layer_of_group` takes at a time, so that no sum waits for itself."""
_FLOAT = ir.FloatType()
_INDEX = ir.IntType(64)


def operation(function: Callable[..., Any]) -> Any:
    """A function of numba types that gives a signature, and what writes LLVM's code for it."""
    return intrinsic(function)


def pointer(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Of an array's first number."""
    return context.make_array(kind)(context, builder, array).data


def vector_at(builder: Any, first: Any, index: Any, count: int) -> Any:
    """Pointer to so many numbers at an index of an array."""
    return builder.bitcast(builder.gep(first, [index]), ir.VectorType(_FLOAT, count).as_pointer())


def _load(builder: Any, first: Any, index: Any, count: int) -> Any:
    vector = builder.load(vector_at(builder, first, index, count))
    vector.align = 4
    return vector


def _store(builder: Any, vector: Any, first: Any, index: Any) -> None:
    builder.store(vector, vector_at(builder, first, index, vector.type.count)).align = 4


def splat(builder: Any, number: Any, count: int) -> Any:
    """A number so many times."""
    undefined = ir.Constant(ir.VectorType(_FLOAT, count), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count))


def _add_product(builder: Any, a: Any, b: Any, total: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=FAST), total, flags=FAST)


def vector_exp(builder: Any, x: Any, count: int) -> Any:
    """exp(x) of so many numbers at once, good to 2e-7; NaN stays, and what is below 2^-126 becomes that."""
    kind, word = ir.VectorType(_FLOAT, count), ir.VectorType(ir.IntType(32), count)

    def of(value: float) -> Any:
        return ir.Constant(kind, [value] * count)

    y = builder.fmul(x, of(math.log2(math.e)), flags=FAST)
    y = builder.select(builder.fcmp_ordered("<", y, of(-126.0)), of(-126.0), y)
    y = builder.select(builder.fcmp_ordered(">", y, of(126.0)), of(126.0), y)
    name = f"llvm.rint.v{count}f32"
    nearest = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
    whole = builder.call(nearest, [y])
    part = builder.fsub(y, whole, flags=FAST)
    whole = builder.select(builder.fcmp_ordered("ord", y, y), whole, of(0.0))  # no integer is NaN, `part` is
    power = of(math.log(2.0) ** 7 / math.factorial(7))
    for k in range(6, -1, -1):
        power = _add_product(builder, power, part, of(math.log(2.0) ** k / math.factorial(k)))
    exponent = builder.shl(builder.fptosi(whole, word), ir.Constant(word, [23] * count))
    return builder.bitcast(builder.add(builder.bitcast(power, word), exponent), kind)


@operation
def blend(_: Any, table: Any, o00: Any, o01: Any, o10: Any, o11: Any, w00: Any, w01: Any, w10: Any, w11: Any, x: Any,
          at: Any) -> Any:  # fmt: skip
    """`x[at : at + 16] += w00 * table[o00 : o00 + 16] + ...`: four texels, weighted."""
    signature = types.void(table, *[types.int64] * 4, *[types.float32] * 4, x, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        texels, out = (pointer(context, builder, signature.args[i], args[i]) for i in (0, 9))
        total = _load(builder, out, args[10], LANES)
        for corner in range(4):
            weight, texel = splat(builder, args[5 + corner], LANES), _load(builder, texels, args[1 + corner], LANES)
            total = _add_product(builder, weight, texel, total)
        _store(builder, total, out, args[10])
        return context.get_dummy_value()

    return signature, generate


@operation
def layer(_: Any, x: Any, first: Any, count: Any, weights: Any, start: Any, at: Any) -> Any:
    """`x[at : at + 64] = relu(bias + sum_i x[first + i] * weight[i])`, i < count.

    `weights[start:]` are 64 biases, then 64 weights for each input. Inputs and outputs are not the same numbers of x.
    """
    signature = types.void(x, types.int64, types.int64, weights, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, matrix = (pointer(context, builder, signature.args[i], args[i]) for i in (0, 3))
        total = cgutils.alloca_once_value(builder, _load(builder, matrix, args[4], UNITS))
        with cgutils.for_range(builder, args[2]) as loop:
            row = builder.add(args[4], builder.mul(builder.add(loop.index, _INDEX(1)), _INDEX(UNITS)))
            value = builder.load(builder.gep(numbers, [builder.add(args[1], loop.index)]))
            value = splat(builder, value, UNITS)
            weight = _load(builder, matrix, row, UNITS)
            builder.store(_add_product(builder, value, weight, builder.load(total)), total)
        result = builder.load(total)
        zero = ir.Constant(result.type, [0.0] * UNITS)
        # Not greater than 0 is NaN, too, and stays one.
        _store(builder, builder.select(builder.fcmp_ordered("<=", result, zero), zero, result), numbers, args[5])
        return context.get_dummy_value()

    return signature, generate


@operation
def layer_of_group(_: Any, x: Any, first: Any, count: Any, weights: Any, start: Any, at: Any, step: Any) -> Any:
    """`layer` for four points at once, whose numbers begin at 0, `step`, 2 `step` and 3 `step` of x."""
    signature = types.void(x, types.int64, types.int64, weights, types.int64, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, matrix = (pointer(context, builder, signature.args[i], args[i]) for i in (0, 3))
        places = [builder.mul(args[6], _INDEX(k)) for k in range(GROUP)]
        bias = _load(builder, matrix, args[4], UNITS)
        totals = [cgutils.alloca_once_value(builder, bias) for _ in places]
        with cgutils.for_range(builder, args[2]) as loop:
            row = builder.add(args[4], builder.mul(builder.add(loop.index, _INDEX(1)), _INDEX(UNITS)))
            weight, source = _load(builder, matrix, row, UNITS), builder.add(args[1], loop.index)
            for place, total in zip(places, totals, strict=True):
                value = splat(builder, builder.load(builder.gep(numbers, [builder.add(place, source)])), UNITS)
                builder.store(_add_product(builder, value, weight, builder.load(total)), total)
        zero = ir.Constant(bias.type, [0.0] * UNITS)
        for place, total in zip(places, totals, strict=True):
            result = builder.load(total)
            result = builder.select(builder.fcmp_ordered("<=", result, zero), zero, result)
            _store(builder, result, numbers, builder.add(place, args[5]))
        return context.get_dummy_value()

    return signature, generate


@operation
def outputs(_: Any, x: Any, first: Any, count: Any, weights: Any, at: Any) -> Any:
    """`x[at + k] = bias[k] + sum_i x[first + i] * weight[k, i]`, k < 4, i < count, a multiple of 64.

    `weights` are the rows of four outputs, then four biases.
    """
    signature = types.void(x, types.int64, types.int64, weights, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, matrix = (pointer(context, builder, signature.args[i], args[i]) for i in (0, 3))
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


@operation
def exponentials(_: Any, x: Any, at: Any) -> Any:
    """`x[at : at + 4] = exp(-x[at : at + 4])`."""
    signature = types.void(x, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = pointer(context, builder, signature.args[0], args[0])
        _store(builder, vector_exp(builder, builder.fneg(_load(builder, numbers, args[1], 4)), 4), numbers, args[1])
        return context.get_dummy_value()

    return signature, generate


@operation
def back_outputs(_: Any, x: Any, first: Any, count: Any, weights: Any, back: Any, at: Any, gradient: Any,
                 step: Any) -> Any:  # fmt: skip
    """Of `outputs` behind ReLU, for four points: gradients `back[at : at + 4]` go on to `back[first:]` and weights.

    An input that is not above 0 has none. `gradient` is laid out as `weights`; biases are the caller's.
    """
    signature = types.void(x, types.int64, types.int64, weights, back, types.int64, gradient, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, matrix, backs, sums = (pointer(context, builder, signature.args[i], args[i]) for i in (0, 3, 4, 6))
        places = [builder.mul(args[7], _INDEX(k)) for k in range(GROUP)]
        zero = ir.Constant(ir.VectorType(_FLOAT, LANES), [0.0] * LANES)
        with cgutils.for_range(builder, builder.udiv(args[2], _INDEX(LANES))) as loop:
            lanes = builder.mul(loop.index, _INDEX(LANES))
            own = builder.add(args[1], lanes)
            units = [_load(builder, numbers, builder.add(place, own), LANES) for place in places]
            totals = [zero] * GROUP
            for k in range(4):
                row = builder.add(builder.mul(args[2], _INDEX(k)), lanes)
                weight, summed = _load(builder, matrix, row, LANES), _load(builder, sums, row, LANES)
                for point, place in enumerate(places):
                    given = builder.add(builder.add(place, args[5]), _INDEX(k))
                    given = splat(builder, builder.load(builder.gep(backs, [given])), LANES)
                    totals[point] = _add_product(builder, given, weight, totals[point])
                    summed = _add_product(builder, given, units[point], summed)
                _store(builder, summed, sums, row)
            for place, unit, total in zip(places, units, totals, strict=True):
                total = builder.select(builder.fcmp_ordered(">", unit, zero), total, zero)
                _store(builder, total, backs, builder.add(place, own))
        return context.get_dummy_value()

    return signature, generate


@operation
def add_outer(_: Any, x: Any, first: Any, count: Any, back: Any, at: Any, gradient: Any, start: Any,
              step: Any) -> Any:  # fmt: skip
    """Of `layer_of_group`: `gradient[start:]`, biases and weights, gains products of `back[at:]` with 1 and inputs."""
    signature = types.void(x, types.int64, types.int64, back, types.int64, gradient, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, backs, sums = (pointer(context, builder, signature.args[i], args[i]) for i in (0, 3, 5))
        places = [builder.mul(args[7], _INDEX(k)) for k in range(GROUP)]
        units = [_load(builder, backs, builder.add(place, args[4]), UNITS) for place in places]
        total = _load(builder, sums, args[6], UNITS)
        for of_point in units:
            total = builder.fadd(total, of_point, flags=FAST)
        _store(builder, total, sums, args[6])
        with cgutils.for_range(builder, args[2]) as loop:
            row = builder.add(args[6], builder.mul(builder.add(loop.index, _INDEX(1)), _INDEX(UNITS)))
            source, total = builder.add(args[1], loop.index), _load(builder, sums, row, UNITS)
            for place, of_point in zip(places, units, strict=True):
                value = builder.load(builder.gep(numbers, [builder.add(place, source)]))
                total = _add_product(builder, splat(builder, value, UNITS), of_point, total)
            _store(builder, total, sums, row)
        return context.get_dummy_value()

    return signature, generate


@operation
def mix(_: Any, x: Any, first: Any, count: Any, matrix: Any, start: Any, stride: Any, at: Any, step: Any) -> Any:
    """`x[at : at + 16] = sum_i x[first + i] * matrix[start + i * stride :]` for four points, i < count, even."""
    signature = types.void(x, types.int64, types.int64, matrix, *[types.int64] * 4)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, rows = (pointer(context, builder, signature.args[i], args[i]) for i in (0, 3))
        places = [builder.mul(args[7], _INDEX(k)) for k in range(GROUP)]
        zero = ir.Constant(ir.VectorType(_FLOAT, LANES), [0.0] * LANES)
        totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(2)] for _ in places]
        with cgutils.for_range(builder, builder.udiv(args[2], _INDEX(2))) as loop:
            for k in range(2):
                index = builder.add(builder.mul(loop.index, _INDEX(2)), _INDEX(k))
                row = _load(builder, rows, builder.add(args[4], builder.mul(index, args[5])), LANES)
                source = builder.add(args[1], index)
                for place, sums in zip(places, totals, strict=True):
                    value = builder.load(builder.gep(numbers, [builder.add(place, source)]))
                    total = _add_product(builder, splat(builder, value, LANES), row, builder.load(sums[k]))
                    builder.store(total, sums[k])
        for place, (one, two) in zip(places, totals, strict=True):
            total = builder.fadd(builder.load(one), builder.load(two), flags=FAST)
            _store(builder, total, numbers, builder.add(place, args[6]))
        return context.get_dummy_value()

    return signature, generate


@operation
def spread(_: Any, table: Any, o00: Any, o01: Any, o10: Any, o11: Any, w00: Any, w01: Any, w10: Any, w11: Any, x: Any,
           at: Any) -> Any:  # fmt: skip
    """Of `blend`: `table[o00 : o00 + 16] += w00 * x[at : at + 16]`, and so on. No two of the texels are the same."""
    signature = types.void(table, *[types.int64] * 4, *[types.float32] * 4, x, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        texels, numbers = (pointer(context, builder, signature.args[i], args[i]) for i in (0, 9))
        given = _load(builder, numbers, args[10], LANES)
        for corner in range(4):
            weight, place = splat(builder, args[5 + corner], LANES), args[1 + corner]
            _store(builder, _add_product(builder, weight, given, _load(builder, texels, place, LANES)), texels, place)
        return context.get_dummy_value()

    return signature, generate
