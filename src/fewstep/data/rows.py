"""Embeddings of many prompts: in memory up to a bound, the rest in a temporary file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.types import Conditioning
from fewstep.utils.errors import FewstepError


class Rows:
    """Conditionings of one form by number, from 0; `append` adds a batch, on the CPU.

    The file has no name, so that nothing of it is left whatever becomes of the process.
    """

    def __init__(self, count: int, *, memory: float, folder: Path | None = None) -> None:
        """Holds nothing yet.

        Args:
            count: How many there will be.
            memory: Bytes of them that are kept in memory.
            folder: A folder, perhaps yet to be made, on the file system that takes the rest; None:
                that of temporary files.
        """
        self._count = count
        self._memory = memory
        folders = (folder, *folder.absolute().parents) if folder is not None else ()
        self._place = next((str(each) for each in folders if each.is_dir()), tempfile.gettempdir())
        self._file = tempfile.TemporaryFile(dir=self._place)  # noqa: SIM115 - goes with this
        self._kept: Tensor | None = None
        self._form: dict[str, tuple[torch.dtype, torch.Size, int]] = {}
        self._width = 0
        self._filled = 0

    def append(self, cond: Conditioning) -> None:
        """Adds a batch.

        Raises:
            FewstepError: There is no room for all that will be added.
        """
        parts = [tensor.reshape(cond.batch, -1) for tensor in cond.tensors.values()]
        raw = torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)
        kept = self._kept if self._kept is not None else self._begin(cond, raw.shape[1])
        inside = raw[: max(len(kept) - self._filled, 0)]
        kept[self._filled : self._filled + len(inside)] = inside
        try:
            self._file.write(raw[len(inside) :].numpy().tobytes())
        except OSError as error:
            raise self._full(f"{error.strerror}") from error
        self._filled += cond.batch

    def __getitem__(self, number: int) -> Conditioning:
        """One of them, batch 1."""
        kept = self._kept
        assert kept is not None
        if number < len(kept):
            raw = kept[number]
        else:
            self._file.seek((number - len(kept)) * self._width)
            raw = torch.frombuffer(bytearray(self._file.read(self._width)), dtype=torch.uint8)
        pieces = raw.split([size for _, _, size in self._form.values()])
        return Conditioning(
            {  # cloned, as a view may begin at multiples of its own numbers' size only
                name: piece.clone().view(dtype).reshape(1, *shape)
                for piece, (name, (dtype, shape, _)) in zip(pieces, self._form.items(), strict=True)
            }
        )

    def _begin(self, cond: Conditioning, width: int) -> Tensor:
        """Makes room in memory, now that their size is known."""
        self._width = width
        for name, tensor in cond.tensors.items():
            self._form[name] = tensor.dtype, tensor.shape[1:], tensor[0].nbytes
        inside = min(int(self._memory // width), self._count)
        free = shutil.disk_usage(self._place).free
        if (self._count - inside) * width > free:
            raise self._full(f"{free / 1e9:.0f} GB are free")
        self._kept = torch.empty(inside, width, dtype=torch.uint8)
        return self._kept

    def _full(self, why: str) -> FewstepError:
        return FewstepError(
            f"{self._place}: no room for the embeddings of {self._count:,} prompts, "
            f"{self._count * self._width / 1e9:,.0f} GB: {why}; set data.encode_ahead=false",
            code="no-access",
        )
