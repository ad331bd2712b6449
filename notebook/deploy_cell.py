# fastai-now: paste this into a notebook cell below your trained `learn` (fastai v2) and run it. It writes
# stage-2.pth (the weights), settings.toml (how your notebook makes pixels) and proof.json (what it says to a
# dozen of your photos: the server checks itself against that before it answers anybody).
import base64, io, json, torch
from fastai.vision.all import *

def deploy(learn, photos=12, side=512):
    valid, stats = learn.dls.valid, [[0.0] * 3, [1.0] * 3]  # where nothing normalizes
    pair = lambda size: [size, size] if isinstance(size, int) else list(size)  # height, width
    out = {"model_url": "stage-2.pth", "proof_url": "proof.json", "classes": [str(c) for c in learn.dls.vocab]}
    if arch := getattr(learn, "arch", None): out["architecture"] = getattr(arch, "__name__", arch)
    for t in [*valid.after_item.fs, *valid.after_batch.fs]:
        if isinstance(t, RandomResizedCrop) and t.mode == Resize.mode:
            out |= {"pipeline": "random_resized_crop", "image_size": pair(t.size)[::-1], "val_xtra": t.val_xtra}
        elif isinstance(t, Resize) and t.mode == Resize.mode:
            out |= {"pipeline": "resize", "image_size": pair(t.size)[::-1]}
            out |= {"resize_method": t.method, "pad_mode": t.pad_mode}
        elif isinstance(t, AffineCoordTfm) and not t.size:
            pass  # at validation it moves nothing
        elif isinstance(t, AffineCoordTfm) and out.get("pipeline") == "resize" and t.mode == "bilinear":
            out |= {"pipeline": "presize", "presize": out["image_size"], "image_size": pair(t.size)}
        elif isinstance(t, Normalize):
            stats = [x.flatten().tolist() for x in (t.mean, t.std)]
        elif t.split_idx != 0 and not isinstance(t, (ToTensor, IntToFloatTensor)):
            raise NotImplementedError(f"fastai-now does not know how to repeat {t}: deploy without it")
    if hasattr(learn.model[0], "needs_pool"):  # timm's, of which some have names and shapes alike
        out["architecture"] = learn.model[0].model.default_cfg["architecture"]
    out |= {"mean": stats[0], "std": stats[1], "exif": "ignore"}  # fastai ignores EXIF
    if isinstance(learn.loss_func, BCEWithLogitsLossFlat):
        out |= {"multi_label": True, "threshold": learn.loss_func.thresh}
    proof = {"classes": out["classes"], "photos": []}
    count = len(valid.dataset)
    for i in range(0, count, max(1, count // photos))[:photos]:  # from all over: folders come class by class
        image, file = valid.dataset.tls[0][i], io.BytesIO()  # as the notebook reads it, before any transform
        image.thumbnail((side, side))
        image.save(file, "PNG")
        with learn.no_bar(), learn.no_logging():
            said = learn.predict(PILImage.create(io.BytesIO(file.getvalue())))[2].tolist()
        photo = base64.b64encode(file.getvalue()).decode()
        proof["photos"].append({"name": f"validation-{i}.png", "photo": photo, "probabilities": said})
    torch.save(learn.model.state_dict(), "stage-2.pth")
    Path("proof.json").write_text(json.dumps(proof))
    Path("settings.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in out.items()))
    print("Upload stage-2.pth and proof.json, and put their links into these two lines of settings.toml:")
    print('model_url = "https://..."\nproof_url = "https://..."')

deploy(learn)
