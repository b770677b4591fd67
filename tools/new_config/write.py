"""Fill in a template of configs/own for a person's data, and say what was assumed."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data.classification.image_folder import ImageFolderConfig
from data.files.listing import image_tree, subfolders
from data.flow.flow_folder import FlowFolderConfig
from data.segmentation.label_map import ranges
from models.encoders.names import encoder_name
from mtsp.config import CONFIGS, ConfigError
from mtsp.files.atomic_file import write_atomically
from mtsp.types import IGNORE
from tools.new_config import look
from tools.new_config.machine import Machine, choose_backbone, unavailable

_LINE = re.compile(r"( *)([\w-]+):(?: (?!#)(.*?))?( +#.*)?")
_TRAINING = ("train", "training")
_VALIDATION = ("val", "valid", "validation", "test")


class Plan(NamedTuple):
    """What to write into a template."""

    values: dict[str, Any]
    """Values by their dotted keys."""
    told: list[str]
    """What was found and assumed, a line each."""


def write_config(path: Path, kind: str, folders: Sequence[Path], val: Sequence[Path] | None) -> list[str]:
    """Write a config to `path`; return lines that say what was found, assumed, and can be changed.

    Args:
        path: the YAML file to write; it must not exist.
        kind: a template of configs/own: `masks`, `images`, `videos` or `flow`.
        folders: the data: images and masks, one folder of labeled images, frames and masks, or pairs with flow.
        val: the same for validation; None: a fifth of the data is held out, and listed in files beside the config.

    Raises:
        ConfigError: `path` exists or cannot be a config's name.
        DataError: the data cannot be read, or are not what `kind` says.
    """
    if path.exists():
        raise ConfigError(f"{path} exists; choose another name, or delete it first")
    if path.suffix not in (".yaml", ".yml") or not re.fullmatch(r"\w[\w.-]*", path.stem):
        raise ConfigError(f"{path}: --new needs the name of a YAML file, for example my_run.yaml")
    for folder in (*folders, *(val or ())):
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder.absolute()}")
    plan = _PLANS[kind](path, Machine.here(), folders, val)
    text = (CONFIGS / "own" / f"{kind}.yaml").read_text(encoding="utf-8").partition("\n")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, filled(text.replace("my_run.yaml", path.name), {"name": path.stem, **plan.values}).encode())
    return plan.told


def filled(text: str, values: Mapping[str, Any]) -> str:
    """Return the text of a YAML file with the values of some keys replaced; comments stay.

    Args:
        text: block mappings, with values of one line each.
        values: new values by dotted key, for example `train.steps`. Raises KeyError if the text lacks a key.
    """
    left, above, lines = dict(values), [], []
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            above = [*(key for key in above if key[0] < len(match[1])), (len(match[1]), match[2])]
            dotted = ".".join(name for _, name in above)
            if dotted in left:
                line = f"{match[1]}{match[2]}: {_flow_style(left.pop(dotted))}{match[4] or ''}"
        lines.append(line)
    if left:
        raise KeyError(f"no {', '.join(left)} in the text")
    return "\n".join(lines) + "\n"


def _flow_style(value: Any) -> str:
    dumped = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True)
    return dumped.strip()[1:-1]


def _masks(path: Path, machine: Machine, folders: Sequence[Path], val: Sequence[Path] | None) -> Plan:
    images, masks = folders
    suffix = look.mask_suffix(images, masks)
    frames, stored = image_tree(images), image_tree(masks)
    names = [name for name in frames if name + suffix in stored]
    others = [path for name, path in image_tree(val[1]).items() if name.endswith(suffix)] if val else []
    found = look.mask_values([*(stored[name + suffix] for name in names), *others])
    told = [f"found {len(names):,} images with masks" + (f"; the mask of NAME is NAME{suffix}" if suffix else "")]
    dataset: dict[str, Any] = {"name": "mask_folder", "frames": str(images), "masks": str(masks)}
    if suffix:
        dataset["mask_suffix"] = suffix
    classes, settings = _classes_of_masks(found, (masks, images), told)
    dataset |= settings
    train, other = _split(path, dataset, names, look.held_out(names), val, told)
    sizes = look.image_sizes(frames[name] for name in names)
    height, width = _within(sizes, 520 if machine.gpu else 216)
    crop = tuple(max(32, min(480, int(0.8 * side)) // 16 * 16) for side in (height, width))
    values = {
        **_backbone(machine, "encoder", "tu-", "backbone", told),
        "model.classes": classes if classes < IGNORE else None,
        "model.width": 512 if machine.gpu else 128,
        "data.train.dataset": train,
        "data.train.augment": {"preset": "encnet", "short_side": min(height, width), "crop": list(crop), "blur": 0.0},
        "data.val.dataset": other,
        "data.val.size": [height, width],
        **_length(machine, len(names), crop, 8000, (4, 16), told),
    }
    crops = f"training crops {crop[0]}x{crop[1]} of {height}x{width}"
    stretched = "; images differ in size, and are all stretched to it at evaluation" if sizes.several else ""
    told.append(_sizes_told("images", sizes, crops, machine) + stretched)
    return Plan(values, told)


def _classes_of_masks(found: look.Values, folders: tuple[Path, Path], told: list[str]) -> tuple[int, dict[str, Any]]:
    """Return the number of classes that masks with these values hold, and the settings that describe them."""
    if look.object_only(found):
        told.append("masks show one object: whatever is not 0 (in colors: black) is class 1")
        return 2, {"classes": ["background", "object"], "foreground": True}
    mark = IGNORE if found.values[-1] <= IGNORE else (1 << 16) - 1
    values = [value for value in found.values if value != mark]
    values = values if len(values) > 1 else [0, 1]
    given = look.class_names(folders, values)
    settings: dict[str, Any] = {"classes": str(given) if isinstance(given, Path) else given}
    if values != list(range(len(values))):
        settings["values"] = values
    told.append(f"{found.read:,} masks hold {len(values)} classes: {ranges(values)}")
    if mark in found.values or mark != IGNORE:
        settings["unknown"] = [value for value in found.values if value == mark]
    if mark in found.values:
        told.append(f"{mark} means unknown: these pixels do not count")
    told.append(
        f"classes are named as in {given}"
        if isinstance(given, Path)
        else "names of classes are made up; write yours into `classes`, or a text file's name. If a value means "
        "unknown, take it out of `values` and `classes`, and put it into `unknown`"
    )
    return len(values), settings


def _images(path: Path, machine: Machine, folders: Sequence[Path], val: Sequence[Path] | None) -> Plan:
    root = folders[0]
    inner = {folder.name.lower(): folder for folder in subfolders(root)}
    parts = [next((inner[name] for name in names if name in inner), None) for names in (_TRAINING, _VALIDATION)]
    if val is None and parts[0] is not None and parts[1] is not None:
        root, val = parts[0], [parts[1]]
    found = ImageFolderConfig(name="image_folder", root=root).annotations()
    counts = Counter(image.label for image in found.images)
    told = [
        f"found {len(found.images):,} images of {len(found.classes)} classes in {root}, "
        f"{min(counts.values(), default=0):,} to {max(counts.values(), default=0):,} of each"
    ]
    if len(found.classes) < 2:
        raise ConfigError(f"{root.absolute()} has images of one class; it needs a folder for each of several classes")
    by_class = [[image.name for image in found.images if image.label == label] for label in counts]
    held = [name for names in by_class if len(names) > 1 for name in look.held_out(names)]
    dataset: dict[str, Any] = {"name": "image_folder", "root": str(root)}
    names = [image.name for image in found.images]
    train, other = _split(path, dataset, names, held, val, told)
    sizes = look.image_sizes(image.path for image in found.images)
    side = 224 if machine.gpu else 128
    values = {
        **_backbone(machine, "backbone", "", "backbone", told),
        "model.classes": len(found.classes),
        "data.train.dataset": train,
        "data.train.augment": {"preset": "inception", "crop": [side, side], "area": [0.25, 1.0]},
        "data.val.dataset": other,
        "data.val.size": [side, side],
        **_length(machine, len(names), (side, side), 3000, (16, 64), told),
    }
    told.append(_sizes_told("images", sizes, f"the network sees {side}x{side}", machine))
    return Plan(values, told)


def _videos(path: Path, machine: Machine, folders: Sequence[Path], val: Sequence[Path] | None) -> Plan:
    frames, masks = folders
    look.mask_suffix(frames, masks, suffixes=("",))
    found, stored = image_tree(frames), image_tree(masks)
    names = list(found)
    videos = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    told = [f"found {len(names):,} frames of {len(videos)} video{'s' * (len(videos) > 1)}, with masks"]
    values = look.mask_values([stored[name] for name in names])
    told.append("masks show one object: whatever is not 0 (in colors: black)")
    if not look.object_only(values) and len(values.values) > 2:
        told[-1] += (
            f"; they hold {ranges(values.values)}, taken together as the object. To learn each value as a "
            "class, use --masks in place of --videos"
        )
    dataset = {"name": "folder", "frames": str(frames), "masks": str(masks), "foreground": True, "next_frame": False}
    parts, held = (videos, look.held_out(videos)) if len(videos) > 1 else (names, names[-max(1, len(names) // 5) :])
    train, other = _split(path, dataset, parts, held, val, told)
    sizes = look.image_sizes(found.values())
    height, width = _within(sizes, 480 if machine.gpu else 216)
    crop = tuple(max(32, int(0.9 * side) // 32 * 32) for side in (height, width))
    plan = {
        **_backbone(machine, "encoder", "tu-", "segmentation", told),
        "data.train.dataset": train,
        "data.train.augment": {
            "preset": "segmentation",
            "resize": [height, width],
            "crop": list(crop),
            "scale": [0.8, 1.6],
        },
        "data.val.dataset": other,
        "data.val.size": [height, width],
        **_length(machine, len(names), crop, 3000, (4, 16), told),
    }
    told.append(_sizes_told("frames", sizes, f"training crops {crop[0]}x{crop[1]} of {height}x{width}", machine))
    return Plan(plan, told)


def _flow(path: Path, machine: Machine, folders: Sequence[Path], val: Sequence[Path] | None) -> Plan:
    frames, flow = look.flow_folders(folders[0])
    dataset: dict[str, Any] = {"name": "flow_folder", "frames": str(frames), "flow": str(flow)}
    pairs = FlowFolderConfig(name="flow_folder", frames=frames, flow=flow).pairs()
    names = [pair.name for pair in pairs]
    told = [f"found {len(pairs):,} pairs, frames in {frames} and flow in {flow}"]
    told.append(f"the flow {pairs[0].flow} is taken to lead from {pairs[0].frame} to {pairs[0].next_frame}")
    if val is not None:
        val = look.flow_folders(val[0])
    videos = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    parts = videos if 1 < len(videos) < len(names) else names
    train, other = _split(path, dataset, parts, look.held_out(parts), val, told)
    sizes = look.image_sizes(pair.frame for pair in pairs)
    crop = [max(128, min(most, side // 32 * 32)) for side, most in zip(sizes[:2], (320, 448), strict=True)]
    if not machine.gpu:
        crop = [min(side, most) for side, most in zip(crop, (192, 256), strict=True)]
    augment = {
        "crop": crop,
        "scale": [0.8, 1.3],
        "rotate": 8,
        "translate": [0.1, 0.1],
        "flip": 0.5,
        "keep_inside": True,
    }
    values: dict[str, Any] = {
        "data.train.dataset": train,
        "data.train.augment": augment,
        "data.val.dataset": other,
        **_length(machine, len(names), tuple(crop), 10000, (4, 8), told),
    }
    size = "large" if machine.gpu else "small"
    why = unavailable(f"raft_{size}", "torchvision")
    if why is None:
        told.append(f"starts from torchvision's RAFT ({size}); set another network in model and branches.flow.weights")
        values["model"] = {"name": "raft", "size": size}
    else:
        told.append(
            f"torchvision's RAFT cannot be had ({why}), so this is a FlowNetS of a quarter of its width with random "
            "weights, and L2. With a file of weights, set model, branches.flow.weights, and regularizer.name=l2sp"
        )
        values |= {
            "model": {"name": "flownets", "width": 0.25},
            "branches.flow.weights": None,
            "tasks.flow": {"weight": 0.0, "multiscale": 0.01},
            "regularizer.name": "l2",
            "regularizer.alpha": 0.0,
            "regularizer.beta": 4e-4,
            "optimizer": {"name": "adam", "lr": 5e-4},
        }
    told.append(f"frames are about {sizes.height}x{sizes.width} pixels; training crops {crop[0]}x{crop[1]} of them")
    return Plan(values, told)


def _split(
    path: Path,
    dataset: dict[str, Any],
    names: Sequence[str],
    held: Sequence[str],
    val: Sequence[Path] | None,
    told: list[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the data sets to train and to validate on: `val`, or else `held` of the names, listed in files."""
    if val is not None:
        told.append(f"validates on {', '.join(map(str, val))}")
        keys = [key for key in ("root", "frames", "masks", "flow") if key in dataset]
        return dataset, dataset | {key: str(folder) for key, folder in zip(keys, val, strict=True)}
    if len(names) - len(held) < 1:
        raise ConfigError(f"{len(names)} examples cannot be split; name others to validate on with --val")
    lists = look.write_lists(path, names, held)
    told.append(
        f"held out {len(held):,} of {len(names):,} to validate on, as {lists[1]} lists them; --val names others"
    )
    return dataset | {"split": str(lists[0])}, dataset | {"split": str(lists[1])}


