"""The processor this process runs on → the words that name its family in a model digest.

ONNX Runtime's MLAS selects the same kernels on two machines of one family, so they give the same bits. MLAS selects by
instruction sets on x86-64 and by core type on ARM (onnxruntime/core/mlas/lib/platform.cpp). The vendor is included,
since approximate instructions (vrcp14ps) differ between vendors.
"""

from __future__ import annotations

import platform
from pathlib import Path

_DECIDING_FLAGS = (
    "sse4_1",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "avx_vnni_int8",
    "avx_ne_convert",
    "amx_tile",
    "amx_int8",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
    "sve",
    "sme",
)
_VENDOR_FIELDS = ("vendor_id", "CPU implementer", "CPU part")


def processor_family(cpuinfo: str | None = None) -> str:
    """Architecture, vendor and deciding instruction sets in one line; `cpuinfo` is the text of /proc/cpuinfo.

    Without /proc/cpuinfo: the architecture and the system's name of the processor.
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text("utf-8", "replace")
        except OSError:
            return f"{platform.machine()} {platform.processor()}".strip()
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    vendor = [fields[name] for name in _VENDOR_FIELDS if name in fields]
    return " ".join([platform.machine(), *vendor, *(flag for flag in _DECIDING_FLAGS if flag in flags)])
