# fastai-now: paste this into a notebook cell below your trained `learn` (fastai v1: 1.0.50 to 1.0.61) and run it.
# It writes stage-2.pth (the weights), settings.toml (how your notebook makes pixels), samples/ (a photo of each
# class) and proof.json (what it says to a dozen of your photos: the server refuses to start unless it says the same).
import base64, io, json, re, PIL, torch
from fastai.vision import *

def deploy(learn, photos=12, side=512, folder="."):
    folder = Path(folder)
    data, loss = learn.data, learn.loss_func
    valid, classes = data.valid_ds, [str(c) for c in data.classes]
    settings = {"model_url": "stage-2.pth", "proof_url": "proof.json", "classes": classes, "samples": "samples",
                "exif": "ignore"}  # fastai ignores EXIF
    for t in valid.tfms or []:  # what runs at validation beside the crop of get_transforms()
        name = t.tfm.func.__name__
        if name != "crop_pad" or any(t.kwargs.get(place, 0.5) != 0.5 for place in ("row_pct", "col_pct")):
            raise NotImplementedError(f"fastai-now does not know how to repeat {name} at validation: deploy without it")
    given = valid.tfmargs or {}
    if given.get("mode", "bilinear") != "bilinear":
        raise NotImplementedError(f"fastai-now does not know how to repeat mode={given['mode']!r}: deploy without it")
    written = ["get_transforms()", f"size={given.get('size')!r}"]
    if given.get("resize_method") is not None:
        written.append("resize_method=ResizeMethod." + ResizeMethod(given["resize_method"]).name)
    for name in ("padding_mode", "mult"):
        if given.get(name) is not None: written.append(f"{name}={given[name]!r}")
    settings["ds_tfms"] = ", ".join(written)
    stats = getattr(data, "stats", None) or ([0.0] * 3, [1.0] * 3)  # where nothing normalizes
    settings["mean"], settings["std"] = [[float(x) for x in numbers] for numbers in stats]
    names = {type(loss).__name__, getattr(loss, "__name__", ""), type(getattr(loss, "func", None)).__name__}
    several = any("BCEWithLogits" in name or "binary_cross_entropy_with_logits" in name for name in names)
    if several: settings.update(multi_label=True, threshold=getattr(loss, "thresh", 0.5))

    def probabilities(image):  # with a loss that is not fastai's, predict gives the scores before the activation
        said = learn.predict(image)[2]
        if several: return said if 0 <= said.min() and said.max() <= 1 else said.sigmoid()
        return said if said.min() >= 0 and abs(said.sum() - 1) < 1e-3 else said.softmax(0)

    proof, items = {"classes": classes, "photos": []}, valid.x.items
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    chosen = list(range(0, len(items), max(1, len(items) // photos))[:photos])  # from all over: folders come by class
    for i in chosen:
        image, file = PIL.Image.open(str(items[i])).convert("RGB"), io.BytesIO()
        image.thumbnail((side, side))
        image.save(file, "PNG")
        scores = probabilities(open_image(io.BytesIO(file.getvalue())))
        photo = {"name": f"validation-{i}.png", "photo": base64.b64encode(file.getvalue()).decode()}
        proof["photos"].append({**photo, "probabilities": [float(score) for score in scores]})
        sample = folder / "samples" / (re.sub(r"[^\w-]+", "_", classes[int(scores.argmax())]) + ".jpg")
        if not sample.exists() and len(list(sample.parent.iterdir())) < 6: image.save(str(sample))
    head = list(learn.model.children())[-1]  # familiarity is the cosine similarity of pooled features to the proof's
    if isinstance(next(head.children(), None), (AdaptiveConcatPool2d, nn.AdaptiveAvgPool2d)):
        rows, first = [], next(m for m in head.modules() if isinstance(m, (nn.BatchNorm1d, nn.Linear)))
        hook = first.register_forward_pre_hook(lambda _, given: rows.append(given[0].detach().cpu()))
        learn.get_preds(ds_type=DatasetType.Valid)
        hook.remove()
        features = F.normalize(torch.cat(rows))
        similar = features @ features[chosen].t()
        similar[chosen, list(range(len(chosen)))] = -1  # a photo of the proof is not compared with itself
        ranked = similar.max(1)[0].sort()[0]
        limit = max(0.0, int(1000 * float(ranked[len(ranked) // 20])) / 1000)  # at most a twentieth is below it
        settings["unfamiliar_below"] = limit
        print(f"unfamiliar_below = {limit}: {int((ranked < limit).sum())} of {len(ranked)} validation photos are below")
    torch.save(learn.model.state_dict(), str(folder / "stage-2.pth"))
    (folder / "proof.json").write_text(json.dumps(proof))
    (folder / "settings.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))

if __name__ == "__main__":  # in a notebook
    deploy(learn)
    print("Upload stage-2.pth and proof.json, and put their links into these two lines of settings.toml:")
    print('model_url = "https://..."\nproof_url = "https://..."')
