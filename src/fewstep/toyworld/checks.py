"""``fewstep doctor --demo``: is the tiny world whole, and does the demo fit this machine?"""

from __future__ import annotations

from collections.abc import Iterator

from fewstep.utils.checks import Check, check_folder, check_room, check_weights
from fewstep.utils.errors import FewstepError
from fewstep.utils.resources import resolve

DATA = "package://fewstep.toyworld/data"
MEMORY_GB = 4.0  # that the demo needs
REINSTALL = "reinstall: pip install --force-reinstall --no-deps fewstep (or restore the checkout)"


def checks() -> Iterator[Check]:
    """Looks at the pipeline, the feature net, the prompts and the free memory."""
    import psutil

    data = resolve(DATA)
    try:
        weights, size = check_folder(data / "pipeline")
        check_weights(data / "features.safetensors")
    except (FewstepError, OSError, ValueError) as error:
        yield Check("tiny world", "fail", " ".join(str(error).split()), REINSTALL)
    else:
        yield Check("tiny world", "ok", f"{weights} networks, {size / 1e6:.1f} MB, and features")
    prompts = sorted(file for file in (data / "prompts").glob("*.txt") if file.stat().st_size > 0)
    found = ", ".join(file.name for file in prompts)
    yield Check("prompts", "ok", found) if found else Check("prompts", "fail", "none", REINSTALL)
    fix = f"close other programs: the demo needs {MEMORY_GB:.0f} GB"
    yield check_room("memory for the demo", psutil.virtual_memory().available, MEMORY_GB, fix)
