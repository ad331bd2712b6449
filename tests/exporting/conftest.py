"""An exported folder for all tests of its programs."""

import shutil
from pathlib import Path

import pytest

from tests.exporting.programs import SABOTAGES, export, predicted


@pytest.fixture(scope="package")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The v1 bears with all programs."""
    return export(tmp_path_factory.mktemp("programs") / "bears")


@pytest.fixture(scope="package")
def answers() -> dict[str, dict[str, float]]:
    """The probabilities of the server, by picture and class."""
    return predicted()


@pytest.fixture(params=SABOTAGES, ids=lambda spoil: spoil.__name__)
def spoiled(request: pytest.FixtureRequest, exported: Path, tmp_path: Path) -> Path:
    """The same folder with something wrong in its model."""

    folder = tmp_path / "spoiled"
    shutil.copytree(exported, folder, symlinks=True)
    request.param(folder)
    return folder
