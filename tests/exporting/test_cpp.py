"""The C++ program: built by CMake as its README says, the proof, every picture, the lint."""

import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from tests.conftest import IMAGES, SECONDS
from tests.exporting.programs import assert_fails, assert_holds

# ONNXRUNTIME_DIR names a folder with the headers in include/; Debian from trixie on has them in a package
PLACES = [Path(os.environ.get("ONNXRUNTIME_DIR", "/nowhere")), Path("/usr"), Path("/usr/local")]
HEADERS = [header for place in PLACES for header in place.glob("include/**/onnxruntime_cxx_api.h")]
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (HEADERS and LIBRARY and shutil.which("cmake")),
        reason="ONNX Runtime's headers or cmake are missing",
    ),
]


@pytest.fixture(scope="module")
def program(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built program in the folder of the export."""
    assert LIBRARY is not None
    libraries = tmp_path_factory.mktemp("lib")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (libraries / name).symlink_to(LIBRARY)
    build = exported / "cpp" / "build"
    configure = [
        "cmake", "-B", build, "-S", exported / "cpp", f"-DONNXRUNTIME_INCLUDE={HEADERS[0].parent}",
        f"-DONNXRUNTIME_LIBRARY={libraries / 'libonnxruntime.so'}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        "-DCMAKE_CXX_FLAGS=-Werror",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", build]):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return build / "classify"


def test_the_proof_holds(program: Path) -> None:
    assert_holds([program], program.parent)


def test_a_spoiled_model_fails_the_proof(program: Path, spoiled: Path) -> None:
    built = spoiled / "cpp" / "build" / "classify"
    built.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, built)
    assert_fails([built], spoiled)


def test_every_jpeg_and_png_is_answered_as_the_server_answers_it(
    program: Path, answers: dict[str, dict[str, float]]
) -> None:
    photos = [photo for photo in IMAGES if photo.suffix in (".jpg", ".png")]
    command = [program, *photos]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=SECONDS)
    rows = dict(line.rsplit(": ", 1) for line in ended.stdout.splitlines())
    otherwise = {
        "f03_gray16_300x300.png",  # 16 bits of gray, which Pillow cuts off
        "h00_cmyk_400x300.jpg", "h01_ycck_gray_prog_600x400.jpg",  # libjpeg converts no CMYK
    }  # fmt: skip
    for photo in photos:
        if photo.name in answers and photo.name not in otherwise:
            best = max(answers[photo.name], key=answers[photo.name].__getitem__)
            label, share = rows[str(photo)].rstrip("%)").split(" (")
            assert label == best
            assert float(share) == pytest.approx(100 * answers[photo.name][best], abs=0.15)


@pytest.mark.skipif(not shutil.which("clang-format"), reason="clang-format is missing")
def test_clang_format_has_nothing_to_change(exported: Path) -> None:
    files = [*(exported / "cpp").glob("*.cpp"), *(exported / "cpp").glob("*.hpp")]
    ended = subprocess.run(["clang-format", "--dry-run", "--Werror", *files], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.exhaustive
@pytest.mark.skipif(not shutil.which("clang-tidy"), reason="clang-tidy is missing")
def test_clang_tidy_has_nothing_to_say(program: Path) -> None:
    sources = sorted(map(str, (program.parent.parent).glob("*.cpp")))
    command = ["clang-tidy", "--quiet", "-p", str(program.parent), *sources]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert (ended.returncode, ended.stdout) == (0, "")
