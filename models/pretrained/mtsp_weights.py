"""Load weights that have a branch's parameter names: files saved by mtsp, and state dicts of the branch's module."""

from torch import nn

from models.pretrained.layouts import Layout, LayoutError, WeightsFile


def own_layout(branch: str, target: nn.Module, file: WeightsFile) -> Layout | None:
    """Map a file that has the branch's parameter names to the branch; return None if it has none of these names.

    The names may begin with the branch's name, as in a file of a whole network. Layers of the branch's `task_layers`
    (default: `head.`) may be missing or have other shapes; all other layers must be present.

    Raises:
        LayoutError: other tensors are missing or unknown.
    """
    own = target.state_dict()
    begins = f"{branch}."
    tensors = {key.removeprefix(begins): value for key, value in file.tensors.items() if key.startswith(begins)}
    left_out = [f"{key}: of another branch" for key in file.tensors if not key.startswith(begins)]
    if not any(key in own for key in tensors):
        tensors, left_out = file.tensors, []
    if not any(key in own for key in tensors):
        return None
    task_layers: tuple[str, ...] = getattr(target, "task_layers", ("head.",))
    used = {}
    for key, value in tensors.items():
        optional = key.startswith(task_layers)
        if key in own and (own[key].shape == value.shape or not optional):  # load_branch refuses other shapes
            used[key] = value
        elif optional:
            left_out.append(f"{key}: this network's head is another")
        else:
            raise LayoutError(f"it has weights of another network of this kind: nothing here is called {key}")
    if missing := [key for key in own if key not in used and not key.startswith(task_layers)]:
        found = f"{len(missing)} tensors are missing, as {missing[0]}"
        raise LayoutError(f"it has weights of another network of this kind: {found}")
    return Layout(used, left_out, {}, "weights in this network's own names")
