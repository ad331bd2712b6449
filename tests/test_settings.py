"""Settings: read from file and environment, and refused in one sentence if they are invalid."""

import re
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies
from msgspec.structs import replace

from app.commands.now import as_toml
from app.errors import SettingsError
from app.settings import DEMO, HINTS, Settings
from app.settings_file import SETTINGS_FILE, load_settings

TWO_LINES = 'model_url = "https://example.org/stage-2.pth"\nclasses = ["cat", "dog"]\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, "utf-8")
    return path


def values_of(settings: Settings) -> Settings:
    """Return the settings without the record of which ones were set."""
    return replace(settings, explicit=frozenset())


def test_the_shipped_settings_serve_the_demo() -> None:
    settings = load_settings(SETTINGS_FILE, {})
    assert Path(settings.model_url) == DEMO
    assert len(settings.classes) == 10


def test_the_shipped_settings_can_be_uncommented_and_are_the_defaults(tmp_path: Path) -> None:
    lines = SETTINGS_FILE.read_text().splitlines()
    uncommented = [line.removeprefix("#") if re.match(r"#\w+ = ", line) else line for line in lines]
    assert len([line for line in uncommented if re.match(r"\w+ = ", line)]) == len(HINTS)
    path = write(tmp_path, "\n".join(uncommented).replace("models/stage-2.pth", str(DEMO)))
    assert values_of(load_settings(path, {})) == values_of(load_settings(SETTINGS_FILE, {}))


def test_two_lines_are_enough(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, TWO_LINES), {})
    assert settings.classes == ("cat", "dog")
    assert (settings.image_size, settings.exif, settings.pipeline) == ((224, 224), "turn", "auto")


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, TWO_LINES + "image_size = 128\n")
    environment = {
        "APP_CLASSES": "ant, bee ,wasp",
        "APP_IMAGE_SIZE": "160",
        "APP_MEAN": "0.5,0.5,0.5",
        "APP_UNSURE_BELOW": "0.6",
        "APP_EXIF": "ignore",
    }
    settings = load_settings(path, environment)
    assert settings.classes == ("ant", "bee", "wasp")
    assert settings.mean == (0.5, 0.5, 0.5)
    assert (settings.image_size, settings.unsure_below, settings.exif) == ((160, 160), 0.6, "ignore")


def test_a_size_is_a_side_or_two(tmp_path: Path) -> None:
    path = write(tmp_path, TWO_LINES + "image_size = [192, 256]\npresize = 320\n")
    assert load_settings(path, {}).image_size == (192, 256)
    assert load_settings(path, {}).presize == (320, 320)
    assert load_settings(path, {"APP_IMAGE_SIZE": "128"}).image_size == (128, 128)
    assert load_settings(path, {"APP_IMAGE_SIZE": "128, 64"}).image_size == (128, 64)


def test_a_path_is_relative_to_its_file_or_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, TWO_LINES.replace("https://example.org/stage-2.pth", "files/stage-2.pth"))
    monkeypatch.chdir("/")
    assert load_settings(path, {}).model_url == str(tmp_path / "files" / "stage-2.pth")
    assert load_settings(path, {"APP_MODEL_URL": "tmp/x.pth"}).model_url == "/tmp/x.pth"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases = ['a', 'b']", r"Unknown setting 'clases' in settings\.toml\. Did you mean 'classes'\?"),
        (
            TWO_LINES + "flavor = 1",
            r"Unknown setting 'flavor' in settings\.toml\. There are model_url, classes",
        ),
        ('classes = ["a", "b"]', "missing required field `model_url`"),
        (TWO_LINES + 'image_size = "large"', r"image_size in settings\.toml is 'large'\. Expected `int`"),
        (TWO_LINES + "image_size = 7", r"is 7\. Expected `int` >= 16"),
        (TWO_LINES + "image_size = [224, 224, 3]", r"Expected `array` of length 2, got 3"),
        (TWO_LINES + "unsure_below = 1.5", r"Expected `float` <= 1\.0"),
        (TWO_LINES + "mean = [0.5]", r"three finite numbers were expected, or one for gray photos"),
        (TWO_LINES + "mean = [nan, 0, 0]", "finite numbers were expected"),
        (TWO_LINES + "std = [inf, 1, 1]", "finite numbers were expected"),
        (TWO_LINES + "unfamiliar_below = 0.5", "familiarity needs the photos of a proof: set proof_url"),
        (TWO_LINES + "std = [1, 0, 1]", "positive ones in std"),
        (TWO_LINES + 'exif = "rotate"', "Invalid enum value 'rotate'"),
        (TWO_LINES + 'model_sha256 = "abc"', "matching regex"),
        ('model_url = "x.pth"\nclasses = ["a", "a"]', "'a' is listed twice"),
        ('model_url = "x.pth"\nclasses = ["a", ""]', "length >= 1"),
        ('model_url = "x.pth"\nclasses = ["a"]', "length >= 2"),
        ('model_url = ""\nclasses = ["a", "b"]', "length >= 1"),
        ("model_url = “x.pth”", "cannot be read.*curly quotes"),
    ],
)
def test_an_invalid_setting_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(write(tmp_path, text), {})
    assert "\n" not in str(caught.value)


def test_a_setting_by_its_old_name_is_refused_with_its_new_name(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"'exact' in settings\.toml has a new name: write jpeg_downscale"
    ):
        load_settings(write(tmp_path, TWO_LINES + "exact = false"), {})
    with pytest.raises(SettingsError, match="'exact' in the variable APP_EXACT has a new name"):
        load_settings(write(tmp_path, TWO_LINES), {"APP_EXACT": "false"})


