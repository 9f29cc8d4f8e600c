"""Writes a GGUF again with its matrices rounded by ggml: a JSON job comes on stdin. It has the environment llamacpp and nothing of ours."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp

EVERY = 16
"""Tensors between two words of progress."""


def main() -> int:
    """Do the job, and say on stdout how far it is; the last line says what went wrong, if anything did."""
    job = json.loads(sys.stdin.readline())
    try:
        rewrite(Path(job["source"]), Path(job["target"]), job["types"], job["importance"])
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


def rewrite(source: Path, target: Path, types: dict[str, str], importance: str | None) -> None:
    """Copy a GGUF's metadata, and its tensors with those in `types` rounded to their new types, one at a time."""
    reader = gguf.GGUFReader(source)
    weights: dict[str, Any] = dict(np.load(importance)) if importance else {}
    writer = gguf.GGUFWriter(target, field(reader, "general.architecture"))
    copy_metadata(reader, writer)
    kinds = {t.name: gguf.GGMLQuantizationType[types.get(t.name, t.tensor_type.name)] for t in reader.tensors}
    for tensor in reader.tensors:
        shape = gguf.quants.quant_shape_to_byte_shape(tuple(int(n) for n in reversed(tensor.shape)), kinds[tensor.name])
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), kinds[tensor.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    round_to = ggml()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, tensor in enumerate(reader.tensors, start=1):
            kind = kinds[tensor.name]
            if kind == tensor.tensor_type:
                data = np.ascontiguousarray(tensor.data).view(np.uint8)
            else:
                rows = gguf.dequantize(tensor.data, tensor.tensor_type)
                data = rounded(rows, kind, weights.get(tensor.name), round_to, pool)
            writer.write_tensor_data(data)
            if number % EVERY == 0 or number == len(reader.tensors):
                print(f"done {number} of {len(reader.tensors)}", flush=True)
    writer.close()


def rounded(rows: Any, kind: Any, importance: Any, round_to: Any, pool: ThreadPoolExecutor) -> Any:
    """Round a matrix (or a stack of such), its rows shared among threads."""
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    width = rows.shape[-1]
    flat = rows.reshape(-1, width)
    out = np.empty(gguf.quants.quant_shape_to_byte_shape(flat.shape, kind), dtype=np.uint8)
    floats = ctypes.POINTER(ctypes.c_float)
    wanted = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    if wanted is not None and wanted.shape != (width,):
        raise ValueError(f"the importance of a matrix has {wanted.size} values for {width} columns")
    told = None if wanted is None else wanted.ctypes.data_as(floats)

    def part(first: int, last: int) -> int:
        source, target = flat[first:last], out[first:last]
        pointers = source.ctypes.data_as(floats), target.ctypes.data_as(ctypes.c_void_p)
        return int(round_to(int(kind), *pointers, 0, last - first, width, told))

    cuts = np.linspace(0, len(flat), (os.cpu_count() or 1) * 4 + 1, dtype=int)
    written = sum(pool.map(part, cuts[:-1], cuts[1:]))
    if written != out.nbytes:
        raise ValueError(f"ggml wrote {written} bytes of {out.nbytes}")
    return out


def ggml() -> Any:
    """Return `ggml_quantize_chunk` (ggml.h): type, floats, target, first value, rows, width, importance or null → bytes."""
    library = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    floats = ctypes.POINTER(ctypes.c_float)
    function.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, floats]
    return function


def copy_metadata(reader: Any, writer: Any) -> None:
    """Write a file's entries again, but for those that the writer makes itself."""
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in (
            "general.architecture",
            "general.file_type",
            "general.quantization_version",
        ):
            continue
        kind = entry.types[0]
        inner = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, entry.contents(), kind, sub_type=inner)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def field(reader: Any, name: str) -> Any:
    """Return a file's entry. Raises KeyError if it doesn't have it."""
    return reader.fields[name].contents()


if __name__ == "__main__":
    sys.exit(main())
