"""Reading: the checkpoint and the proof, from a link or a path."""

from typing import TYPE_CHECKING

from msgspec import Struct

from app.checkpoints.reader import Checkpoint, read_checkpoint
from app.fetching.download import Fetched, fetch
from app.progress import Report
from app.serving.beside import completed
from app.serving.proof import Proof, read_proof
from app.settings import MODELS

if TYPE_CHECKING:
    from app.fetching.transfer import Progress  # it imports aiohttp, which only a download needs


class Source(Struct, frozen=True):
    """The files that a model is opened from."""

    file: Fetched[Checkpoint]
    checkpoint: Checkpoint  # that of the file, completed by the files beside it
    proof: Proof | None = None


async def read_source(location: str, report: Report, *, sha256: str = "", proof_url: str = "") -> Source:
    """Read the checkpoint at a link or a path, and the proof, if there is one.

    Raises DownloadError, CheckpointError, ProofError.
    """
    progress = _downloading(report)
    fetched = await fetch(location, MODELS, sha256=sha256, verify=read_checkpoint, progress=progress)
    checkpoint = await completed(fetched, location, progress)
    proof = None
    if proof_url:
        proof = (await fetch(proof_url, MODELS, verify=read_proof, progress=progress)).content
    report("reading", None)
    return Source(fetched, checkpoint, proof)


def _downloading(report: Report) -> "Progress":
    """Report the bytes of a download as the phase "downloading"."""

    def progress(done: int, total: int | None) -> None:
        report("downloading", done * 100 // total if total else None, done, total)

    return progress
