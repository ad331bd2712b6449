"""`python -m app export`: the folder, its proof, and what is refused."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import requests
from PIL import Image, ImageOps

from tests.conftest import BEARS, DATA, SECONDS, ServerProcess, bears_environment, run_app

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The v1 bears, exported."""
    path = tmp_path_factory.mktemp("export") / "bears"
    ended = run_app("export", str(path), **bears_environment())
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    assert "gives the server's answers to 4 photos, largest difference 0.00000" in ended.stdout
    return path


def proof(folder: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The classes and the rows of answers.tsv."""
    header, *rows = (line.split("\t") for line in (folder / "proof" / "answers.tsv").read_text().splitlines())
    return header[1:], {name: np.array(numbers, float) for name, *numbers in rows}


def test_the_proof_holds_for_a_program_of_three_lines(folder: Path) -> None:
    session = ort.InferenceSession(folder / "model.onnx")
    classes, rows = proof(folder)
    assert classes == list(BEARS)
    assert {name.rpartition(".")[2] for name in rows} == {"ppm", "jpg"}
    for name, expected in rows.items():
        photo = ImageOps.exif_transpose(Image.open(folder / "proof" / name)).convert("RGB")
        found, names = session.run(None, {"image": np.asarray(photo)})
        assert list(names) == classes
        assert np.abs(found - expected).max() <= 1e-5


def test_the_proof_has_the_answers_of_predict(folder: Path) -> None:
    _, rows = proof(folder)
    ended = run_app("predict", "--json", str(folder / "proof" / "photo-1.jpg"), **bears_environment())
    scores = {row["label"]: row["score"] for row in json.loads(ended.stdout)["predictions"]}
    assert [scores[name] for name in BEARS] == pytest.approx(rows["photo-1.jpg"], abs=1e-5)


def test_the_manifest_describes_the_model(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["classes"] == list(BEARS)
    assert manifest["preprocess"]["transforms"] == ["ds_tfms=get_transforms(), size=224"]
    model = onnx.load(str(folder / "model.onnx"))
    assert {each.key: each.value for each in model.metadata_props}["exif"] == manifest["exif"] == "turn"
    assert manifest["onnxruntime"] == ">=1.17"  # which reads up to these:
    assert (model.ir_version, model.opset_import[0].version) <= (9, 20)


def test_the_readme_has_the_classes_and_code_that_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / "README.md").read_text()
    assert "$" not in text
    assert ", ".join(BEARS) in text
    monkeypatch.chdir(folder)
    exec(text.partition("```python\n")[2].partition("```")[0])
    assert capsys.readouterr().out.strip() in BEARS


def test_a_proof_of_the_notebook_is_the_proof_of_the_folder(tmp_path: Path) -> None:
    photo = (DATA / "images" / "a05_640x480.jpg").read_bytes()
    ended = run_app("predict", "--json", str(DATA / "images" / "a05_640x480.jpg"), **bears_environment())
    scores = {row["label"]: row["score"] for row in json.loads(ended.stdout)["predictions"]}
    rows = [
        {
            "name": "../a.jpg",
            "photo": base64.b64encode(photo).decode(),
            "probabilities": [scores[c] for c in BEARS],
        }
    ]
    (tmp_path / "proof.json").write_text(json.dumps({"classes": BEARS, "photos": rows}))
    environment = bears_environment(APP_PROOF_URL=str(tmp_path / "proof.json"))
    ended = run_app("export", str(tmp_path / "out"), **environment)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in (tmp_path / "out" / "proof").iterdir()) == [
        "answers.tsv", "photo-1.jpg", "photo-1.ppm",
    ]  # fmt: skip
    assert (tmp_path / "out" / "proof" / "photo-1.jpg").read_bytes() == photo


def test_the_hidden_files_of_the_programs_are_there(folder: Path) -> None:
    assert "onnxruntime-node-install=skip" in (folder / "node" / ".npmrc").read_text()
    assert (folder / "cpp" / ".clang-format").exists()


def test_an_earlier_export_is_replaced_and_other_files_are_not(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    ended = run_app("export", str(tmp_path), **bears_environment())
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "holds other files: name a folder that is new, empty or an earlier export" in ended.stderr
    assert run_app("export", str(folder), **bears_environment()).returncode == 0
    ended = run_app("export", __file__, **bears_environment())
    assert "is a file; the name of a folder was expected" in ended.stderr


def test_an_onnx_file_is_not_exported_once_more(tmp_path: Path) -> None:
    from tests.engines.test_onnx_file import write

    write(tmp_path, 3, names='["a", "b", "c"]')
    environment = {
        "APP_MODEL_URL": str(tmp_path / "model.onnx"),
        "APP_CLASSES": "a,b,c",
        "APP_IMAGE_SIZE": "32",
    }
    ended = run_app("export", str(tmp_path / "out"), **environment)
    assert ended.returncode == 1
    assert "error:" in ended.stderr


def settings(folder: Path) -> tuple[str, str]:
    """The option for a settings file with one line."""
    (folder / "settings.toml").write_text('model_url = "model.onnx"\n')
    return "--settings", str(folder / "settings.toml")


def test_the_server_answers_with_the_exported_model_as_with_the_checkpoint(folder: Path) -> None:
    photos = [str(DATA / "images" / name) for name in ("a05_640x480.jpg", "e00_rgba_300x300.png")]
    answers = [
        [json.loads(line)["predictions"] for line in ended.stdout.splitlines()]
        for ended in (
            run_app("predict", "--json", *photos, **bears_environment()),
            run_app("predict", "--json", *photos, *settings(folder)),
        )
    ]
    assert len(answers[0]) == len(answers[1]) == 2
    for whole, exported in zip(*answers, strict=True):
        assert [row["label"] for row in whole] == [row["label"] for row in exported]
        assert [row["score"] for row in whole] == pytest.approx([row["score"] for row in exported], abs=1e-5)


def test_the_card_of_an_exported_model_has_its_preprocessing(
    folder: Path, start_server: Callable[..., ServerProcess]
) -> None:
    server = start_server(*settings(folder))
    server.wait_for("ready after")
    assert not any("guessed" in line for line in server.lines)
    card = requests.get(f"{server.url}/model", timeout=SECONDS).json()
    assert card["classes"] == list(BEARS)
    assert card["preprocess"]["transforms"] == ["ds_tfms=get_transforms(), size=224"]
    assert card["preprocess"]["mean"] == [0.485, 0.456, 0.406]


def test_settings_that_would_not_reach_the_pixels_are_refused(folder: Path) -> None:
    ended = run_app("fetch", *settings(folder), APP_RESIZE_METHOD="squish")
    assert ended.returncode == 1
    assert (
        "holds its own preprocessing and answers with probabilities: take resize_method out" in ended.stderr
    )
