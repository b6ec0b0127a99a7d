"""The shared library of the native engine: its structures, its functions, checks when it is opened.

`hatch_build.py` compiles `kernel/` into one shared library. It holds the same functions for both
types of numbers and for several widths of vectors, and names each function by its combination.
"""

import ctypes
import hashlib
from collections.abc import Mapping
from ctypes import POINTER, addressof, c_char_p, c_double, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microgpt.errors import EngineError
from microgpt.parameters import FloatArray

__all__ = [
    "NOT_FINITE",
    "RUNNING",
    "VECTOR_BYTES",
    "Model",
    "Stream",
    "Text",
    "Training",
    "address",
    "aligned_zeros",
    "functions_for",
    "max_members",
    "open_library",
    "padded",
    "why_unavailable",
]

PATH = Path(__file__).with_name("kernel") / "libmicrogpt.so"
ABI = 8  # microgpt_abi of kernel.c
VECTOR_BYTES = (16, 32, 64)  # widths that hatch_build.py may compile for
LINE_BYTES = 64  # of a cache line; the kernel expects memory aligned to it
HINT = (
    "reinstall microgpt-lib, from a wheel for this system or with a C compiler, "
    "or use --engine vectorized"
)


# ---------------------------------------------------------------- structures of interface.h


class Model(ctypes.Structure):
    """Sizes and flat buffers of a model."""

    _fields_ = [
        ("vocab_size", c_int64),
        ("n_embd", c_int64),
        ("n_head", c_int64),
        ("n_layer", c_int64),
        ("block_size", c_int64),
        ("weights", c_void_p),
        ("grads", c_void_p),
        ("adam_m", c_void_p),
        ("adam_v", c_void_p),
    ]


class Training(ctypes.Structure):
    """Arguments and results of `train` and `update`."""

    _fields_ = [
        ("workspace", c_void_p),
        ("n_members", c_int64),
        ("inputs", c_void_p),
        ("targets", c_void_p),
        ("starts", c_void_p),
        ("n_steps", c_int64),
        ("first_documents", c_void_p),
        ("n_targets", c_void_p),
        ("learning_rates", c_void_p),
        ("loss_only", c_int64),
        ("weight_decay", c_double),
        ("clip", c_double),
        ("n_updates", c_int64),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("muon_ratio", c_double),
        ("muon_momentum", c_double),
        ("muon_iterations", c_int64),
        ("muon_first", c_int64),
        ("muon_every", c_int64),
        ("losses", c_void_p),
        ("norms", c_void_p),
        ("n_done", c_int64),
    ]


class Stream(ctypes.Structure):
    """The cache of one stream of text, and the arguments of `extend`."""

    _fields_ = [
        ("memory", c_void_p),
        ("length", c_int64),
        ("panels", c_void_p),
        ("workspace", c_void_p),
        ("n_members", c_int64),
        ("tokens", c_void_p),
        ("n_tokens", c_int64),
        ("logits", c_void_p),
        ("n_logits", c_int64),
    ]


class Text(ctypes.Structure):
    """A text that `generate` continues."""

    _fields_ = [
        ("memory", c_void_p),
        ("prompt", c_void_p),
        ("length", c_int64),
        ("logits", c_void_p),
        ("uniforms", c_void_p),
        ("tokens", c_void_p),
        ("chosen_from", c_void_p),
        ("n_tokens", c_int64),
        ("max_tokens", c_int64),
        ("state", c_int64),
        ("temperature", c_double),
        ("top_p", c_double),
        ("top_k", c_int64),
        ("forbidden", c_void_p),
        ("n_forbidden", c_int64),
        ("stop", c_int64),
        ("ended", c_void_p),
    ]


RUNNING, FINISHED, NOT_FINITE = range(3)  # states of a text