def _backbone(machine: Machine, key: str, prefix: str, branch: str, told: list[str]) -> dict[str, Any]:
    chosen = choose_backbone(machine)
    told.append(
        f"starts from {chosen.network}: {chosen.found}; set another in model.{key} and branches.{branch}.weights"
    )
    return {f"model.{key}": encoder_name(prefix + chosen.network), f"branches.{branch}.weights": chosen.weights}


def _sizes_told(what: str, sizes: look.Sizes, used: str, machine: Machine) -> str:
    where = "the GPU" if machine.gpu else "a CPU"
    return f"{what} are about {sizes.height}x{sizes.width} pixels; {used}, for {where}: larger is better and slower"


def _within(sizes: look.Sizes, short: int) -> tuple[int, int]:
    """Return height and width, multiples of 8, whose shorter side is at most `short`."""
    factor = min(1.0, short / min(sizes.height, sizes.width))
    return max(8, round(sizes.height * factor / 8) * 8), max(8, round(sizes.width * factor / 8) * 8)


def _length(
    machine: Machine, examples: int, size: tuple[int, ...], bytes_per_pixel: int, most: tuple[int, int], told: list[str]
) -> dict[str, Any]:
    """Return the batch, and the number of steps: on a CPU a first result in minutes, on a GPU 40 epochs."""
    batch = machine.batch(
        (size[0], size[1]), bytes_per_pixel=bytes_per_pixel, examples=examples, most=most[machine.gpu]
    )
    steps = min(20000, max(1000, 40 * examples // batch)) if machine.gpu else 150
    told.append(f"{steps:,} steps, {batch} at a time; train.steps=N trains longer")
    every = max(1, steps // 10) if machine.gpu else steps
    return {
        "train.steps": steps,
        "train.stages": [{"steps": 1, "batch_size": {"train": batch}}],
        "train.save_every": every,
        "evaluation.every": every,
    }


_PLANS = {"masks": _masks, "images": _images, "videos": _videos, "flow": _flow}
