"""The error tree: the drawing and the table of codes are complete."""

import re
import typing

from app import errors


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_the_drawing_names_every_error_and_its_status() -> None:
    drawn = dict(re.findall(r"(?:\|-|`-|^    )\s*([A-Z]\w+)(?: (\d{3}))?", errors.__doc__ or "", re.M))
    assert drawn.keys() == {kind.__name__ for kind in subclasses(errors.AppError)}
    for kind in subclasses(errors.RequestError) - {errors.RequestError}:
        assert drawn[kind.__name__] == str(kind.status)


def test_a_request_error_carries_its_own_code_unless_told_another() -> None:
    assert errors.BadImage("cut off").code == "corrupt-image"
    assert errors.BadImage("cut off", "truncated-image").code == "truncated-image"


def test_every_code_has_a_meaning_and_the_status_of_its_error() -> None:
    assert set(typing.get_args(errors.Code)) == errors.CODES.keys()
    for kind in subclasses(errors.RequestError):
        assert errors.CODES[kind.code][0] == kind.status
