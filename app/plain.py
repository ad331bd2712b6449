"""Text from files, hosts and clients, made fit for a sentence, a terminal and the log."""

from typing import Final

LIMIT: Final = 300  # characters of one name, title or phrase in a sentence
# Control characters, which terminals obey, and the line ends that only Unicode knows; marks that turn the
# direction of the text around them, or cannot be seen
CONTROLS: Final = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
MARKS: Final = (0x061C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
HIDDEN: Final = {**dict.fromkeys(CONTROLS, " "), **dict.fromkeys((*MARKS, *range(0xE0000, 0xE0080)), "")}


def plain(text: object, limit: int = LIMIT) -> str:
    """Return foreign text on one line, without control and direction characters, of `limit` characters.

    Longer text ends in an ellipsis.
    """
    start = str(text)[: 2 * limit].encode("utf-8", "replace").decode()  # without half characters
    line = " ".join(start.translate(HIDDEN).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
