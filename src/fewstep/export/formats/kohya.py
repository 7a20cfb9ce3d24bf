"""A LoRA for SD 1.5, SD 2 and SDXL in one file, as sd-scripts (kohya) loads it."""

from __future__ import annotations

from typing import ClassVar

from fewstep.export.formats.comfyui import ComfyUI


class Kohya(ComfyUI):
    """Names as ComfyUI accepts them too: ``lora_unet_...``, with the rank as alpha."""

    name = "kohya"
    families = ("sd", "sdxl")
    place: ClassVar[str] = "Load `{file}` as a LoRA of the U-Net with multiplier 1"
