"""Files that people deploy instead of a checkpoint: the name of each, and the remedy.

Tells them by their first bytes, by the names in an archive, or by the one object in a pickle.
"""

from collections.abc import Collection
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final

from app.checkpoints.archives import EXPECTED, SAVE, SHOWN, inside, listed, tar_content
from app.checkpoints.records import Call, Global, Tensor
from app.errors import CheckpointError, NotAClassifier, UnsafeCheckpoint, plain

SAVE_AGAIN: Final = "save the weights with learn.save('stage-2', with_opt=False) and deploy that file"
ELSEWHERE: Final = "Use it in Python, with the library that trained it"
PAGE: Final = ("a web page", "use the link that downloads the file itself, not the page that shows it")
UNPACK: Final = "unpack it and deploy the file inside"
CONVERTED: Final = "deploy the network that it was converted from"
KERAS: Final = "convert the model to ONNX with tf2onnx, and deploy that"
REFUSED: Final = "the host refused the download: check the link in a private browser window"
# By the first bytes (lower case).
NON_CHECKPOINT_SIGNATURES: Final = (
    (b"version https://git-lfs", "a git-lfs pointer", "run `git lfs pull`, or link to the file itself"),
    (b"<!doctype", *PAGE),
    (b"<html", *PAGE),
    (b'<?xml version="1.0"?><net ', "a network of OpenVINO", CONVERTED),
    (b"<?xml", "an XML answer", REFUSED),
    (b"<", *PAGE),
    (b'{"cells"', "a notebook", SAVE),
    (b'{"architectures"', "a config.json", "deploy the model.safetensors beside it"),
    (b"{", "a JSON text", "if it came from a link, the host refused the download; else deploy the weights"),
    (b"\x89hdf", "an HDF5 file, as Keras writes", KERAS),
    (b"\x93numpy", "a numpy array", SAVE),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"x^", "compressed, as joblib writes models of scikit-learn", SAVE),
    (b"x\x9c", "compressed, as joblib writes models of scikit-learn", SAVE),
    (b"x\xda", "compressed, as joblib writes models of scikit-learn", SAVE),
    (b"bzh", "a bzip2 archive", UNPACK),
    (b"\xfd7zxz", "an xz archive", UNPACK),
    (b"(\xb5/\xfd", "a Zstandard archive", UNPACK),
    (b"uesdb", "a zip file in base64", "decode it, and deploy the result"),
    (b"gguf", "a language model of llama.cpp", "use it there"),
    (b"ftrt", "an engine of TensorRT", CONVERTED),
    (b"\xef\xbf\xbd", "changed by a program that took it for text", "copy it again, in binary mode"),
    (b"rar!", "a RAR archive", UNPACK),
    (b"7z\xbc\xaf", "a 7-Zip archive", UNPACK),
    (b"%pdf", "a PDF document", SAVE),
    (b"\xff\xd8\xff", "a JPEG picture", SAVE),
    (b"\x89png", "a PNG picture", SAVE),
)
# By the names in a zip: the last part of one, its kind, the remedy.
ARCHIVES: Final = (
    ("model.weights.h5", "a Keras model", KERAS),
    ("saved_model.pb", "a SavedModel of TensorFlow", KERAS),
    ("_stable_baselines3_version", "an agent of stable-baselines3, not a classifier of photos", SAVE),
    ("model_params.json", "a model of pytorch-tabnet, which takes rows of a table", SAVE),
    ("[Content_Types].xml", "a document of an office program", SAVE),
    ("MANIFEST.json", "a TorchServe archive", UNPACK),
    ("Manifest.json", "a Core ML package", CONVERTED),
    ("model.json", "a model of TensorFlow.js", CONVERTED),
)
OBJECTS: Final = {  # packages whose objects people pickle: their name, and the remedy
    "sklearn": ("scikit-learn", "it takes rows of numbers, not photos"),
    "joblib": ("joblib, as scikit-learn saves its models", "they take rows of numbers, not photos"),
    "xgboost": ("XGBoost", "it takes rows of numbers, not photos"),
    "lightgbm": ("LightGBM", "it takes rows of numbers, not photos"),
    "catboost": ("CatBoost", "it takes rows of numbers, not photos"),
    "pandas": ("pandas", "that is a table"),
    "keras": ("Keras", KERAS),
    "tensorflow": ("TensorFlow", KERAS),
    "PIL": ("Pillow", "that is a picture"),
    "transformers": (
        "Hugging Face's transformers",
        "save the network with model.save_pretrained('folder'), and deploy model.safetensors from there",
    ),
}
OPTIMIZER: Final = (
    "The file holds the state of an optimizer alone, without the weights of the network. Save those: "
    "learn.save('stage-2'), or torch.save(model.state_dict(), 'model.pth')."
)


