"""What instructions compute that neither touch memory nor other lanes: from arrays of all lanes to arrays of all lanes.

Integers are unsigned arrays, or signed ones where the instruction says so; they wrap. PTX ISA, "Integer Arithmetic
Instructions" to "Data Movement and Conversion Instructions".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ptx.parse import SIZES, PtxError

Array = Any  # of NumPy, with an element for each lane, or a scalar
DTYPES = {
    name: np.dtype(
        "?" if name == "pred" else ("f" if name in ("f32", "f64") else "i" if name[0] == "s" else "u") + str(n)
    )
    for name, n in SIZES.items()
}
_CANONICAL_NAN = np.uint32(0x7FFFFFFF).view(np.float32)
_SMALLEST_NORMAL = np.float32(2.0**-126)


def of_size(kind: str, size: int) -> np.dtype[Any]:
    return np.dtype(f"{kind}{size}")


def as_type(value: Array, dtype: np.dtype[Any]) -> Array:
    """The same bits as another type; of a wider register the lower ones, a narrower one is zero-extended."""
    if value.dtype == dtype:
        return value
    if value.dtype.itemsize == dtype.itemsize:
        return value.view(dtype)
    bits = value.view(of_size("u", value.dtype.itemsize))
    return bits.astype(of_size("u", dtype.itemsize)).view(dtype)


def operation(parts: list[str]) -> tuple[Callable[..., Array], list[str], str]:
    """What an opcode computes, the types of its sources, and of its result.

    Raises
    ------
    PtxError
        If it is none of those here.
    """
    name, type_ = parts[0], parts[-1]
    if name == "cvt":
        return _conversion(parts)
    _require_known(parts)
    kind, size = ("p", 1) if type_ == "pred" else (type_[0], SIZES[type_])
    if "wide" in parts:
        wide = f"{kind}{16 * size}"
        return _WIDE[name], [type_, type_, wide][: 3 if name == "mad" else 2], wide
    if name in ("mul", "mad") and kind in "us":
        return (_HIGH if "hi" in parts else _LOW)[name], [type_] * (3 if name == "mad" else 2), type_
    if name in _SHIFTS:
        return _SHIFTS[name], [type_, "u32"], type_
    if name in _MIXED:
        function, sources, result = _MIXED[name]
        if "T" not in sources and type_ != "b32":
            raise PtxError(f"unknown: the instruction {'.'.join(parts)}")
        return function, [type_ if one == "T" else one for one in sources], type_ if result == "T" else result
    function, count = _BY_NAME[name][1:]
    if "rm" in parts:
        function = _multiply_add_down
    if "ftz" in parts:
        function = _flushed(function)
    if type_ == "f32" and name in _ARITHMETIC:
        function = _with_canonical_nan(function)
    return function, [type_] * count, type_


def _require_known(parts: list[str]) -> None:
    """Of an opcode each part counts: one that is passed over would be computed as if it were not there."""
    name, *modifiers, type_ = parts
    kinds, known = _KNOWN.get(name, ("", ""))
    if type_ not in SIZES or type_ == "f16" or type_[0] not in kinds or set(modifiers) - set(known.split()):
        raise PtxError(f"unknown: the instruction {'.'.join(parts)}")


def compare(parts: list[str]) -> Callable[[Array, Array], Array]:
    """``setp``'s comparison: of numbers with NaN, ``ltu`` and the like are true, all others but ``nan`` false."""
    relation, type_ = parts[1], parts[-1]
    if type_ == "f16" or set(parts[2:-1]) - {"and", "or", "xor"}:
        raise PtxError(f"unknown: the instruction {'.'.join(parts)}")
    if type_[0] != "f":
        return _RELATIONS[{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(relation, relation)]
    if relation in ("num", "nan"):
        unordered = relation == "nan"
        return lambda a, b: (np.isnan(a) | np.isnan(b)) == unordered
    if relation == "ne":
        return lambda a, b: (a < b) | (a > b)
    if relation in _RELATIONS:
        return _RELATIONS[relation]
    ordered = _RELATIONS[relation.removesuffix("u")]
    return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)


_RELATIONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def flush(x: Array) -> Array:
    """``.ftz``: subnormal numbers are zeros of their sign."""
    return np.where(np.abs(x) < _SMALLEST_NORMAL, np.copysign(np.float32(0), x), x) if x.dtype == np.float32 else x


