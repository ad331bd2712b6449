"""The budget of reading one file: bytes of memory and steps, charged by every value that is made."""

from dataclasses import dataclass
from typing import Final

from app.errors import CheckpointError

# Measured over real files, the records of a pickle take 3 to 9 bytes for each byte of the pickle. The fixed
# part is for small files.
MULTIPLE: Final = 24
FIXED: Final = 32_000_000  # bytes
MOST: Final = 256_000_000  # bytes beside those of the file itself, for any file
STEPS: Final = 1_000_000  # a resnet152 with optimizer state has 90,000 opcodes


@dataclass
class Budget:
    """The rest of the `bytes` of memory and of the `steps` that a file of `size` bytes may take."""

    bytes: int
    steps: int

    @classmethod
    def of(cls, size: int) -> "Budget":
        """Return the budget of a file of `size` bytes."""
        return cls(size + min(FIXED + MULTIPLE * size, MOST), STEPS)

    def charge(self, size: int, steps: int = 0) -> None:
        """Take `size` bytes and `steps`. Raises CheckpointError where there are no more."""
        self.bytes -= size
        self.steps -= steps
        if self.bytes < 0 or self.steps < 0:
            raise CheckpointError(
                "The file asks for far more memory or work than its size explains, as no checkpoint does: it "
                "is damaged, or made to exhaust the reader."
            )
