"""Completing a checkpoint with the files beside it: a library's configuration, or the weights of ONNX."""

from typing import TYPE_CHECKING

from msgspec.structs import replace

from app.checkpoints.beside import CONFIG, ENDINGS, MAX_SIZE, PROCESSOR, read_beside
from app.checkpoints.reader import Checkpoint
from app.errors import CheckpointError
from app.fetching.beside import fetch_beside, name_of
from app.fetching.download import Fetched

if TYPE_CHECKING:
    from app.fetching.transfer import Progress


async def completed(fetched: Fetched[Checkpoint], location: str, progress: "Progress") -> Checkpoint:
    """Return the checkpoint with what the files beside it say. Raises DownloadError, CheckpointError."""
    checkpoint, at = fetched.content, fetched.path
    if checkpoint.data_files:
        folder = await fetch_beside(location, at, [*checkpoint.data_files], required=True, progress=progress)
        if missing := [name for name in checkpoint.data_files if not (folder / name).is_file()]:
            raise CheckpointError(
                f"The ONNX file keeps its weights in {missing[0]}, which is not beside it: deploy both files "
                "in one folder, or export it in one file."
            )
        return replace(checkpoint, data_files={name: folder / name for name in checkpoint.data_files})
    if name_of(location).endswith(ENDINGS):
        names = (CONFIG, PROCESSOR)
        folder = await fetch_beside(location, at, names, size=MAX_SIZE, required=False, progress=progress)
        return replace(checkpoint, beside=read_beside(folder))
    return checkpoint
