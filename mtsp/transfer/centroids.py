"""Mean features of the classes of a domain, kept in a small file that can be shared without the images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtsp.files.tensors import require_unchanged, write_hashed
from mtsp.text import first_names

SUFFIX = ".safetensors"
_FORMAT = "mtsp centroids 1"


@dataclass(frozen=True)
class Centroids:
    """Class means of a domain: C classes with D features each.

    Attributes:
        names: unique class names.
        means: C x D float32, the mean feature of the images of each class.
        counts: C int64, the number of images of each class, used as its weight.
        features: description of the features: network, weights, image size. Domains can be compared only if their
            descriptions are equal.

    Raises:
        ValueError: shapes do not match the number of names, two classes have the same name, a class has no images, or
            means are not finite.
    """

    names: tuple[str, ...]
    means: np.ndarray
    counts: np.ndarray
    features: str

    def __post_init__(self) -> None:
        classes = len(self.names)
        if not classes or self.means.ndim != 2 or self.means.shape[0] != classes or self.counts.shape != (classes,):
            shapes = f"means of shape {self.means.shape} and counts of shape {self.counts.shape}"
            raise ValueError(f"{classes} class names do not match {shapes}")
        if len(set(self.names)) < classes:
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"two classes have the name {twice!r}")
        if empty := [name for name, count in zip(self.names, self.counts, strict=True) if count < 1]:
            raise ValueError(f"{len(empty)} of {classes} classes have no images ({first_names(empty)}); leave them out")
        if not np.isfinite(self.means).all():
            wrong = [self.names[i] for i in np.flatnonzero(~np.isfinite(self.means).all(axis=1))]
            raise ValueError(f"the mean features of {len(wrong)} classes are not finite ({first_names(wrong)})")

    def __len__(self) -> int:
        return len(self.names)

    def taken(self, classes: Sequence[int]) -> "Centroids":
        """Return the domain with only these classes, given by index, in this order."""
        rows = list(classes)
        return Centroids(tuple(self.names[i] for i in rows), self.means[rows], self.counts[rows], self.features)

    def at_least(self, images: int) -> "Centroids":
        """Return the domain with only the classes with at least `images` images. DSTL uses 200, for speed.

        Raises:
            ValueError: no class has that many images.
        """
        rows = np.flatnonzero(self.counts >= images).tolist()
        if not rows:
            largest = self.counts.max()
            raise ValueError(f"none of {len(self)} classes has {images} images or more; the largest has {largest}")
        return self if len(rows) == len(self) else self.taken(rows)

    def save(self, path: Path) -> None:
        """Write a safetensors file, atomically. The header holds class names and the description of features."""
        from safetensors.numpy import save

        metadata = {"format": _FORMAT, "names": json.dumps(self.names), "features": self.features}
        tensors = {"means": np.ascontiguousarray(self.means, np.float32), "counts": self.counts.astype(np.int64)}
        write_hashed(path, tensors, metadata, save)

    @classmethod
    def load(cls, path: Path) -> "Centroids":
        """Read class means from a file.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged, or was not written by :meth:`save`.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}, which should hold class means")
        require_unchanged(path)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError("its tensors are not class means")
                names = tuple(json.loads(metadata["names"]))
                return cls(names, file.get_tensor("means"), file.get_tensor("counts"), metadata["features"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as class means: {error}") from error


def merge(domains: Sequence[tuple[str, Centroids]]) -> Centroids:
    """Return one domain with the classes of all `domains`, named `domain/class`. A single domain is not changed.

    Raises:
        ValueError: the descriptions of features differ, or two domains have the same name.
    """
    for name, domain in domains[1:]:
        require_same_features(domains[0], (name, domain))
    if len(domains) == 1:
        return domains[0][1]
    return Centroids(
        tuple(f"{name}/{label}" for name, domain in domains for label in domain.names),
        np.concatenate([domain.means for _, domain in domains]),
        np.concatenate([domain.counts for _, domain in domains]),
        domains[0][1].features,
    )


def require_same_features(one: tuple[str, Centroids], other: tuple[str, Centroids]) -> None:
    """Raise ValueError if two named domains have different features, because their distance would be meaningless."""
    ours, theirs = one[1].features, other[1].features
    if ours != theirs:
        raise ValueError(
            f"{one[0]} and {other[0]} cannot be compared: features of {one[0]} are from {ours}, features of {other[0]} "
            f"from {theirs}; extract both with the same network"
        )
