"""The fastai learner, rebuilt from a checkpoint: the 2019 starter pack taken literally, and the reference.

Imports torch and fastai, and only inside its functions.
"""

import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from app.engines.contract import Network, Output, Prepare, Run
from app.engines.head import Head, sigmoid, softmax
from app.engines.layers import BatchNorm, Linear
from app.errors import ArchitectureUnknown, Int8Unavailable, plain
from app.graphs.bodies import create_body, import_fastai
from app.photos.steps import PictureStep
from app.photos.transforms import Preprocess
from app.types import Float32

if TYPE_CHECKING:
    import torch


def rebuild(network: Network) -> "torch.nn.Module":
    """Return fastai's model with the checkpoint's weights, ready to evaluate.

    Raises ArchitectureUnknown where fastai does not make such a network, ToolMissing.
    """
    vision = import_fastai()
    torch = importlib.import_module("torch")
    arrays, head = network.arrays, network.head
    if head.generation == 0:
        raise ArchitectureUnknown(
            'engine = "fastai" rebuilds networks with a head by fastai\'s create_head, and this one has '
            "another: take engine out of the settings."
        )
    body = create_body(network.architecture)
    head_module = vision.create_head(
        network.graph.channels,
        head.outputs,
        lin_ftrs=[layer.weight.shape[0] for layer in head.layers if isinstance(layer, Linear)][:-1],
        pool=head.pool != "none",
        concat_pool=head.pool == "concat",
        first_bn=isinstance(head.layers[0], BatchNorm),
        bn_final=isinstance(head.layers[-1], BatchNorm),
    )
    for index, module in enumerate(head_module):
        if f"1.{index}.bias" in arrays and getattr(module, "bias", 0) is None:  # v1 gave every Linear a bias
            module.bias = torch.nn.Parameter(torch.zeros(module.out_features))
    model = torch.nn.Sequential(body, head_module).eval()
    try:
        model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    except RuntimeError as error:
        raise ArchitectureUnknown(f"The file is not a {network.architecture}: {plain(error)}") from error
    return model  # type: ignore[no-any-return]


class LearnerEngine:
    """The 2019 starter pack taken literally: fastai's model, its own transforms, the class list, torch."""

    name = "fastai"
    packages = ("fastai", "torch")
    callers = 1
    exact = True  # the reference
    predict_with_features = None  # one learner cannot do that while it predicts

    def __init__(self, network: Network, classes: Sequence[str], multi_label: bool = False) -> None:
        self._model = rebuild(network)
        self._head = network.head
        self._classes = classes
        self._multi_label = multi_label

    def bind(self, preprocess: Preprocess) -> tuple[Prepare, Run]:
        """Return the two functions of a Learner with this pipeline."""
        bound = BoundLearner(self._model, self._head, self._classes, preprocess, self._multi_label)
        return bound.prepare, bound.run

    def quantized(self, pixels: Iterable[Float32]) -> "LearnerEngine":
        """Raise Int8Unavailable."""
        raise Int8Unavailable('engine = "fastai" computes as the notebook does')


def load(network: Network, classes: Sequence[str], multi_label: bool) -> LearnerEngine:
    """Return the engine of a recognized network. Raises ArchitectureUnknown, ToolMissing."""
    return LearnerEngine(network, classes, multi_label)


class BoundLearner:
    """A fastai `Learner` with the transforms of one pipeline."""

    def __init__(
        self,
        model: "torch.nn.Module",
        head: Head,
        classes: Sequence[str],
        preprocess: Preprocess,
        multi_label: bool,
    ) -> None:
        vision = import_fastai()
        self._torch = importlib.import_module("torch")
        self._head = head
        self._preprocess = preprocess
        self._native = _has_transforms(vision, preprocess)
        dls = _dataloaders(vision, classes, preprocess if self._native else Preprocess())
        loss = vision.BCEWithLogitsLossFlat() if multi_label else vision.CrossEntropyLossFlat()
        self._activation = sigmoid if multi_label else softmax
        # get_preds takes the activation from the loss
        self._learn = vision.Learner(dls, model, loss_func=loss)

    def prepare(self, image: Image.Image) -> Any:
        """A photo as `run` takes it: as it is, or as pixels where fastai v2 does not have the steps."""
        if not self._native:
            return self._preprocess(image)
        return image.convert(self._preprocess.mode)

    def run(self, items: Sequence[Any]) -> list[Output]:
        """N prepared photos -> N answers."""
        maps: list[Float32] = []  # of the body, batch by batch
        hook = self._learn.model[0].register_forward_hook(lambda *call: maps.append(call[2].numpy()))
        try:
            probabilities = self._probabilities(items)
        finally:
            hook.remove()
        features = self._head.pooled(np.concatenate(maps))
        return [Output(*both) for both in zip(probabilities, features, strict=True)]

    def _probabilities(self, items: Sequence[Any]) -> Float32:
        if not self._native:
            with self._torch.no_grad():  # one by one: photos may come in sizes of their own
                color = [item if len(item) == 3 else np.repeat(item, 3, axis=0) for item in items]
                logits = [self._learn.model(self._torch.from_numpy(item[np.newaxis])) for item in color]
                return self._activation(self._torch.cat(logits).numpy())
        with self._learn.no_bar(), self._learn.no_logging():
            batches = self._learn.dls.test_dl([np.asarray(image) for image in items], num_workers=0)
            return self._learn.get_preds(dl=batches)[0].numpy()  # type: ignore[no-any-return]


def _has_transforms(vision: Any, preprocess: Preprocess) -> bool:
    """Whether fastai's own transforms make the pixels of a pipeline here and now.

    They do not where a gray network is rebuilt for color, with weights of zero; where a DataBlock would keep
    only one of two steps of a class; and where the installed Pillow rounds otherwise than the notebook's.
    """
    steps = preprocess.steps
    gray = preprocess.mode == "L" and len(preprocess.mean) == 1
    known = all(hasattr(vision, step.call[0]) for step in steps) and len({*map(type, steps)}) == len(steps)
    return known and not gray and preprocess.as_installed


def _dataloaders(vision: Any, classes: Sequence[str], preprocess: Preprocess) -> Any:
    """fastai's DataLoaders around one black picture: they carry the vocabulary and the transforms, nothing
    else.

    Normalize is added by hand: `vision_learner(pretrained=False)` leaves it out without a word.
    """
    items: list[Any] = []
    batches: list[Any] = []
    for step in preprocess.steps:
        name, arguments = step.call
        made = getattr(vision, name)(**arguments)
        several = made if isinstance(made, list) else [made]
        (items if isinstance(step, PictureStep) else batches).extend(several)
    black = np.zeros((224, 224, 3), np.uint8)
    picture = vision.PILImage if preprocess.mode == "RGB" else vision.PILImageBW
    block = vision.DataBlock(
        blocks=(vision.ImageBlock(picture), vision.CategoryBlock(vocab=list(classes), sort=False)),
        get_x=lambda _: black,
        get_y=lambda _: classes[0],
        splitter=vision.IndexSplitter([1]),
        item_tfms=items,
        batch_tfms=[*batches, vision.Normalize.from_stats(preprocess.mean, preprocess.std)],
    )
    return block.dataloaders([0, 1], bs=1, num_workers=0)
