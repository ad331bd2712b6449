# fastai-now: paste this into a notebook cell below your trained `learn` (fastai v2) and run it. It writes
# stage-2.pth (the weights), settings.toml (how your notebook makes pixels), samples/ (a photo of each class) and
# proof.json (what it says to a dozen of your photos: the server refuses to start unless it says the same).
import base64, inspect, io, json, re, PIL, torch
from fastai.vision.all import *

def deploy(learn, photos=12, side=512, folder="."):
    folder = Path(folder)
    valid, vocab, loss = learn.dls.valid, [str(c) for c in learn.dls.vocab], learn.loss_func
    settings = {"model_url": "stage-2.pth", "proof_url": "proof.json", "classes": vocab, "samples": "samples"}
    settings |= {"exif": "ignore", "pillow": PIL.__version__}  # fastai ignores EXIF; Pillow's rounding changed
    attributes = {  # what matters of each transform at validation; sizes of the first four are (width, height)
        "Resize": "size method pad_mode resamples", "RandomResizedCrop": "size val_xtra resamples",
        "CropPad": "size pad_mode", "RandomCrop": "size", "RatioResize": "max_sz resamples",
        "RandomResizedCropGPU": "size ratio mode valid_scale"}

    def plain(value):
        return tuple(map(plain, value)) if isinstance(value, (tuple, list, L)) else getattr(value, "value", value)

    def written(t):
        name, affine = type(t).__name__, isinstance(t, AffineCoordTfm)
        if (t.split_idx == 0 and not affine) or isinstance(t, (ToTensor, IntToFloatTensor, Normalize)) or t.name == "noop":
            return ""  # it does nothing at validation, or is said otherwise
        if not type(t).__module__.startswith("fastai") or not (affine or name in attributes):
            raise NotImplementedError(f"fastai-now does not know how to repeat {t.name}: deploy without it")
        found = {k: plain(getattr(t, k)) for k in attributes.get(name, "size mode pad_mode align_corners").split()}
        if name in list(attributes)[:4]: found["size"] = found["size"][::-1]
        usual = {k: plain(p.default) for k, p in inspect.signature(type(t)).parameters.items()}
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in found.items() if k not in usual or v != usual[k])})"

    for name, pipeline in (("item_tfms", valid.after_item), ("batch_tfms", valid.after_batch)):
        settings[name] = f"[{', '.join(filter(None, map(written, pipeline.fs)))}]"
    mean, std = torch.zeros(3), torch.ones(3)
    for t in valid.after_batch.fs:  # all that scales pixels, in turn, as one Normalize of pixels in 0..1
        if isinstance(t, IntToFloatTensor): std *= t.div / 255
        if isinstance(t, Normalize):
            a, b = t.mean.flatten().cpu(), t.std.flatten().cpu()
            mean, std = mean[:len(a)] + std[:len(a)] * a, std[:len(a)] * b
    settings |= {"mean": [round(x, 6) for x in mean.tolist()], "std": [round(x, 6) for x in std.tolist()]}
    *before, opener = valid.dataset.tls[0].tfms.fs
    if not opener.name.endswith("create"):
        raise NotImplementedError(f"fastai-now does not know how to repeat {opener.name}: open photos by PILImage.create")
    settings["gray"] = isinstance(valid.dataset.tls[0][0], PILImageBW)
    if arch := getattr(learn, "arch", None): settings["architecture"] = getattr(arch, "__name__", arch)
    if hasattr(learn.model[0], "needs_pool"):  # timm's, of which some have names and shapes alike
        settings["architecture"] = learn.model[0].model.default_cfg["architecture"]
    names = {type(loss).__name__, getattr(loss, "__name__", ""), type(getattr(loss, "func", None)).__name__}
    several = any("BCEWithLogits" in name or "binary_cross_entropy_with_logits" in name for name in names)
    if several: settings |= {"multi_label": True, "threshold": getattr(loss, "thresh", 0.5)}

    def probabilities(data):  # of losses that are not fastai's, predict gives the scores before the activation
        with learn.no_bar(), learn.no_logging(): said = learn.predict(data)[2]
        if several: return said if 0 <= said.min() and said.max() <= 1 else said.sigmoid()
        return said if said.min() >= 0 and abs(said.sum() - 1) < 1e-3 else said.softmax(0)

    proof, items = {"classes": vocab, "photos": []}, valid.dataset.tls[0].items
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    chosen = list(range(0, len(items), max(1, len(items) // photos))[:photos])  # from all over: folders come by class
    for i in chosen:
        item, file = items[i], io.BytesIO()
        for t in before: item = t(item)
        image = PILImage.create(item)  # in color, also for a network that will see gray, as photos come
        image.thumbnail((side, side))
        image.save(file, "PNG")
        scores = probabilities(file.getvalue())
        photo = {"name": f"validation-{i}.png", "photo": base64.b64encode(file.getvalue()).decode()}
        proof["photos"].append({**photo, "probabilities": scores.tolist()})
        sample = folder / "samples" / (re.sub(r"[^\w-]+", "_", vocab[int(scores.argmax())]) + ".jpg")
        if not sample.exists() and len(list(sample.parent.iterdir())) < 6: image.convert("RGB").save(sample)
    head = list(learn.model.children())[-1]  # familiarity is the cosine similarity of pooled features to the proof's
    if isinstance(next(head.children(), None), (AdaptiveConcatPool2d, nn.AdaptiveAvgPool2d)):
        rows, first = [], next(m for m in head.modules() if isinstance(m, (nn.BatchNorm1d, nn.Linear)))
        hook = first.register_forward_pre_hook(lambda _, given: rows.append(given[0].detach().cpu()))
        with learn.no_bar(), learn.no_logging(): learn.get_preds(dl=valid)
        hook.remove()
        features = F.normalize(torch.cat(rows))
        similar = features @ features[chosen].T
        similar[chosen, range(len(chosen))] = -1  # a photo of the proof is not compared with itself
        ranked = similar.max(1).values.sort().values
        limit = max(0.0, int(1000 * ranked[len(ranked) // 20]) / 1000)  # at most a twentieth is below it
        settings["unfamiliar_below"] = limit
        print(f"unfamiliar_below = {limit}: {int((ranked < limit).sum())} of {len(ranked)} validation photos are below")
    torch.save(learn.model.state_dict(), folder / "stage-2.pth")
    (folder / "proof.json").write_text(json.dumps(proof))
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    (folder / "settings.toml").write_text("".join(lines))

if __name__ == "__main__":  # in a notebook
    deploy(learn)
    print("Upload stage-2.pth and proof.json, and put their links into these two lines of settings.toml:")
    print('model_url = "https://..."\nproof_url = "https://..."')