def check_start(start: bytes, path: Path) -> None:
    """Raise CheckpointError, naming the format, for a file whose first bytes are not a checkpoint's."""
    if not start.strip(b"\0"):
        found, remedy = ("full of zeros" if start else "empty"), "the copy was cut short: upload it again"
    elif in_archive := tar_content(path, start):
        found, remedy = in_archive
    elif start[4:8] == b"TFL3":
        found, remedy = "a model of TensorFlow Lite", CONVERTED
    else:
        found, remedy = _signature(start)
    raise CheckpointError(f"The file is {found}, but {EXPECTED}: {remedy}.")


def _signature(start: bytes) -> tuple[str, str]:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"{"):
        text = b"".join(text.split())
    if text.startswith(b"<?xml"):
        text = text.replace(b"\n", b"").replace(b"\r", b"")
    for signature, found, remedy in NON_CHECKPOINT_SIGNATURES:
        if text.startswith(signature):
            return found, remedy
    shown = start[:16].decode("latin-1").encode("unicode_escape").decode("ascii")
    return f"not one that torch writes (it begins with '{shown}')", SAVE_AGAIN


def other_zip(names: Collection[str]) -> CheckpointError:
    """Make the error for a zip without the data.pkl of torch, by the names in it."""
    names = [name for name in names if not name.startswith("__MACOSX/")]
    last = {PurePosixPath(name).name for name in names}
    for name, found, remedy in ARCHIVES:
        if name in last:
            remedy = inside(names) if remedy == UNPACK else remedy
            return CheckpointError(f"The file is {found}, but {EXPECTED}: {remedy}.")
    if names and all(name.endswith(".npy") for name in names):
        return CheckpointError(f"The file is a numpy archive of {listed(names)}, but {EXPECTED}: {SAVE}.")
    if any("aotinductor" in name for name in names):
        return CheckpointError(
            "The file is a network compiled by AOTInductor: it holds machine code in place of named weights. "
            "Deploy the file of torch.save(model.state_dict(), 'model.pth')."
        )
    return CheckpointError(
        f"The file is a zip file of {listed(names)}, without the data.pkl that torch writes; "
        f"{EXPECTED}: {inside(names)}."
    )


def unsafe(name: Global) -> CheckpointError:
    """Make the error for a pickle that names code which acts."""
    package = name.module.partition(".")[0]
    if name.name == "_get_layout":
        return CheckpointError(
            "The file holds sparse tensors, which are not read: save them dense, with tensor.to_dense()."
        )
    if package in OBJECTS:
        library, remedy = OBJECTS[package]
        return NotAClassifier(f"The file holds objects of {library}: {remedy}.")
    return UnsafeCheckpoint(
        f"The file names {plain(name)}, which no model has a use for; nothing of it was run. If you "
        f"trained this model, {SAVE_AGAIN}."
    )


def other_object(tree: Any) -> CheckpointError:
    """Make the error for a pickle that is neither weights nor a network."""
    if isinstance(tree, dict):
        return _other_dict(tree)
    package = str(tree.callee).partition(".")[0] if isinstance(tree, Call) else ""
    if isinstance(tree, Call) and str(tree.callee).startswith("torch.optim."):
        return CheckpointError(OPTIMIZER)
    if package in OBJECTS:
        library, remedy = OBJECTS[package]
        return NotAClassifier(f"The file holds an object of {library} ({plain(tree.callee)}): {remedy}.")
    return CheckpointError(f"The file holds {_described(tree)}, but {EXPECTED}: {SAVE_AGAIN}.")


def _other_dict(tree: dict[Any, Any]) -> CheckpointError:
    optimizers = [name for name, value in [("", tree), *tree.items()] if _is_optimizer(value)]
    if optimizers:
        return CheckpointError(OPTIMIZER)
    arrays = sum(isinstance(each, Call) and each.name == "_reconstruct" for each in tree.values())
    found = "numpy arrays in place of torch's tensors" if arrays else "no tensors"
    return CheckpointError(
        f"The file holds {found} (its entries: {listed([str(name) for name in tree])}), but {EXPECTED}: "
        f"{SAVE_AGAIN}."
    )


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"state", "param_groups"}


def _described(tree: Any) -> str:
    match tree:
        case Tensor(size=size):
            return f"one tensor of {size}"
        case list() | tuple() if tree and all(isinstance(item, str) for item in tree):
            return f"a list of {len(tree)} texts ({listed(tree)})"
        case list() | tuple():
            kinds = sorted({_described(item) for item in islice(tree, SHOWN)})
            return f"a list of {len(tree)} ({listed(kinds)})"
        case Call(callee=Global(name="_reconstruct" | "scalar")):
            return "a numpy array"
        case Call():
            return f"an object {plain(tree.callee)}"
        case None:
            return "nothing (None)"
        case str():
            return "a text"
    return f"a {type(tree).__name__}"
