"""PyTorch's `pytorch_model.bin`, read without executing the pickle in it and without PyTorch.

The file is a zip archive of uncompressed members: `data.pkl`, a pickle that says which tensor lies where, and one
member per storage with the bytes (https://docs.pytorch.org/docs/stable/notes/serialization.html). Unpickling calls
what the pickle names, and PyTorch's own restricted unpickler has let code through more than once. So the pickle is not
loaded: its opcodes are listed by `pickletools`, and the few that describe tensors are followed as data. A pickle that
holds anything else is refused.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from rope_jax.errors import InputError
from rope_jax.interop.stored import DTYPES, MAX_HEADER_BYTES, StoredTensor, corrupt

# PyTorch's storage classes -> safetensors' names of their dtypes, and bytes per element.
STORAGES = {
    "torch FloatStorage": ("F32", 4),
    "torch HalfStorage": ("F16", 2),
    "torch BFloat16Storage": ("BF16", 2),
    "torch DoubleStorage": ("F64", 8),
    "torch LongStorage": ("I64", 8),
    "torch IntStorage": ("I32", 4),
    "torch ShortStorage": ("I16", 2),
    "torch CharStorage": ("I8", 1),
    "torch ByteStorage": ("U8", 1),
    "torch BoolStorage": ("BOOL", 1),
}
DICTIONARY = "collections OrderedDict"
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
GLOBALS = frozenset({*STORAGES, DICTIONARY, TENSOR, PARAMETER})


@dataclasses.dataclass(frozen=True)
class _Global:
    """The name of a function or class, which is never looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    elements: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Foreign(Exception):
    """The pickle asks for something that no file of weights needs."""


def read_torch_header(file: Path) -> list[StoredTensor]:
    """Finds the tensors of one file of PyTorch weights, and reads none.

    Args:
        file: zip archive as `torch.save` writes it since PyTorch 1.6; may be a symbolic link.

    Returns:
        Its tensors, in the order of its dictionary.

    Raises:
        InputError: naming the file, what is wrong and the fix.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing: download the model again, every file of it")
    try:
        with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            members = _members(file, archive, stream)
            root = _root(file, members)
            start, size = members[root + "data.pkl"]
            if size > MAX_HEADER_BYTES:
                raise corrupt(file, f"its pickle takes {size} bytes")
            if root + "byteorder" in members and archive.read(root + "byteorder") != b"little":
                raise InputError(f"{file} was written on a big-endian machine: convert it to safetensors there")
            stream.seek(start)
            pickle = stream.read(size)
    except zipfile.BadZipFile:
        raise InputError(
            f"{file} is truncated, or no zip archive as PyTorch writes it since 1.6: download it again, or convert it "
            "to safetensors"
        ) from None
    try:
        described = _follow(pickle)
    except _Foreign as error:
        raise InputError(
            f"{file} holds {error}, which weights do not need and which might run code; it was not executed. Get the "
            "model as safetensors, or from a source that you trust"
        ) from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise corrupt(file, "its pickle is malformed") from None
    return [_stored(file, name, tensor, members, root) for name, tensor in described.items()]


def _members(file: Path, archive: zipfile.ZipFile, stream: BinaryIO) -> dict[str, tuple[int, int]]:
    """Member name -> first byte in the file and length."""
    end = file.stat().st_size
    members: dict[str, tuple[int, int]] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise corrupt(file, f"it holds {info.filename!r} twice")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise corrupt(file, f"{info.filename!r} is compressed or encrypted")
        stream.seek(info.header_offset)
        header = stream.read(30)
        if header[:4] != b"PK\3\4":
            raise corrupt(file, f"{info.filename!r} has no header")
        start = info.header_offset + 30 + int.from_bytes(header[26:28], "little")
        start += int.from_bytes(header[28:30], "little")
        if start + info.file_size > end:
            raise InputError(f"{file} is truncated: {info.filename!r} reaches beyond its end; download it again")
        members[info.filename] = (start, info.file_size)
    return members


def _root(file: Path, members) -> str:
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise corrupt(file, f"it holds {len(roots)} pickles named data.pkl where PyTorch writes one")
    return roots[0]


def _follow(pickle: bytes) -> dict[str, _Tensor]:
    """The dictionary that a pickle describes, by following the opcodes of one without calling anything."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark():
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def pop():
        if len(stack) <= (marks[-1] if marks else 0):
            raise ValueError("stack underflow")
        return stack.pop()

    for opcode, argument, _ in pickletools.genops(pickle):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_global(argument))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                stack.append(_global(f"{module} {name}"))
            case "BINPERSID":
                stack.append(_storage(pop()))
            case "REDUCE":
                arguments, function = pop(), pop()
                stack.append(_call(function, arguments))
            case "SETITEM":
                value, key = pop(), pop()
                _set(stack[-1], [key, value])
            case "SETITEMS":
                items = since_mark()
                _set(stack[-1], items)
            case "BUILD":
                # Attributes of a dictionary, where PyTorch keeps versions of modules.
                if not isinstance(pop(), dict) or not isinstance(stack[-1], dict):
                    raise _Foreign("an object with a state of its own")
            case "STOP":
                pass
            case name:
                raise _Foreign(f"the pickle opcode {name}")
    (result,) = stack
    if not isinstance(result, dict):
        raise _Foreign(f"a {type(result).__name__} where a dictionary of tensors is expected")
    for name, value in result.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _Foreign(f"something that is no tensor under the name {str(name)[:80]!r}")
    return result


