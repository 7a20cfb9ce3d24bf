"""What the messages of common mistakes say, all in one file to be read over in one go.

    python tests/messages.py            print what the program says now
    python tests/messages.py --update   write it to tests/data/messages.txt

Every line is what the command line prints for one mistake, with the error's code before it. Tests
elsewhere assert codes only, so that a message can be put better without touching them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

FILE = Path(__file__).parent / "data" / "messages.txt"
WORLD = "package://fewstep.toyworld/data"
RECIPE = f"""
model: {{path: {WORLD}/pipeline, options: {{t5: false, max_sequence_length: 1}}}}
data: {{prompts: prompts.txt, batch_size: 2}}
resolution: {{height: 64, width: 64}}
objectives: [{{name: dm}}]
train: {{steps: 2}}
"""
FILES = {
    "mine.yaml": RECIPE,
    "broken.yaml": "model: [",
    "list.yaml": "- 1\n",
    "typo.yaml": RECIPE.replace("model:", "modle:"),
    "prompts.txt": "a red circle\na blue square\n",
    "empty.txt": "\n",
    "prompts.jsonl": '{"text": "a"}\n{"text": \n',
    "prompts.csv": "text,other\na,b\n",
    "prompts.md": "a\n",
    "turbo/model_index.json": '{"_class_name": "StableDiffusionXLPipeline"}',
    "turbo/unet/config.json": '{"time_cond_proj_dim": 256}',
    "shape/model_index.json": '{"_class_name": "ShapEPipeline"}',
    "damaged/model_index.json": "{",
    "full/notes.txt": "mine",
    "run/config.yaml": RECIPE,
}
COMMANDS = """
# The command line
dstill
sample x --stps 4
sample x --steps 9
sample x
sample x --prompts nowhere.txt
distill
compare run
compare run run
evaluate run
evaluate nowhere
export nowhere
export run

# Recipes
distill demoo
distill sd3-mediun
distill broken.yaml
distill list.yaml
distill typo.yaml
distill mine.yaml --set train
distill mine.yaml --set train.steps=many
distill mine.yaml --set train.steps=0
distill mine.yaml --set train.stepss=3
distill mine.yaml --set objectives.1.weight=2
distill mine.yaml --set objectives=[]
distill mine.yaml --set objectives.0.name=cdmm
distill mine.yaml --set objectives.0.alhpa=2
distill mine.yaml --set grid.name=randm
distill mine.yaml --set preview.score=drft
distill mine.yaml --set student.mode=lora --set student.lora.targets=[nowhere]
distill mine.yaml --set parallel.shard=hybrid

# Prompts
distill mine.yaml --set data.prompts=nowhere.txt
distill mine.yaml --set data.prompts=empty.txt
distill mine.yaml --set data.prompts=prompts.jsonl
distill mine.yaml --set data.prompts=prompts.csv --set data.column=txt
distill mine.yaml --set data.prompts=prompts.md
distill mine.yaml --set data.cache=nowhere
encode prompts.txt
encode prompts.txt --model WORLD/pipeline --out full
encode prompts.txt --model WORLD/pipeline --set max_sequence_lenght=3 --out new

# Models
sample nowhere/ --prompt a
sample shape --prompt a
distill mine.yaml --set model.path=turbo
sample damaged --prompt a
distill mine.yaml --set model.path=run
distill mine.yaml --set model.dtype=float8
distill mine.yaml --set model.options.max_sequence_lenght=8
distill mine.yaml --set model.options.max_sequence_length=two
distill mine.yaml --set resolution.height=65
"""


def told(line: str) -> str:
    """What the program says to one command line, and its code."""
    from fewstep import cli

    arguments = shlex.split(line.replace("WORLD", WORLD))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([*arguments, "--json"])
    if code != 2:
        return f"exit code {code}: no mistake"
    error = json.loads(out.getvalue())["error"]
    # What there is to choose from grows with the program, and is no wording.
    message = re.sub(r"\b(known|supported): .*", r"\1: ...", error["message"])
    return f"{error['code']}: {message}"


def collect() -> str:
    """All messages as they are now; commands run in a folder of their own."""
    before, lines = Path.cwd(), []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, text in FILES.items():
                Path(name).parent.mkdir(exist_ok=True)
                Path(name).write_text(text, encoding="utf-8")
            for line in COMMANDS.strip().splitlines():
                lines.append(line if line.startswith("#") or not line else f"$ fewstep {line}")
                if line and not line.startswith("#"):
                    lines.append(f"  {told(line)}".replace(str(Path(folder).resolve()), "HERE"))
        finally:
            os.chdir(before)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--update" in sys.argv:
        FILE.write_text(collect(), encoding="utf-8")
    else:
        sys.stdout.write(collect())
