"""A sheet of scenes: what a caption fixes, and what it leaves free."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fewstep.toyworld.scenes import SIDE, draw_scene, render
from toyworld_training.prompts import distinct_prompts

COLUMNS, ZOOM, LINE, GAP = 8, 2, 18, 4  # scenes a row; pixels per pixel; caption height; space


def write_sheet(path: Path, *, count: int, seed: int) -> list[str]:
    """Writes a PNG with `count` captions and eight scenes of each; returns the captions."""
    prompts = distinct_prompts(count, seed, held_out=False)
    rng = np.random.default_rng([seed, 2])
    cell = SIDE * ZOOM + GAP
    sheet = Image.new("RGB", (COLUMNS * cell + GAP, count * (cell + LINE) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, prompt in enumerate(prompts):
        top = GAP + row * (cell + LINE)
        pen.text((GAP, top), str(prompt), fill="black")
        pixels = render([draw_scene(prompt, rng) for _ in range(COLUMNS)])
        for column, scene in enumerate((pixels * 255).round().astype(np.uint8)):
            image = Image.fromarray(scene.transpose(1, 2, 0))
            image = image.resize((SIDE * ZOOM, SIDE * ZOOM), Image.Resampling.NEAREST)
            sheet.paste(image, (GAP + column * cell, top + LINE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return [str(prompt) for prompt in prompts]
