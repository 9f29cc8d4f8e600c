"""What the CPU plugin exports of a compiled graph, kept without the weights that the artefact's own file has already.

The export drops what paged attention must know about its heads, and can't be imported: it is written down with each node, and an
operation of our own puts it back while the graph is read.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.op import _PagedAttentionExtension

Bytes = NDArray[np.uint8]
Heads = Mapping[str, Mapping[str, int]]
"""By a node's name: how many heads there are, and how large they are."""

TAG = b"RR_UPCVO"
"""What the plugin's part of an export begins with."""
HEADER = struct.Struct("<6Q")
"""Begin and size of the custom data, of the constants and of the XML."""
GRAIN = 1 << 16
"""Parts of a file that are mapped begin at a multiple of this: pages are no larger anywhere."""
ALIGNMENT = 64
EXTENT = re.compile(rb'offset="(\d+)" size="(\d+)"')
"""Of a constant, as an artefact's XML has it."""
SAMPLE = 4096
"""Bytes by which a constant is looked for in the weights, before all of it is compared."""
MAP_FIXED = 0x10  # on Linux and macOS; Python's mmap has no name for it
ATTENTION = "PagedAttentionExtension"
COUNTS = ("k_head_size", "num_k_heads", "v_head_size", "num_v_heads")


@dataclass(frozen=True, slots=True)
class Stripped:
    """An export less the weights: what comes before them and what comes after."""

    opening: bytes
    """Its length is a multiple of GRAIN."""
    closing: bytes


class PagedAttentionWithHeads(ov.Op):  # type: ignore[misc]
    """Stands in an XML for paged attention, and becomes it with its heads known when the XML is read."""

    def __init__(self) -> None:
        super().__init__(self)
        self._inputs: list[Any] = []
        self._node: Any = None

    def set_arguments(self, inputs: list[Any]) -> None:
        """Keep the inputs."""
        self._inputs = inputs

    def visit_attributes(self, visitor: Any) -> bool:
        """Read the heads, and make the operation that is wanted."""
        counts = dict.fromkeys(COUNTS, 0)
        visitor.on_attributes(counts)
        if not all(counts.values()):
            raise ValueError("A node of paged attention doesn't say what heads it has.")
        self._node = _PagedAttentionExtension(self._inputs)
        known = self._node.get_rt_info()
        for name, value in counts.items():
            known[name] = value
        return False

    def outputs(self) -> list[Any]:
        """Return the outputs of the operation that was made: it takes this one's place."""
        found: list[Any] = self._node.outputs()
        return found


def heads_of(model: ov.Model) -> dict[str, dict[str, int]]:
    """Return what each node of paged attention knows about its heads."""
    return {
        node.get_friendly_name(): {name: int(node.get_rt_info()[name].value) for name in COUNTS}
        for node in model.get_ops()
        if node.get_type_name() == ATTENTION
    }


def strip(blob: Bytes, model: Path, weights: Bytes, heads: Heads) -> Stripped:
    """Take the weights out of an export, and write down the heads. Raises ValueError for one of another form.

    `model` is the XML that `weights` belong to.
    """
    tag, start, (_, custom_size, constants_at, constants_size, xml_at, xml_size) = _parts(blob)
    constants = blob[start + constants_at :][:constants_size]
    root = ET.fromstring(blob[start + xml_at :][:xml_size].tobytes())  # noqa: S314  the engine's own words
    _note_heads(root, heads)
    room = _rounded(len(weights))
    rest = _point_to_weights(root, constants, model, weights)
    xml = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    before = blob[tag:start].tobytes()
    custom = blob[start + HEADER.size :][:custom_size].tobytes()
    length = _rounded(len(before) + HEADER.size + len(custom))
    # Space after the custom data, which is XML, has no meaning: the weights begin on a page.
    constants_at = length - len(before)
    custom = custom.ljust(constants_at - HEADER.size)
    constants_size = room + len(rest)
    header = HEADER.pack(
        HEADER.size, len(custom), constants_at, constants_size, constants_at + constants_size, len(xml)
    )
    return Stripped(before + header + custom, rest + xml)