@pytest.mark.parametrize("classes", ["cat,dog", '"cat","dog"', "'cat', 'dog'", '["cat", "dog"]', '"cat,dog"'])
def test_quotes_around_a_variable_are_taken_off(classes: str, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('model_url = "x.pth"\n')
    variables = {"APP_CLASSES": classes, "APP_TITLE": '"Cats and dogs"', "APP_MODEL_URL": "'/models/a.pth'"}
    settings = load_settings(tmp_path / "settings.toml", variables)
    assert settings.classes == ("cat", "dog")
    assert (settings.title, settings.model_url) == ("Cats and dogs", "/models/a.pth")


def test_a_misspelt_variable_is_refused_and_a_hosts_own_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path, TWO_LINES)
    with pytest.raises(SettingsError, match=r"'clases' in the variable APP_CLASES\. Did you mean 'classes'"):
        load_settings(path, {"APP_CLASES": "a,b"})
    assert load_settings(
        path, {"APP_ENV": "production", "APP_IMAGE": "x", "APP_CLASSES": "", "PORT": "80"}
    ).classes == ("cat", "dog")


def test_a_wrong_variable_is_named_as_a_variable(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="The variable APP_IMAGE_SIZE is 'big'"):
        load_settings(write(tmp_path, TWO_LINES), {"APP_IMAGE_SIZE": "big"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no settings file .*nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml", {})


def test_a_settings_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(path, {})


@hypothesis.given(
    classes=strategies.lists(strategies.text(min_size=1), min_size=2, unique=True).map(tuple),
    mean=strategies.tuples(*[strategies.floats(0, 1)] * 3),
    multi_label=strategies.booleans(),
    image_size=strategies.tuples(*[strategies.integers(32, 1024)] * 2),
)
def test_settings_written_as_toml_are_read_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, **values: Any
) -> None:
    written = Settings(model_url="https://example.org/\x7f.pth", **values)
    path = write(tmp_path_factory.mktemp("written"), as_toml(written))
    assert values_of(load_settings(path, {})) == values_of(written)


SETTINGS = 'model_url = "models/\u00e9t\u00e9.pth"\nclasses = ["a", "b"]\n'


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_settings_as_windows_writes_them_are_read(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(SETTINGS.replace("\n", "\r\n").encode(encoding))
    assert load_settings(file, {}).model_url == str(tmp_path / "models" / "\u00e9t\u00e9.pth")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("model_url = \u201cx.pth\u201d", "It has curly quotes (\u201c), as word processors type them"),
        (
            'model_url = "C:' + r"\Users\me\x.pth" + '"',
            "write 'C:" + r"\Users\me\x.pth" + "', in single quotes",
        ),
        ("model_url = 'x.pth", "Write `name = value` on each line"),
    ],
)
def test_the_cause_is_named_where_settings_are_not_toml(content: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(content, "utf-8")
    with pytest.raises(SettingsError, match=re.escape(cause)):
        load_settings(tmp_path / "settings.toml", {})


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_bytes(SETTINGS.encode("cp1252"))
    with pytest.raises(SettingsError, match="save it as UTF-8 in your editor"):
        load_settings(tmp_path / "settings.toml", {})


def test_a_path_may_begin_with_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = tmp_path / "settings.toml"
    file.write_text('model_url = "~/x.pth"\nclasses = ["a", "b"]\n')
    assert load_settings(file, {}).model_url == str(tmp_path / "home" / "x.pth")


def test_a_variable_may_name_a_file_as_docker_and_kubernetes_mount_secrets(tmp_path: Path) -> None:
    path = write(tmp_path, TWO_LINES)
    secret = tmp_path / "keys"
    secret.write_bytes(b"\xef\xbb\xbfone-key-of-24-characters\r\nanother-of-24-characters\n\n")
    settings = load_settings(path, {"APP_API_KEYS_FILE": str(secret)})
    assert settings.api_keys == ("one-key-of-24-characters", "another-of-24-characters")
    secret.write_text("https://example.org/other.pth?token=1\n")
    assert load_settings(path, {"APP_MODEL_URL_FILE": str(secret)}).model_url.endswith("other.pth?token=1")


@pytest.mark.parametrize(
    ("content", "more", "sentence"),
    [
        (None, {}, r"APP_API_KEYS_FILE is .*keys, which cannot be read: .*No such file"),
        (b"\n", {}, r"APP_API_KEYS_FILE is .*keys; a file of 1 to 64000 bytes was expected"),
        (b"k" * 70_000, {}, "a file of 1 to 64000 bytes was expected"),
        (b"\xff\xfe", {}, "cannot be read: 'utf-8' codec"),
        (b"short", {}, "The variable APP_API_KEYS is .*length >= 16"),
        (
            b"one-key-of-24-characters",
            {"APP_API_KEYS": "x" * 24},
            "APP_API_KEYS_FILE and APP_API_KEYS are both set",
        ),
    ],
)
def test_a_secret_file_that_cannot_be_used_is_named(
    content: bytes | None, more: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    secret = tmp_path / "keys"
    if content is not None:
        secret.write_bytes(content)
    with pytest.raises(SettingsError, match=sentence):
        load_settings(write(tmp_path, TWO_LINES), {"APP_API_KEYS_FILE": str(secret)} | more)
