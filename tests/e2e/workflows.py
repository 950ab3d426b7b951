"""Small workflows on the tiny models, in API format."""

from ..nodes.tiny_models import FILES


def node(kind: str, **inputs) -> dict:
    """One node of ours."""
    return {"class_type": f"GANInversion{kind}", "inputs": inputs}


def core(kind: str, **inputs) -> dict:
    """One node of ComfyUI's."""
    return {"class_type": kind, "inputs": inputs}


def sampled(model: str = FILES["portraits"], dtype: str = "auto", **sample) -> dict:
    """Random pictures: "g", "sample", "render", "save"."""
    return {
        "g": node("LoadStyleGAN", model=model, dtype=dtype),
        "sample": node("Sample", generator=["g", 0], **sample),
        "render": node("Render", inversion=["sample", 0]),
        "save": core("SaveImage", images=["render", 0], filename_prefix="sampled"),
    }


def edited(photo: str = "photo.png", strength: float = 2.0, **paste) -> dict:
    """A photograph edited and put back: "photo", "align", "encode", "slider", "render", "paste", "save", "report"."""
    return {
        "photo": core("LoadImage", image=photo),
        "g": node("LoadStyleGAN", model=FILES["portraits"]),
        "e": node("LoadEncoder", model=FILES["portraits-e4e"]),
        "align": node("AlignFace", image=["photo", 0], generator=["g", 0]),
        "encode": node("Encode", image=["align", 0], encoder=["e", 0], generator=["g", 0], crop=["align", 1]),
        "direction": node("LoadDirection", direction=FILES["portraits-smile"]),
        "slider": node("ApplyDirection", inversion=["encode", 0], direction=["direction", 0], strength=strength),
        "render": node("Render", inversion=["slider", 0]),
        "paste": node("PasteBack", photo=["photo", 0], edited=["render", 0], crop=["align", 1], **paste),
        "save": core("SaveImage", images=["paste", 0], filename_prefix="edited"),
        "report": core("PreviewAny", source=["align", 3]),
    }