def _flushed(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *x: flush(function(*map(flush, x)))


def canonical(x: Array) -> Array:
    """What a GPU makes of NaN in float32: one pattern, whose bits plus a rounding's are a number."""
    nan = x != x
    return np.where(nan, _CANONICAL_NAN, x) if nan.any() else x


def _with_canonical_nan(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda *x: canonical(function(*x))


def _extreme(function: Callable[..., Array], of_zeros: Callable[..., Array]) -> Callable[..., Array]:
    """The larger or the smaller: a number beside NaN; of two zeros the one of that sign."""

    def extreme(a: Array, b: Array) -> Array:
        result = function(a, b)
        return np.where((a == 0) & (b == 0), of_zeros(a, b), result) if result.dtype.kind == "f" else result

    return extreme


def _multiply_add(a: Array, b: Array, c: Array) -> Array:
    if a.dtype != np.float64:
        # The product is exact; the sum is rounded twice, which is once but for one case in 2^29.
        return (np.float64(1) * a * b + c).astype(np.float32)
    product = a * b
    error = _product_error(a, b, product)
    total = product + c
    part = total - product
    rest = (product - (total - part)) + (c - part) + error
    return np.where(np.isfinite(rest) & (rest != 0), total + rest, total)


def _multiply_add_down(a: Array, b: Array, c: Array) -> Array:
    """Of float32, rounded to minus infinity."""
    exact = np.float64(1) * a * b + c
    nearest = exact.astype(np.float32)
    return np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _product_error(a: Array, b: Array, product: Array) -> Array:
    """What rounding took off the product of two doubles: Dekker 1971."""

    def halves(x: Array) -> tuple[Array, Array]:
        scaled = x * 134217729.0
        high = scaled - (scaled - x)
        return high, x - high

    (a_high, a_low), (b_high, b_low) = halves(a), halves(b)
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    return _truncated(a, b)[0]


def _truncated(a: Array, b: Array) -> tuple[Array, Array]:
    """Quotient toward zero, and the remainder with the sign of `a`."""
    if not np.all(b):
        b = np.where(b == 0, b.dtype.type(1), b)  # lanes that take no part may hold anything
    remainder = np.fmod(a, b)
    return (a - remainder) // b, remainder


def _high_product(a: Array, b: Array) -> Array:
    if a.dtype.itemsize < 8:
        wide = of_size(a.dtype.kind, 2 * a.dtype.itemsize)
        return ((a.astype(wide) * b.astype(wide)) >> (8 * a.dtype.itemsize)).astype(a.dtype)
    if a.dtype.kind == "i":
        high = _high_product(a.view("u8"), b.view("u8"))
        high = high - np.where(a < 0, b, 0).view("u8") - np.where(b < 0, a, 0).view("u8")
        return high.view("i8")
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a_low, a_high, b_low, b_high = a & mask, a >> half, b & mask, b >> half
    middle = (a_low * b_low >> half) + (a_high * b_low & mask) + (a_low * b_high & mask)
    return a_high * b_high + (a_high * b_low >> half) + (a_low * b_high >> half) + (middle >> half)


def _wide_product(a: Array, b: Array) -> Array:
    wide = of_size(a.dtype.kind, 2 * a.dtype.itemsize)
    return a.astype(wide) * b.astype(wide)


def _shift_left(x: Array, by: Array) -> Array:
    width = 8 * x.dtype.itemsize
    return np.where(by < width, x << np.minimum(by, width - 1).astype(x.dtype), x.dtype.type(0))


def _shift_right(x: Array, by: Array) -> Array:
    width = 8 * x.dtype.itemsize
    shifted = x >> np.minimum(by, width - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(by < width, shifted, x.dtype.type(0))


def _permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(both)
    for n in range(4):
        digit = (selector >> np.uint32(4 * n)).astype(np.uint64)
        byte = both >> (digit & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
        sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        result |= np.where(digit & np.uint64(8), sign, byte) << np.uint64(8 * n)
    return result.astype(np.uint32)


def _field(position: Array, length: Array, dtype: np.dtype[Any]) -> Array:
    """Ones in `length` bits from `position` on."""
    one, zero = dtype.type(1), np.zeros((), dtype)
    position, length = position & np.uint32(0xFF), length & np.uint32(0xFF)
    return _shift_left(_shift_left(one + zero, length) - one, position)


def _insert_bits(a: Array, b: Array, position: Array, length: Array) -> Array:
    mask = _field(position, length, b.dtype)
    return (_shift_left(a, position & np.uint32(0xFF)) & mask) | (b & ~mask)


def _leading_zeros(x: Array) -> Array:
    return (32 - np.frexp(x.astype(np.float64))[1]).astype(np.uint32)


def _conversion(parts: list[str]) -> tuple[Callable[..., Array], list[str], str]:
    to, source, modes = parts[-2], parts[-1], parts[1:-2]
    if parts == ["cvt", "sat", "f32", "f32"]:
        return lambda x: np.clip(np.nan_to_num(x, nan=0), np.float32(0), np.float32(1)), [source], to
    if set(modes) - {"ftz", "rn", *_ROUNDINGS} or (to not in SIZES and modes != ["rn"]):
        raise PtxError(f"unknown: the instruction {'.'.join(parts)}")
    if to in ("bf16x2", "f16x2"):
        half = _to_bf16 if to == "bf16x2" else _to_f16
        return lambda high, low: half(low).astype("u4") | half(high).astype("u4") << np.uint32(16), [source] * 2, "b32"
    rounding = next((_ROUNDINGS[mode] for mode in modes if mode in _ROUNDINGS), None)
    dtype = DTYPES[to]

    def convert(x: Array) -> Array:
        if source == "f16":
            x = x.view(np.float16)
        if "ftz" in modes:
            x = flush(x)
        if rounding is not None and x.dtype.kind == "f":
            x = rounding(x)
        if to == "f16":
            return _to_f16(x)
        if x.dtype.kind == "f" and dtype.kind != "f":
            return _saturated(x, dtype)
        result = x.astype(dtype)
        return canonical(result) if dtype == np.float32 else result

    return convert, [source], to


def _saturated(x: Array, dtype: np.dtype[Any]) -> Array:
    """To integers; NaN is 0, or of 64 bits on either side what has the highest bit alone."""
    limits = np.iinfo(dtype)
    above, below, nan = x >= float(limits.max), x <= float(limits.min), np.isnan(x)
    inside = np.where(above | below | nan, 0, x).astype(dtype)
    result = np.where(above, limits.max, np.where(below, limits.min, inside)).astype(dtype)
    if 8 in (x.dtype.itemsize, dtype.itemsize):
        result = np.where(nan, of_size("u", dtype.itemsize).type(1 << 8 * dtype.itemsize - 1).view(dtype), result)
    return result


def _to_f16(x: Array) -> Array:
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def _to_bf16(x: Array) -> Array:
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _not(x: Array) -> Array:
    return ~x


_ROUNDINGS: dict[str, Any] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_WIDE: dict[str, Any] = {"mul": _wide_product, "mad": lambda a, b, c: _wide_product(a, b) + c}
_LOW: dict[str, Any] = {"mul": np.multiply, "mad": lambda a, b, c: a * b + c}
_HIGH: dict[str, Any] = {"mul": _high_product, "mad": lambda a, b, c: _high_product(a, b) + c}
_SHIFTS: dict[str, Any] = {"shl": _shift_left, "shr": _shift_right}
# By name: of which kinds of types, what, of how many sources of the same type.
_BY_NAME: dict[str, tuple[str, Any, int]] = {
    "add": ("usf", np.add, 2),
    "sub": ("usf", np.subtract, 2),
    "mul": ("f", np.multiply, 2),
    "fma": ("f", _multiply_add, 3),
    "div": ("usf", _divide, 2),
    "rem": ("us", lambda a, b: _truncated(a, b)[1], 2),
    "abs": ("sf", np.abs, 1),
    "neg": ("sf", np.negative, 1),
    "min": ("usf", _extreme(np.fmin, lambda a, b: -(-a + -b)), 2),
    "max": ("usf", _extreme(np.fmax, np.add), 2),
    "and": ("bp", np.bitwise_and, 2),
    "or": ("bp", np.bitwise_or, 2),
    "xor": ("bp", np.bitwise_xor, 2),
    "not": ("bp", _not, 1),
    "mov": ("busfp", lambda x: x, 1),
    "ex2": ("f", lambda x: np.exp2(x.astype(np.float64)).astype(np.float32), 1),
    "rcp": ("f", lambda x: x.dtype.type(1) / x, 1),
    "sqrt": ("f", np.sqrt, 1),
    "lg2": ("f", lambda x: np.log2(x.astype(np.float64)).astype(np.float32), 1),
    "copysign": ("f", lambda a, b: np.copysign(b, a), 2),
}
# Sources of different types; T is the opcode's.
_MIXED: dict[str, tuple[Any, list[str], str]] = {
    "selp": (lambda a, b, chosen: np.where(chosen, a, b), ["T", "T", "pred"], "T"),
    "prmt": (_permute_bytes, ["b32"] * 3, "b32"),
    "bfi": (_insert_bits, ["T", "T", "u32", "u32"], "T"),
    "popc": (lambda x: np.bitwise_count(x).astype(np.uint32), ["T"], "u32"),
    "clz": (_leading_zeros, ["b32"], "u32"),
}
# By name: of which kinds of types, and what may stand before the type.
_KNOWN = {name: (kinds, "") for name, (kinds, _, _) in _BY_NAME.items()}
_KNOWN |= {
    **dict.fromkeys(("add", "sub"), ("usf", "rn ftz")),
    "fma": ("f", "rn rm ftz"),
    "mul": ("usf", "rn ftz lo hi wide"),
    "mad": ("us", "lo hi wide"),
    "div": ("usf", "rn"),
    **dict.fromkeys(("min", "max"), ("usf", "ftz")),
    **dict.fromkeys(("abs", "neg"), ("sf", "ftz")),
    **dict.fromkeys(("ex2", "lg2", "rcp"), ("f", "approx rn ftz")),
    "sqrt": ("f", "rn"),
    "shl": ("b", ""),
    "shr": ("bus", ""),
    "selp": ("busf", ""),
    "bfi": ("b", ""),
    **dict.fromkeys(("prmt", "clz", "popc"), ("b", "")),
}
# Of these a NaN that comes out is made there.
_ARITHMETIC = ("add", "sub", "mul", "fma", "div", "min", "max", "ex2", "rcp", "sqrt", "lg2")
