"""The server everybody writes first: fastai's own `learn.predict` inside the handler. What ours is measured
against.

    python benchmarks/naive.py --port 8081 export.pkl

`--make FOLDER` writes the files that the servers serve: stage-2.pth, export.pkl, proof.json, plain.onnx as
torch.onnx.export writes it, and answers.json with the predictions of `learn.predict`.
"""

import argparse
import base64
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.graphs.bodies import import_fastai  # noqa: E402  torchvision made importable with any build of torch

PICTURES = ROOT / "tests" / "data" / "images"
CLASSES = ("black", "grizzly", "teddys")


def create_app(export: Path) -> Starlette:
    """Load the learner, then serve it."""
    vision = import_fastai()
    learn = vision.load_learner(export)

    async def analyze(request: Request) -> JSONResponse:
        form = await request.form()
        photo = vision.PILImage.create(io.BytesIO(await form["file"].read()))
        with learn.no_bar(), learn.no_logging():
            label, _, probabilities = learn.predict(photo)
        return JSONResponse({"result": str(label), "confidence": float(max(probabilities))})

    return Starlette(routes=[Route("/analyze", analyze, methods=["POST"])])


def make(folder: Path, architecture: str) -> None:
    """A network of three classes as `vision_learner` makes it, saved in each way, and a proof of it.

    It learns a dozen pictures by heart, so that its answers are as decided as a trained network's are.
    """
    vision = import_fastai()
    vision.set_seed(7)
    photos = sorted(PICTURES.iterdir())[:12]
    dls = vision.ImageDataLoaders.from_lists(
        PICTURES,
        photos,
        [CLASSES[i % len(CLASSES)] for i in range(len(photos))],
        valid_pct=0,
        item_tfms=vision.Resize(224),
        batch_tfms=[vision.Normalize.from_stats(*vision.imagenet_stats)],
        bs=6,
        num_workers=0,
    )
    constructor = getattr(vision.models, architecture, architecture)  # timm's go by their names
    learn = vision.vision_learner(dls, constructor, pretrained=False)
    learn.path, learn.model_dir = folder, "."
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(40, 1e-3)
    learn.save("stage-2", with_opt=False)
    learn.export("export.pkl")
    torch = importlib.import_module("torch")
    pixels = torch.zeros(1, 3, 224, 224)
    torch.onnx.export(
        learn.model.eval(), (pixels,), folder / "plain.onnx", dynamo=True, external_data=False, verbose=False
    )
    proof, answers = [], dict[str, Any]()
    with learn.no_bar(), learn.no_logging():
        for photo in sorted(PICTURES.iterdir()):
            label, _, probabilities = learn.predict(photo)
            answers[photo.name] = {"result": str(label), "confidence": float(max(probabilities))}
            if photo in photos:
                content = base64.b64encode(photo.read_bytes()).decode()
                proof.append({"name": photo.name, "photo": content, "probabilities": probabilities.tolist()})
    (folder / "proof.json").write_text(json.dumps({"classes": CLASSES, "photos": proof}))
    (folder / "answers.json").write_text(json.dumps(answers))  # last: with it the folder is complete


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--make", action="store_true", help="write the files instead of serving")
    parser.add_argument("--architecture", default="resnet34", help="of the files")
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    if options.make:
        make(options.path, options.architecture)
    else:
        uvicorn.run(create_app(options.path), port=options.port, log_level="warning")