def import_graph(
    core: ov.Core, kept: IO[bytes], sizes: tuple[int, int], weights: Path, properties: Mapping[str, Any]
) -> ov.CompiledModel:
    """Import a stripped export, whose opening and closing, of these sizes, are in an open file from GRAIN on."""
    opening, closing = sizes
    core.add_extension(PagedAttentionWithHeads)
    size = weights.stat().st_size
    with weights.open("rb") as own:
        whole = _mapped([(kept, GRAIN, opening), (own, 0, size), (kept, GRAIN + opening, closing)])
    return core.import_model(ov.Tensor(whole, shared_memory=True), "CPU", {**properties, **PLAIN})


def _unchanged(text: bytes) -> bytes:
    return text


PLAIN = {"CACHE_ENCRYPTION_CALLBACKS": [_unchanged, _unchanged]}
"""Leaves the XML of an export readable."""


def _parts(blob: Bytes) -> tuple[int, int, tuple[int, ...]]:
    """Return where the plugin's part begins, where its header does, and the header."""
    beginning = blob[:GRAIN].tobytes()
    tag = beginning.find(TAG)
    if tag >= 0:
        for start in range(tag, len(beginning) - HEADER.size):
            found = HEADER.unpack_from(beginning, start)
            custom_at, custom_size, constants_at, constants_size, xml_at, xml_size = found
            if (
                custom_at == HEADER.size
                and custom_at + custom_size == constants_at
                and constants_at + constants_size == xml_at
                and start + xml_at + xml_size == len(blob)
            ):
                return tag, start, found
    raise ValueError("the engine's export has a form that isn't known")


def _note_heads(root: ET.Element, heads: Heads) -> None:
    found = set()
    for layer in root.iter("layer"):
        if layer.get("type") != ATTENTION:
            continue
        name, data = layer.get("name", ""), layer.find("data")
        if name not in heads or data is None or data.get("write_kv_cache", "true") != "true":
            raise ValueError("the engine's export has a node of paged attention that isn't understood")
        layer.set("type", PagedAttentionWithHeads.__name__)
        for key, value in heads[name].items():
            data.set(key, str(value))
        found.add(name)
    if found != set(heads):
        raise ValueError("the engine's export lacks nodes of paged attention")


def _point_to_weights(root: ET.Element, constants: Bytes, model: Path, weights: Bytes) -> bytes:
    """Let constants that the weights' file has refer to it, and return the others, which come after its room."""
    known = defaultdict(list)
    # Only guesses at what is where, which the bytes confirm: parsing it all takes ten times as long.
    for found in EXTENT.finditer(model.read_bytes()):
        at, size = int(found[1]), int(found[2])
        known[size, weights[at : at + min(size, SAMPLE)].tobytes()].append(at)
    room, rest = _rounded(len(weights)), bytearray()
    for data in _constants(root):
        at, size = _extent(data)
        value = constants[at : at + size]
        if len(value) != size:
            raise ValueError("the engine's export lacks constants")
        places = known.get((size, value[:SAMPLE].tobytes()), ())
        place = next((place for place in places if np.array_equal(weights[place : place + size], value)), None)
        if place is None:
            rest += bytes(-len(rest) % ALIGNMENT)
            place = room + len(rest)
            rest += value.tobytes()
        data.set("offset", str(place))
    return bytes(rest)


def _constants(root: ET.Element) -> list[ET.Element]:
    layers = (layer for layer in root.iter("layer") if layer.get("type") == "Const")
    return [data for layer in layers if (data := layer.find("data")) is not None]


def _extent(data: ET.Element) -> tuple[int, int]:
    return int(data.get("offset", "")), int(data.get("size", ""))


def _rounded(size: int) -> int:
    return -(-size // GRAIN) * GRAIN


def _mapped(parts: Sequence[tuple[IO[bytes], int, int]]) -> Bytes:
    """Map parts of files, (file, offset, size), one behind the other, each at a multiple of GRAIN.

    They stay for the process's life: a graph, and whatever was made of it, may refer to them until its very end.
    """
    *before, last = (size for _, _, size in parts)
    length = sum(map(_rounded, before)) + last
    base = _map(None, _rounded(length), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    at = base
    for file, offset, size in parts:
        _map(at, size, mmap.MAP_PRIVATE | MAP_FIXED, file.fileno(), offset)
        at += _rounded(size)
    whole: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(base))
    return whole


def _map(at: int | None, size: int, flags: int, file: int, offset: int) -> int:
    """Map as the system's mmap does, which Python's own can't do at a given address."""
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong]
    found: int | None = call(at, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, file, offset)
    if found in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    assert found is not None
    return found
