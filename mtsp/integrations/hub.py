"""Share a trained network on the Hugging Face Hub, or in a folder: config, weights, metrics and a model card.

    push("runs/NAME", "OWNER/NAME")          # needs the extra `hub` and a login
    write_folder("runs/NAME", "shared/NAME") # the same files, in a folder

`models.hub.from_pretrained` loads either, and so does `weights: hub:OWNER/NAME` or `weights: shared/NAME` of a branch.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mtsp.files.atomic_file import write_atomically
from mtsp.files.tensors import read_tensors, write_tensors
from mtsp.reports.runs import EXPERIMENT, RunLog

WEIGHTS = "weights.safetensors"
RESULTS = "results.json"
CLASSES = "classes.json"
CARD = "README.md"
_PREFIX = "hub:"


def push(run: str | Path, repo: str, *, private: bool = True) -> str:
    """Upload the folder of :func:`write_folder` to the Hub and return its address; the repository may exist already.

    Args:
        run: folder of a finished run.
        repo: OWNER/NAME.
        private: whether a new repository can be seen by its owner only.

    Raises:
        ValueError: the folder has no finished run, or the upload failed.
        FileNotFoundError: likewise.
    """
    hub = _library()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(run, folder)
        try:
            hub.HfApi().create_repo(repo, private=private, exist_ok=True)
            hub.HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a network of mtsp")
        except Exception as error:  # the type of error depends on the library's version
            raise ValueError(f"{repo}: the upload failed: {_line(error)}") from error
    return f"{hub.constants.ENDPOINT}/{repo}"


def write_folder(run: str | Path, folder: str | Path) -> Path:
    """Write config, weights, class names, metrics and model card of a finished run to a folder; return the folder.

    Absolute paths in the config are shortened to their last part, so that they tell nothing of the machine. The weights
    carry the hashes of the other files but the card, which may be edited.

    Raises:
        ValueError: the folder has no finished run, or a file of it is damaged.
        FileNotFoundError: likewise.
    """
    run, folder = Path(run), Path(folder)
    for name in (WEIGHTS, RESULTS):
        if not (run / name).is_file():
            raise FileNotFoundError(f"no {run / name}; name the folder of a run that has ended")
    log = RunLog.read(run)
    tensors, notes = read_tensors(run / WEIGHTS)
    results: dict[str, dict[str, float]] = json.loads((run / RESULTS).read_text(encoding="utf-8"))
    classes: list[str] = json.loads(notes.get("classes", "[]"))
    experiment = _without_places(log.experiment)
    texts = {
        EXPERIMENT: yaml.safe_dump(experiment, sort_keys=False, width=120),
        RESULTS: json.dumps(results, indent=1),
        CLASSES: json.dumps(classes, indent=1),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**texts, CARD: card(log, experiment, results, classes, notes.get("anchor"))}.items():
        write_atomically(folder / name, text.encode())
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    write_tensors(folder / WEIGHTS, tensors, {**notes, "files": json.dumps(hashes)})
    return folder


def fetch(source: str | Path) -> Path:
    """Return the folder of a shared network, downloaded if it is no local folder, after its hashes were compared.

    Args:
        source: a folder, or OWNER/NAME or hub:OWNER/NAME; a version may follow as in OWNER/NAME@main.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the download failed, or a file has changed since it was written.
    """
    text = str(source)
    if not text.startswith(_PREFIX) and Path(source).is_dir():
        folder = Path(source)
    else:
        repo, _, revision = text.removeprefix(_PREFIX).partition("@")
        if repo.count("/") != 1:
            raise ValueError(f"{source}: no such folder, and networks on the Hub are named OWNER/NAME")
        try:
            names = [EXPERIMENT, WEIGHTS, RESULTS, CLASSES]
            folder = Path(_library().snapshot_download(repo, revision=revision or None, allow_patterns=names))
        except Exception as error:  # the type of error depends on the library's version
            raise ValueError(f"{source} cannot be downloaded: {_line(error)}") from error
    for name in (WEIGHTS, EXPERIMENT):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{source} has no {name}, so it holds no network that mtsp shared")
    for name, digest in json.loads(read_tensors(folder / WEIGHTS)[1].get("files", "{}")).items():
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder / name} has changed since it was written with {WEIGHTS}; share the run again")
    return folder


def card(
    log: RunLog,
    experiment: Mapping[str, Any],
    results: Mapping[str, Mapping[str, float]],
    classes: list[str],
    anchor: str | None,
) -> str:
    """Return the model card of a run in Markdown: task, data, training, distances to the anchor, results, use."""
    kinds = {"segmentation": "image-segmentation", "classification": "image-classification", "flow": "optical-flow"}
    tasks = [name for name, section in experiment["tasks"].items() if section and name in kinds]
    head = {"library_name": "mtsp", "tags": ["mtsp", "transfer-learning", *tasks]}
    if pipelines := [kinds[name] for name in tasks if name != "flow"]:
        head["pipeline_tag"] = pipelines[0]
    model, regularizer, train = experiment["model"], experiment["regularizer"], experiment["train"]
    strengths = ", ".join(f"{key} {regularizer[key]}" for key in ("alpha", "beta") if regularizer.get(key) is not None)
    data = ", ".join(f"{name} ({entry['dataset']['name']})" for name, entry in experiment["data"].items())
    optimizer = experiment["optimizer"]
    known = f"{', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}" if classes else "without names"
    rows = [
        f"| {entry} | {name} | {value:.4g} |" for entry, values in results.items() for name, value in values.items()
    ]
    branches = [_branch_row(log, name, section, regularizer) for name, section in experiment["branches"].items()]
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {log.name}",
        f"A network `{model['name']}` for {' and '.join(tasks)}, fine-tuned with mtsp.",
        f"- Classes: {known}\n- Data: {data}\n- Steps: {train['steps']} with {optimizer['name']}, "
        f"learning rate {optimizer['lr']}\n- Regularizer: {regularizer['name']}{strengths and ', ' + strengths}\n"
        f"- Seed: {log.seed} (one run)\n- Fingerprint of the anchor: {anchor or 'not stored'}",
        "## Branches",
        "The distance is ||w - w0|| / ||w0|| from the pretrained weights at the end of training.\n",
        "| branch | pretrained weights | alpha | distance |\n|---|---|---|---|\n" + "\n".join(branches),
        "## Results",
        "| data | metric | value |\n|---|---|---|\n" + "\n".join(rows),
        "## Use",
        "Meant for data like those it was trained on and measured with; on others, measure it first. Frames are RGB in "
        "[0, 1]; the network normalizes them itself.",
        f'```python\nfrom models.hub import from_pretrained\n\nmodel = from_pretrained("OWNER/{log.name}")\n```',
        f"To fine-tune from it, set `weights: hub:OWNER/{log.name}` in a branch of a config.",
    ]
    return "\n\n".join(lines) + "\n"


def _branch_row(log: RunLog, name: str, section: Mapping[str, Any], regularizer: Mapping[str, Any]) -> str:
    own = section.get("alpha")
    alpha = regularizer.get("alpha") if own is None else own
    distance = log.last(f"distance/{name}")
    cells = (
        name + (" (frozen)" if section.get("freeze") else ""),
        section.get("weights") or "none",
        "-" if alpha is None or not section.get("weights") else alpha,
        "-" if distance is None or not math.isfinite(distance) else f"{distance:.4g}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _without_places(values: Any) -> Any:
    """Return the values of a config with absolute paths shortened to their last part."""
    if isinstance(values, Mapping):
        return {key: _without_places(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_without_places(value) for value in values]
    return Path(values).name if isinstance(values, str) and Path(values).is_absolute() else values


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError("huggingface_hub is not installed: pip install 'mtsp[hub]'") from error
    return huggingface_hub


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