def _global(name: str) -> _Global:
    if name not in GLOBALS:
        raise _Foreign(f"a call of {name.replace(' ', '.')[:80]!r}")
    return _Global(name)


def _call(function, arguments):
    if function == _Global(DICTIONARY) and arguments == ():
        return {}
    if function == _Global(TENSOR) and isinstance(arguments[0], _Storage):
        storage, offset, shape, strides = arguments[:4]
        if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)) or len(shape) != len(strides):
            raise ValueError("shape")
        return _Tensor(storage, offset, shape, strides)
    if function == _Global(PARAMETER) and isinstance(arguments[0], _Tensor):
        return arguments[0]
    raise _Foreign(f"a call of {getattr(function, 'name', 'an object')!r} with unusual arguments")


def _storage(identity) -> _Storage:
    what, kind, key, _, elements = identity
    if what != "storage" or not isinstance(kind, _Global) or kind.name not in STORAGES:
        raise _Foreign("a reference to something other than a storage")
    if not isinstance(key, str) or type(elements) is not int:
        raise ValueError("storage")
    return _Storage(kind.name, key, elements)


def _set(target, items):
    if not isinstance(target, dict):
        raise _Foreign("items of something other than a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if key in target:
            raise _Foreign(f"the name {str(key)[:80]!r} twice")
        target[key] = value


def _stored(file: Path, name: str, tensor: _Tensor, members, root: str) -> StoredTensor:
    dtype, width = STORAGES[tensor.storage.kind]
    place = members.get(f"{root}data/{tensor.storage.key}")
    if place is None:
        raise InputError(f"{file} lacks the bytes of tensor {name}: download it again")
    size, offset = width * math.prod(tensor.shape), width * tensor.offset
    if place[1] != width * tensor.storage.elements or offset + size > place[1]:
        raise corrupt(file, f"tensor {name} of {dtype} {list(tensor.shape)} does not fit into its storage")
    dense = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    if any(n > 1 and s != d for n, s, d in zip(tensor.shape, tensor.strides, dense)):
        raise InputError(f"{file}: tensor {name} is stored transposed or with gaps: convert the file to safetensors")
    if dtype in DTYPES and width != DTYPES[dtype].itemsize:
        raise AssertionError(f"{dtype} has {width} bytes in STORAGES")
    return StoredTensor(name, file, dtype, tensor.shape, place[0] + offset, size)
