"""A small valid file of every format, and the reader that users' files go through."""

import io
import json
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data import DataConfig
from data.catalog.download import unpack
from data.files.flow_formats.flo import write_flo
from data.files.flow_formats.kitti import write_kitti_flow
from data.files.flow_formats.pfm import write_pfm
from data.files.flow_formats.read import read_flow
from data.files.images import read_image, write_image
from data.files.masks import read_foreground, read_mask, write_mask
from data.predictions.labels_csv import score_predictions
from data.segmentation.pascal_context import CATEGORIES, render_masks
from models.pretrained.files import read as read_weights
from mtsp.config import find, load, parse
from mtsp.files.tensors import write_tensors
from mtsp.fisher.estimate import load_fisher, save_fisher
from mtsp.training.checkpoint import atomic_save, storage
from mtsp.transfer.centroids import Centroids

SIZE = (48, 64)
_Y, _X = np.mgrid[: SIZE[0], : SIZE[1]]
PHOTO = np.stack([3 * _X, 5 * _Y, 2 * (_X + _Y)], axis=2).astype(np.uint8)
PHOTO[10:30, 20:50] ^= np.random.default_rng(0).integers(0, 64, (20, 30, 3)).astype(np.uint8)
IDS = ((_X // 9 + _Y // 7) % 5).astype(np.uint8)
FLOW = np.random.default_rng(1).integers(-2000, 2000, (*SIZE, 2)).astype(np.float32) / 64
NAMES = [f"bird {i}" for i in range(12)]


@dataclass(frozen=True)
class Format:
    """A file format: how a file is written, the place of the damaged file, and how it is read."""

    name: str
    file: str
    """Path of the file to damage, inside the folder."""
    write: Callable[[Path], Any]
    """Writes the file, and all that belongs to it, below a folder."""
    read: Callable[[Path], Any]
    """Reads the file at a path and returns its content."""
    silent: str = ""
    """Where the format has no redundancy, so that other content may be read without an error."""


def _pil(mode: str | None = None, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image = Image.fromarray(IDS * 50 if mode == "L" else PHOTO)
        (image.convert(mode) if mode else image).save(path, **options)

    return write


def _image(suffix: str, silent: str = "", mode: str | None = None, **options: Any) -> Format:
    file = f"a.{suffix}"
    name = f"{suffix.upper()} frame" + (f", {', '.join(map(str, options))}" if options else "")
    return Format(name, file, lambda folder: _pil(mode, **options)(folder / file), read_image, silent)


def _dataset(**values: Any) -> Callable[[Path], Any]:
    """Return a reader that builds a data set at the folder of the damaged file, and reads all labels."""

    def read(path: Path) -> Any:
        root = path.parents[values.get("up", 1) - 1]
        settings = {key: value for key, value in values.items() if key != "up"}
        dataset = parse(DataConfig, {"dataset": {"root": str(root), **settings}}).build_dataset()
        return [dataset.labels(i) for i in range(len(dataset))]

    return read


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _davis(folder: Path) -> None:
    frames = [f"480p/{sequence}/{i:05d}" for sequence in ("bear", "camel") for i in range(4)]
    for i, frame in enumerate(frames):
        write_image(_made(folder / f"JPEGImages/{frame}.jpg"), PHOTO)
        write_mask(_made(folder / f"Annotations/{frame}.png"), i % 4 < IDS)
    lines = [f"/JPEGImages/{frame}.jpg /Annotations/{frame}.png\n" for frame in frames]
    _made(folder / "ImageSets/480p/train.txt").write_text("".join(lines))


def _voc(folder: Path) -> None:
    names = [f"2007_{i:06d}" for i in range(12)]
    for name in names:
        write_image(_made(folder / f"JPEGImages/{name}.jpg"), PHOTO)
        write_mask(_made(folder / f"SegmentationClass/{name}.png"), IDS)
    _made(folder / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")


def _chairs(folder: Path) -> None:
    for i in range(1, 13):
        for which in (1, 2):
            write_image(_made(folder / f"data/{i:05d}_img{which}.ppm"), PHOTO)
        write_flo(folder / f"data/{i:05d}_flow.flo", FLOW)
    (folder / "FlyingChairs_train_val.txt").write_text("1\n2\n1\n1\n1\n1\n2\n1\n1\n1\n1\n1\n")


def _birds(folder: Path) -> None:
    for i, name in enumerate(NAMES):
        write_image(_made(folder / f"birds/{name}/{i}.png"), PHOTO)


def _class_list(folder: Path) -> None:
    _birds(folder)
    (folder / "birds/classes.txt").write_text("# classes\n" + "\n".join(NAMES[::2]) + "\n")


def _read_class_list(path: Path) -> Any:
    return _dataset(name="image_folder", classes=str(path))(path)


def _table(folder: Path) -> None:
    _birds(folder)
    rows = [f"{name}/{i},{name},{NAMES[i // 2]},0.5" for i, name in enumerate(NAMES)]
    (folder / "labels.csv").write_text("name,truth,prediction,probability\n" + "\n".join(rows) + "\n")


def _read_table(path: Path) -> Any:
    birds = parse(DataConfig, {"dataset": {"name": "image_folder", "root": str(path.parent / "birds")}})
    return score_predictions(path, birds.build_dataset()).compute()


def _inaturalist(folder: Path) -> None:
    images = [{"id": i, "file_name": f"train_val_images/Aves/{i}.jpg"} for i in range(6)]
    for image in images:
        write_image(_made(folder / image["file_name"]), PHOTO)
    categories = [{"id": i, "name": NAMES[i], "supercategory": "Aves"} for i in range(3)]
    annotations = [{"id": i, "image_id": i, "category_id": i // 2} for i in range(6)]
    found = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train2017.json").write_text(json.dumps(found))


def _context(folder: Path) -> None:
    _made(folder / "VOC2010/JPEGImages/a").touch()
    shape, phases = {"height": 30, "width": 40}, ("train", "val")
    images = [{"image_id": i, "file_name": f"{i}.jpg", "phase": phase, **shape} for i, phase in enumerate(phases)]
    dog = {"category_id": 113, "segmentation": {"size": [30, 40], "counts": [100, 500, 600]}}
    segments = [{"id": 7 + i, "image_id": i, **dog} for i in range(2)]
    categories = [{"category_id": number, "name": name} for number, name in CATEGORIES.items()]
    found = {"images": images, "annos_segmentation": segments, "categories": categories}
    (folder / "trainval_merged.json").write_text(json.dumps(found))


def _read_context(path: Path) -> Any:
    root = path.parent / "VOC2010"
    for made in ("SegmentationClassContext", "ImageSets"):
        shutil.rmtree(root / made, ignore_errors=True)
    render_masks(path, root, published=False)
    masks = sorted((root / "SegmentationClassContext").glob("*.png"))
    return [(mask.name, read_mask(mask)) for mask in masks]


def _flowers(folder: Path) -> None:
    from scipy.io import savemat

    for i in range(1, 105):
        _made(folder / f"jpg/image_{i:05d}.jpg").touch()
    savemat(folder / "imagelabels.mat", {"labels": np.array([[*range(1, 103), 5, 102]])})
    ids = {"trnid": np.arange(1, 52), "valid": np.arange(52, 103), "tstid": np.array([104, 103])}
    savemat(folder / "setid.mat", {key: value[None] for key, value in ids.items()})


def _config(path: Path) -> None:
    path.write_bytes(find("davis_segflow.yaml").read_bytes())


def _read_config(path: Path) -> Any:
    from tools.build import AnyExperiment

    return load(AnyExperiment, path).model_dump(mode="json")


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"encoder.conv.weight": torch.randn(8, 3, 3, 3, generator=generator), "head.bias": torch.ones(5)}


def _checkpoint(folder: Path) -> None:
    weights = _tensors()
    optimizer = {"state": {0: {"momentum": weights["head.bias"]}}}
    state = {"step": 7, "classes": ["a"]}
    atomic_save.save(folder, 7, weights, optimizer, state, keep_last=1, ema={"weights": weights})


def _read_checkpoint(path: Path) -> Any:
    found = storage.load(path.parent)
    return (found.model, found.optimizer, found.state, found.ema)


def _read_state_dict(path: Path) -> Any:
    return read_weights(path).tensors


def _legacy(path: Path) -> None:
    torch.save(_tensors(), path, _use_new_zipfile_serialization=False)


def _packed(path: Path) -> None:
    members = {f"DAVIS/{i}.txt": bytes([65 + i]) * 900 for i in range(3)}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _unpacked(path: Path) -> Any:
    out = path.parent / "out"
    unpack(path, out)
    return [(file.relative_to(out).as_posix(), file.read_bytes()) for file in sorted(out.rglob("*")) if file.is_file()]


def _pgm(path: Path) -> None:
    path.write_bytes(b"P5\n64 48\n4\n" + IDS.tobytes())


def _pfm(path: Path) -> None:
    write_pfm(path, np.dstack([FLOW, FLOW[..., 0]]))


def _voc_mask(path: Path) -> np.ndarray:
    return read_mask(path, colors="voc")


def _mask(path: Path) -> None:
    write_mask(path, IDS)


def _kitti(path: Path) -> None:
    write_kitti_flow(path, FLOW)


def _flo(path: Path) -> None:
    write_flo(path, FLOW)


def _weights(path: Path) -> None:
    write_tensors(path, _tensors(), {"classes": '["a"]'})


def _pth(path: Path) -> None:
    torch.save(_tensors(), path)


def _fisher(path: Path) -> None:
    save_fisher(path, _tensors())


def _means(path: Path) -> None:
    Centroids(tuple(NAMES), np.ones((12, 5), np.float32), np.arange(1, 13), "a").save(path)


def _read_means(path: Path) -> Any:
    return vars(Centroids.load(path))


def _foreign(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(_tensors(), path)


def _single(
    name: str, file: str, write: Callable[[Path], None], read: Callable[[Path], Any], silent: str = ""
) -> Format:
    """Return a format whose file needs no others."""
    return Format(name, file, lambda folder: write(folder / file), read, silent)


def digest(value: Any) -> Any:
    """Return content as nested tuples that can be compared, arrays as type, shape and bytes."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return tuple(sorted((str(key), digest(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(digest(item) for item in value)
    return struct.pack("<d", value) if isinstance(value, float) else value


_JPEG = "flips that decode to other pixels without a warning of libjpeg"
_PIXELS, _TEXT, _VALUES = "no checksum: pixels", "no checksum: other text of the same form", "no checksum: values"
_PARTS = ("manifest.json", "model.safetensors", "optimizer.pt", "state.json", "ema.pt")
_MARKS = "FlyingChairs_train_val.txt"

FORMATS = (
    _image("png"),
    _image("jpg", _JPEG),
    _image("jpg", _JPEG, progressive=True),
    _image("tif", _PIXELS),
    _image("tif", _PIXELS, compression="tiff_lzw"),
    _image("bmp", _PIXELS),
    _image("gif", _PIXELS, "P"),
    _image("ppm", _PIXELS),
    _image("webp", _PIXELS, lossless=True),
    _image("avif", _PIXELS),
    _single("PNG mask, indexed", "a.png", _mask, read_mask),
    _single("PNG mask, palette of VOC", "a.png", _mask, _voc_mask),
    _single("PNG mask, foreground", "a.png", _mask, read_foreground),
    _single("PGM mask", "a.pgm", _pgm, read_mask, _PIXELS),
    _single("TIFF mask", "a.tif", _pil("L"), read_mask, _PIXELS),
    _single("KITTI flow", "a.png", _kitti, read_flow),
    _single(".flo", "a.flo", _flo, read_flow, _VALUES),
    _single(".pfm", "a.pfm", _pfm, read_flow, _VALUES),
    Format("list of frames (DAVIS)", "ImageSets/480p/train.txt", _davis, _dataset(name="davis", up=3), _TEXT),
    Format("list of names (VOC)", "ImageSets/Segmentation/train.txt", _voc, _dataset(name="pascal_voc", up=3), _TEXT),
    Format("list of marks (FlyingChairs)", _MARKS, _chairs, _dataset(name="flying_chairs"), _TEXT),
    Format("list of classes", "birds/classes.txt", _class_list, _read_class_list, _TEXT),
    Format("labels.csv", "labels.csv", _table, _read_table, _TEXT),
    Format("JSON of iNaturalist", "train2017.json", _inaturalist, _dataset(name="inaturalist"), _TEXT),
    Format("JSON of PASCAL in Detail", "trainval_merged.json", _context, _read_context, _TEXT),
    Format("MATLAB labels", "imagelabels.mat", _flowers, _dataset(name="flowers102"), _VALUES),
    _single("config", "a.yaml", _config, _read_config, _TEXT),
    _single("weights of mtsp", "w.safetensors", _weights, _read_state_dict),
    _single("weights of others, .safetensors", "w.safetensors", _foreign, _read_state_dict, _VALUES),
    _single("weights, .pth (zip)", "w.pth", _pth, _read_state_dict),
    _single("weights, .pth (before torch 1.6)", "w.pth", _legacy, _read_state_dict, _VALUES),
    _single("Fisher information", "f.safetensors", _fisher, load_fisher),
    _single("class means", "c.safetensors", _means, _read_means),
    *(Format(f"checkpoint, {part}", f"step-00000007/{part}", _checkpoint, _read_checkpoint) for part in _PARTS),
    _single("zip archive", "a.zip", _packed, _unpacked),
    _single("tar.gz archive", "a.tgz", _packed, _unpacked),
)
