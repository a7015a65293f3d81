"""Formulas as machine code: one loop over the elements, each read once and written once.

The loop is written down in the language of LLVM and compiled for the processor at hand, some
milliseconds a formula, and is called by `zopeft.kernels.numba_kernels.mapped` for one tile after
the other. Nothing in it may be contracted or reordered, so the bits are those of
`zopeft.kernels.formula.evaluate`.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core.codegen import get_host_cpu_features

from zopeft.kernels.formula import BUFFER, CONSTANT, NOISE, WEIGHT, Formula

LANES = 16
"""Elements that are worked on at a time; wider than any register, so that all are filled."""
NAME = "formula"
_F32, _I64 = ir.FloatType(), ir.IntType(64)
_POINTER = _F32.as_pointer()
_COMPARISONS = {"least": ">", "most": "<", "at_most": "<="}
_compiled: list[Any] = []
"""What holds the machine code in memory."""


@lru_cache(maxsize=512)
def address_of(formula: Formula) -> int:
    """Returns the address of a formula's code, ``void f(i64 n, float **places, float *constants)``.

    The places are those of weights, buffers and noises, [n] each.
    """
    module = llvm.parse_assembly(_code(formula))
    module.verify()
    engine = llvm.create_mcjit_compiler(module, _machine())
    engine.finalize_object()
    _compiled.append(engine)
    return int(engine.get_function_address(NAME))


def _machine() -> Any:
    settings: Any = numba.config
    features = getattr(settings, "CPU_FEATURES", None)
    features = get_host_cpu_features() if features is None else features
    cpu = getattr(settings, "CPU_NAME", None) or llvm.get_host_cpu_name()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True)


def _code(formula: Formula) -> str:
    """Returns a formula's code in the language of LLVM."""
    module = ir.Module(name=NAME)
    module.triple = llvm.get_process_triple()
    types = [_I64, _POINTER.as_pointer(), _POINTER]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), types), NAME)
    begin = ir.IRBuilder(function.append_basic_block("begin"))
    inputs = 1 + len(formula.buffers) + formula.count(NOISE)
    places = [
        begin.load(begin.gep(function.args[1], [_I64(number)]), f"place{number}")
        for number in range(inputs)
    ]
    whole = begin.and_(function.args[0], _I64(-LANES))
    numbers = [
        begin.load(begin.gep(function.args[2], [_I64(number)]))
        for number in range(formula.count(CONSTANT))
    ]
    end = _loop(function, begin, formula, places, numbers, (_I64(0), whole), LANES)
    last = _loop(function, end, formula, places, numbers, (whole, function.args[0]), 1)
    last.ret_void()
    return str(module)


def _loop(
    function: Any,
    before: Any,
    formula: Formula,
    places: list[Any],
    numbers: list[Any],
    span: tuple[Any, Any],
    lanes: int,
) -> Any:
    """Writes a loop over a span of elements, so many at a time; returns where it goes on."""
    constants = [_spread(before, number, lanes) for number in numbers]
    test, body, after = (
        ir.IRBuilder(function.append_basic_block(f"{name}{lanes}"))
        for name in ("test", "body", "after")
    )
    start = before.block
    before.branch(test.block)
    at = test.phi(_I64)
    test.cbranch(test.icmp_signed("<", at, span[1]), body.block, after.block)
    _element(body, formula, places, constants, at, lanes)
    following = body.add(at, _I64(lanes))
    body.branch(test.block)
    at.add_incoming(span[0], start)
    at.add_incoming(following, body.block)
    return after


def _element(
    body: Any, formula: Formula, places: list[Any], constants: list[Any], at: Any, lanes: int
) -> None:
    """Writes what is done to some elements: all is read before anything is written."""
    kind = _F32 if lanes == 1 else ir.VectorType(_F32, lanes)

    def place(number: int) -> Any:
        own = body.gep(places[number], [at])
        return own if lanes == 1 else body.bitcast(own, kind.as_pointer())

    first = {WEIGHT: 0, BUFFER: 1, NOISE: 1 + len(formula.buffers)}
    found: list[Any] = []
    for name, *operands in formula.nodes:
        if name == CONSTANT:
            found.append(constants[operands[0]])
        elif name in first:
            value = body.load(place(first[name] + sum(operands)))
            value.align = 4
            found.append(value)
        else:
            found.append(_operation(body, name, kind, [found[n] for n in operands]))
    writes = [(0, formula.weight)]
    writes += [(1 + n, new) for n, new in enumerate(formula.buffers) if new is not None]
    for number, new in writes:
        body.store(found[new], place(number)).align = 4


def _operation(body: Any, name: str, kind: Any, operands: list[Any]) -> Any:
    """Writes one operation."""
    if name in ("add", "sub", "mul", "div"):
        return getattr(body, f"f{name}")(*operands)
    if name in ("sqrt", "abs"):
        own = "sqrt" if name == "sqrt" else "fabs"
        return body.call(_intrinsic(body.module, own, kind), operands)
    one, zero = (_constant(kind, number) for number in (1.0, 0.0))
    if name == "sign":
        above = body.select(body.fcmp_ordered(">", operands[0], zero), one, zero)
        below = body.select(body.fcmp_ordered("<", operands[0], zero), one, zero)
        return body.fsub(above, below)
    first, second = operands
    chosen = body.fcmp_ordered(_COMPARISONS[name], first, second)
    return (
        body.select(chosen, one, zero) if name == "at_most" else body.select(chosen, second, first)
    )


def _intrinsic(module: Any, name: str, kind: Any) -> Any:
    lanes = "" if kind == _F32 else f"v{kind.count}"
    full = f"llvm.{name}.{lanes}f32"
    if full not in module.globals:
        ir.Function(module, ir.FunctionType(kind, [kind]), full)
    return module.globals[full]


def _constant(kind: Any, number: float) -> Any:
    return ir.Constant(kind, number if kind == _F32 else [_F32(number)] * kind.count)


def _spread(before: Any, number: Any, lanes: int) -> Any:
    """Writes a vector whose numbers are all the same one."""
    if lanes == 1:
        return number
    kind = ir.VectorType(_F32, lanes)
    single = before.insert_element(ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
    return before.shuffle_vector(single, ir.Constant(kind, ir.Undefined), mask)