_STRUCTURES = (Model, Training, Stream, Text)
_MODEL = POINTER(Model)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {  # of kernel.c: result, arguments
    "training_bytes": (c_int64, [_MODEL, c_int64]),
    "train": (None, [c_void_p, c_void_p]),  # as `update`; addresses take half the time of a call
    "update": (None, [_MODEL, POINTER(Training)]),
    "panels_bytes": (c_int64, [_MODEL]),
    "pack": (None, [_MODEL, c_void_p]),
    "digest": (None, [_MODEL, c_void_p]),
    "stream_bytes": (c_int64, [_MODEL]),
    "extension_bytes": (c_int64, [_MODEL, c_int64, c_int64]),
    "extend": (None, [c_void_p, c_void_p]),
    "fork": (None, [_MODEL, c_void_p, c_int64, c_void_p]),
    "generation_bytes": (c_int64, [_MODEL, c_int64, c_int64]),
    "generate": (
        None,
        [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64],
    ),
    "draws": (None, [c_void_p, c_int64, c_int64, c_void_p]),
}


# ---------------------------------------------------------------- opening


@cache
def open_library() -> ctypes.CDLL:
    """Return the shared library.

    Raises:
        EngineError: the library is missing, damaged or of another version.
    """
    digest = PATH.with_suffix(".sha256")
    try:
        content = PATH.read_bytes()
        expected = digest.read_bytes().strip()
    except OSError as error:
        raise EngineError(
            f"the native engine is not built: {error.filename} cannot be read", hint=HINT
        ) from error
    # Checked before loading: a truncated file would end the process when it is mapped.
    if hashlib.sha256(content).hexdigest().encode() != expected:
        raise EngineError(f"{PATH} is damaged: its digest differs from {digest.name}", hint=HINT)
    try:
        library = ctypes.CDLL(str(PATH))
        _check_version(library)
    except (OSError, AttributeError) as error:
        raise EngineError(f"{PATH} cannot be loaded: {error}", hint=HINT) from error
    return library


def _check_version(library: ctypes.CDLL) -> None:
    """Raise EngineError unless the library has the interface that this module describes."""
    _expect("ABI", library.microgpt_abi(), ABI)  # first: other versions may lack other functions
    library.microgpt_constant.restype = c_int64
    library.microgpt_constant.argtypes = [c_char_p]
    sizes = {f"sizeof({s.__name__})": ctypes.sizeof(s) for s in _STRUCTURES}
    for name, expected in {"LINE_BYTES": LINE_BYTES, **sizes}.items():
        _expect(name, library.microgpt_constant(name.encode()), expected)


def _expect(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise EngineError(
            f"{PATH} is of another version: its {name} is {found}, expected {expected}", hint=HINT
        )


def why_unavailable() -> str | None:
    """Return the reason why the native engine cannot be used here, or None if it can."""
    try:
        open_library()
    except EngineError as error:
        return str(error)
    return None


@cache
def max_members() -> int:
    """Return the most threads that one call into the library uses."""
    return int(open_library().microgpt_constant(b"MAX_MEMBERS"))


@cache
def functions_for(dtype: str, vector_bytes: int | None) -> Mapping[str, Any]:
    """Return the exported functions by name, for one type of numbers and one width of vectors.

    Raises:
        EngineError: the library cannot be used, or the processor lacks vectors of this width.
    """
    library = open_library()
    widest = int(library.microgpt_vector_bytes())
    widths = [width for width in VECTOR_BYTES if width <= widest]
    width = widths[-1] if vector_bytes is None else vector_bytes
    if width not in widths:
        raise EngineError(f"vector_bytes is {width}, expected 16, 32 or 64, at most {widest} here")
    functions = {}
    for name, (result, arguments) in _SIGNATURES.items():
        function = library[f"{name}_{dtype.removeprefix('float')}_{width}"]
        function.restype, function.argtypes = result, arguments
        functions[name] = function
    return functions


# ---------------------------------------------------------------- memory


def address(array: Any) -> int:
    """Return the address of a writable array; six times as fast as its `ctypes.data`."""
    return addressof(ctypes.c_char.from_buffer(array)) if array.size else 0


def aligned_zeros(n_bytes: int) -> NDArray[np.uint8]:
    """Return zeros that begin at a cache line."""
    memory = np.zeros(n_bytes + LINE_BYTES, np.uint8)
    start = -address(memory) % LINE_BYTES
    return memory[start : start + n_bytes]


def padded(n: int, dtype: str) -> FloatArray:
    """Return n zeros, followed by as many as a vector may read beyond them."""
    return np.zeros(n + LINE_BYTES // np.dtype(dtype).itemsize, dtype)[:n]
