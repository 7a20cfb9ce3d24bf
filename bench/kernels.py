"""Where the device's time goes, by kind of kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "attention": ("flash", "fmha", "cudnn", "attention", "sdpa"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "splitk"),
    "optimizer, norms, means": ("multi_tensor", "foreach"),
    "compiled": ("triton",),
    "copies": ("memcpy", "memset", "copy"),
}
"""Words in kernels' names; the first kind that has one counts. The rest is elementwise."""
HOST = {
    "cudaStreamSynchronize", "cudaMemcpyAsync", "cudaDeviceSynchronize", "cudaLaunchKernel",
    "cuLaunchKernel", "aten::_local_scalar_dense", "cudaMalloc", "cudaFree",
}  # fmt: skip
"""Where the host waits for the device, or is kept busy by it."""


def profiled(call: Callable[[], object]) -> dict[str, Any]:
    """Device time of a call by kind of kernel, its longest kernels, and calls of the host."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as profiler:
        call()
    events = profiler.key_averages()
    kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    ms: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for event in kernels:
        kind = _kind(event.key)
        ms[kind] += event.self_device_time_total / 1e3
        counts[kind] += event.count
    return {
        "device_ms": {kind: round(value, 1) for kind, value in ms.items()},
        "kernels": dict(counts),
        "longest": [
            [event.key[:100], round(event.self_device_time_total / 1e3, 2), event.count]
            for event in kernels[:25]
        ],
        "host": {
            event.key: {"count": event.count, "ms": round(event.cpu_time_total / 1e3, 1)}
            for event in events
            if event.key in HOST
        },
    }


def _kind(name: str) -> str:
    lowered = name.lower()
    return next((kind for kind, words in KINDS.items() if any(w in lowered for w in words)), "rest")
