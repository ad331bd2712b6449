"""The tables of models, versions and applications: read from the file, and refused in one sentence."""

from pathlib import Path

import pytest

from app.errors import SettingsError
from app.settings_file import load_catalog, load_settings
from tests.test_settings import TWO_LINES, write

TABLES = """
[models.pets.v1]
[models.pets.v2]
model_url = "stage-3.pth"
image_size = 192
replicas = [0, 4]
[models.birds."1.0"]
classes = ["hen", "kiwi", "owl"]
labels = ["Hen", "Kiwi", "Owl"]

[applications.pets]
model = "pets"
version = "v1"
canary = "v2"
share = 0.1
objective_ms = 400

[applications.zoo]
model = "birds"
version = "1.0"
title = "Which bird?"
"""


def test_a_file_without_tables_has_one_version_and_no_application(tmp_path: Path) -> None:
    path = write(tmp_path, TWO_LINES)
    catalog = load_catalog(path, {})
    assert (catalog.versions, catalog.applications) == ({}, {})
    assert catalog.settings == catalog.page("") == load_settings(path, {})


def test_a_version_inherits_the_lines_above_the_tables(tmp_path: Path) -> None:
    versions = load_catalog(write(tmp_path, TWO_LINES + "image_size = 128" + TABLES), {}).versions
    assert list(versions) == ["pets/v1", "pets/v2", "birds/1.0"]
    v1, v2, birds = (version.settings for version in versions.values())
    assert (v1.model_url, v1.image_size) == ("https://example.org/stage-2.pth", (128, 128))
    assert (v2.model_url, v2.image_size) == (str(tmp_path / "stage-3.pth"), (192, 192))
    assert (birds.model_url, birds.classes) == (v1.model_url, ("hen", "kiwi", "owl"))
    assert v2.classes == ("cat", "dog")
    assert (v2.labels, birds.labels) == ((), ("Hen", "Kiwi", "Owl"))
    assert [version.replicas for version in versions.values()] == [(1, 1), (0, 4), (1, 1)]


def test_variables_override_the_lines_above_the_tables_only(tmp_path: Path) -> None:
    path = write(tmp_path, TWO_LINES + TABLES)
    versions = load_catalog(path, {"APP_IMAGE_SIZE": "64", "APP_CLASSES": "ant,bee"}).versions
    assert versions["pets/v1"].settings.image_size == (64, 64)
    assert versions["pets/v2"].settings.image_size == (192, 192)
    assert versions["birds/1.0"].settings.classes == ("hen", "kiwi", "owl")


def test_the_settings_are_those_of_the_first_application(tmp_path: Path) -> None:
    path = write(tmp_path, TWO_LINES + TABLES.replace("[applications.pets]", "[applications.x]"))
    assert load_settings(path, {}).classes == ("cat", "dog")


def test_an_application_has_its_own_page(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, TWO_LINES + 'description = "Mine"' + TABLES), {})
    zoo, pets = catalog.page("zoo"), catalog.page("pets")
    assert (zoo.title, zoo.description, zoo.classes) == ("Which bird?", "Mine", ("hen", "kiwi", "owl"))
    assert zoo.is_set("title")
    assert not pets.is_set("title")


@pytest.mark.parametrize(
    ("line", "instead", "sentence"),
    [
        ('version = "v1"', 'version = "v3"', r"\[applications.pets\]: .* no version 'v3'; it has v1, v2"),
        ('canary = "v2"', 'canary = "v4"', r"no version 'v4'; it has v1, v2"),
        ('canary = "v2"', 'canary = "v1"', r"canary and version are both 'v1'"),
        ('canary = "v2"', "", r"share is 0.1, but there is no canary"),
        ('canary = "v2"', 'canery = "v2"', r"Unknown setting 'canery' in \[applications.pets\]. .* 'canary'"),
        ('model = "pets"', 'model = "pet"', r"there is no model 'pet'; there are pets, birds"),
        ('model = "pets"', "", r"\[applications.pets\]: .* missing required field `model`"),
        ("share = 0.1", "share = 1.1", r"share in \[applications.pets\] is 1.1. Expected .* <= 1"),
        ("share = 0.1", "share = nan", r"share in .* is nan. Expected `float` >= 0"),
        ("objective_ms = 400", "objective_ms = -1", r"objective_ms in \[applications.pets\] is -1"),
        (
            "[applications.zoo]",
            "[applications.static]",
            r"\[applications.static\] has the name of an address",
        ),
        ("[applications.zoo]", '[applications."a b"]', r"the name 'a b' is part of an address"),
        ("[applications.zoo]", "[applications.PETS]", r"pets and PETS differ only in case"),
        ("[applications.zoo]", "[applications.pets]", r"Cannot declare .* twice"),
        ("[applications.zoo]", "[applicatons.zoo]", r"Unknown setting 'applicatons' .* 'applications'"),
        ("[models.pets.v1]", '[models."a/b".v1]', r"the name 'a/b' is part of an address"),
        ("[models.pets.v1]", '[models.pets]\nclasses = ["a", "b"]', r"sets classes; .* \[models.pets.v1\]"),
        (
            "image_size = 192",
            "image_siz = 192",
            r"'image_siz' in \[models.pets.v2\]. Did you mean 'image_size'",
        ),
        (
            "image_size = 192",
            "image_size = 5",
            r"image_size in \[models.pets.v2\] is 5. Expected `int` >= 16",
        ),
        ("image_size = 192", "rate_limit = 5", r"rate_limit .* is a setting of the whole server"),
        (
            "replicas = [0, 4]",
            "replicas = [4, 0]",
            r"replicas in \[models.pets.v2\] is \[4, 0\]; the least and",
        ),
        ("replicas = [0, 4]", "replicas = 2", r"replicas in \[models.pets.v2\] is 2; the least and"),
    ],
)
def test_an_invalid_table_is_refused_with_its_name(
    line: str, instead: str, sentence: str, tmp_path: Path
) -> None:
    assert line in TABLES
    with pytest.raises(SettingsError, match=sentence):
        load_catalog(write(tmp_path, TWO_LINES + TABLES.replace(line, instead, 1)), {})


def test_models_without_an_application_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no application: add \[applications.NAME\]"):
        load_catalog(write(tmp_path, TWO_LINES + "[models.pets.v1]"), {})
    with pytest.raises(SettingsError, match=r"models is 3; a table was expected"):
        load_catalog(write(tmp_path, TWO_LINES + "models = 3"), {})
