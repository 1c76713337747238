"""Every option, what it means and the published default; a recipe in `configs/` changes a few."""

from ml_collections import ConfigDict

from mlic_jax.data.label_policy import POLICIES
from mlic_jax.data.pipeline import CACHES, TRAIN_CROPS
from mlic_jax.data.transforms import INTERPOLATIONS
from mlic_jax.errors import UsageError
from mlic_jax.metrics.protocols import PROTOCOLS
from mlic_jax.metrics.ties import TIES
from mlic_jax.names import (
    BACKBONES,
    CLASS_WEIGHTS,
    DTYPES,
    HEADS,
    LOCALIZERS,
    LOSSES,
    MODELS,
    POOLINGS,
    PRECISIONS,
    RECIPES,
    REMATS,
    did_you_mean,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Of options that may be one of a few names: which.
CHOICES = {
    "recipe": ("", *RECIPES),
    "model.name": MODELS,
    "model.backbone": BACKBONES,
    "model.dtype": DTYPES,
    "model.precision": PRECISIONS,
    "model.remat": REMATS,
    "model.pooling": POOLINGS,
    "model.localizer": LOCALIZERS,
    "model.head": HEADS,
    "data.interpolation": INTERPOLATIONS,
    "data.train_crop": TRAIN_CROPS,
    "data.cache": CACHES,
    "data.on_corrupt": ("fail", "skip"),
    "data.dropped_labels": ("absent", "unknown"),
    "features.dtype": ("float32", "float16"),
    "loss.name": LOSSES,
    "loss.reduction": ("mean", "sum"),
    "loss.class_weights": CLASS_WEIGHTS,
    "loss.large": ("reject", "correct", "correct_permanently"),
    "loss.label_policy": POLICIES,
    "optim.name": ("sgd", "adam", "adamw"),
    "optim.schedule": ("step", "cosine", "one_cycle"),
    "optim.scaling": ("none", "linear", "sqrt"),
    "eval.weights": ("raw", "ema"),
    "eval.protocol": tuple(PROTOCOLS),
    "eval.label_policy": ("", *POLICIES),
    "eval.ties": ("", *TIES),
}


def default_config() -> ConfigDict:
    """MCAR as it was released, for a set that a recipe names."""
    config = ConfigDict()
    config.seed = 0  # of what is random: fresh weights, order, augmentation
    # How papers train: released | asl | csra | q2l, see mlic_jax/training_recipes.py. What is set
    # beside it goes before it. Empty: as the options say.
    config.recipe = ""
    config.epochs = 60  # of training, a pass over all images each
    config.batch_size = 16  # in total, over all devices
    config.accumulation = 1  # parts that a batch goes through the model in, one after the other
    config.log_every = 10  # steps between lines of metrics.jsonl
    # Validations in a row without a better one, after which training ends; 0: at the last epoch.
    config.early_stopping = 0
    config.checkpoint_every = 1000  # steps; every evaluation saves too
    config.keep_checkpoints = 2  # the latest so many; the best in validation is kept beside them
    config.init_from = ""  # a converted checkpoint, or a run, whose backbone training starts from
    config.init_prior = 0.0  # probability every label starts with (Lin et al. 2017); 0: no prior
    # Batch normalisation keeps the statistics that it started with, for sets of few batches.
    config.freeze_statistics = False
    # msrn: divide the first dense layer, the largest of all, among the devices. Changes no result.
    config.shard_fc1 = False

    config.model = ConfigDict()
    # mcar | msrn | pooled (the baseline) | csra | ml_decoder | query2label
    config.model.name = "mcar"
    # resnet10/18/34/50/101/152 | resnet18d/34d/50d/101d/152d | resnetrs50/101 | mobilenet_v2 |
    # efficientnet_lite0 to lite4, _b0 to b4 and tf_efficientnet_b0 to b4, see docs/conversion.md |
    # tresnet_m/l/v2_l | convnext_tiny/small/base/large/xlarge |
    # convnextv2_atto/femto/pico/nano/tiny/base/large/huge | vit_tiny_patch16 |
    # vit_small/base_patch16/32 | vit_large_patch14/16/32 | vit_small/base/large_patch16_qk_norm |
    # dinov2_small/base/large(_registers) |
    # (open)clip_vit_base_patch16/32 | (open)clip_vit_large_patch14 | dinov3_small/base/large |
    # swin_tiny/small/base/large, swin_base/large_window12 |
    # swinv2_tiny/small/base, and each _window16
    config.model.backbone = "resnet101"
    config.model.width = 1.0  # multiplies the backbone's channel counts
    # Of convolutions: float32 | bfloat16. Regions, statistics, attention sums, losses stay float32.
    config.model.dtype = "float32"
    # Of float32 products where a platform has several: auto (highest for results, the platform's
    # default in training) | default | high | highest. What decides regions is highest in any case.
    config.model.precision = "auto"
    # Parts of a batch that batch normalisation treats each by itself, as so many GPUs of PyTorch.
    config.model.bn_groups = 1
    # none | stage | block: inside what the backward pass computes again rather than keep it.
    config.model.remat = "none"
    # convnext, efficientnet, swin, vit, dino, clip: in training the last block leaves out its
    # branches for so many of the images, the others fewer, in equal steps from 0 (stochastic
    # depth); 0: none does.
    config.model.drop_path = 0.0
    config.model.pooling = "gwp"  # avg | max | gwp (their mean)
    config.model.top_n = 4  # regions of an image
    config.model.threshold = 0.5  # where a region's profiles are cut
    config.model.localizer = "exact"  # exact (as released) | clean (repaired)
    # Pixels of a side of a region's crop, a multiple as of image_size; 0: as the image (released).
    config.model.local_size = 0
    # Pixels: the edges of regions are moved outwards to multiples of them, so that more regions are
    # met again in a store of features; 1: none is (as released).
    config.model.region_grid = 1
    config.model.pool_ratio = 0.05  # msrn: groups of labels, as a share of the labels
    config.model.head = "dense"  # msrn: dense (as released) | per_label
    # Of tokens and queries: a multiple of 24 with ml_decoder, of 4 with query2label; 0: 768 and
    # 2048, as published.
    config.model.head_width = 0
    config.model.csra_heads = 1  # csra: 1 (VOC) | 2 | 4 (COCO) | 6 (COCO) | 8
    config.model.csra_residual = 0.1  # csra: lambda, 0.1 for VOC and 0.4 to 0.5 for COCO

    config.data = ConfigDict()
    # scenes | tfds | hub | nuswide | apparel, or own data: see --format of scripts/prepare_data.py
    config.data.source = ""
    config.data.name = ""  # of the prepared set, a folder of prepared_dir
    config.data.prepared_dir = "prepared"  # the folder that prepared sets lie in
    config.data.root = ""  # where the files of a set lie
    # Below root: coco: the images of a split; others: all images, "" is root itself.
    config.data.image_dir = "{split}"
    # Below root: coco: the annotations of a split, or of all; nuswide, tables: the file of all
    # splits; voc, own: the folder of XML files.
    config.data.annotations = "instances_{split}.json"
    config.data.class_order = "alphabetical"  # coco: alphabetical | annotation
    config.data.keep_unlabelled = False  # coco, nuswide: keep images that show no class
    config.data.crowds = "unknown"  # coco: what objects with iscrowd are: unknown | present
    config.data.label_separator = ""  # folders: between labels in a name; "": it is one label
    config.data.cell_separator = ""  # tables: between labels in a cell; "": it is told
    config.data.image_column = ""  # tables: of the paths; "": it is told
    config.data.label_column = ""  # tables: of labels, or several of attributes; "": it is told
    config.data.sheet = ""  # xlsx: the sheet; "": the first
    config.data.merge_classes = False  # names that differ in case and blanks alone are one class
    # Sets without splits of their own (apparel, own data): the share of `train`; the rest is `val`
    # or `test`. 1: all of them, of which the next two are divided.
    config.data.train_share = 0.8
    # The share of the images to train on that becomes `val`; 0: the set has that split.
    config.data.val_share = 0.0
    # The share of the images to train on that becomes `test`; 0: the set has that split.
    config.data.test_share = 0.0
    config.data.split_seed = 0  # of what becomes which split by train_share, val_share, test_share
    config.data.year = "2007"  # voc: 2007 | 2012 | own (data with classes and splits of its own)
    config.data.tfds_name = ""  # tfds: voc/2007, voc/2012 or coco/2014
    config.data.hub_name = ""  # hub: owner/name or owner/name:configuration; "": the folder root
    # msrn: a file of `mlic build-word-vectors`, or one_hot, which knows nothing of the labels
    config.data.word_vectors = ""
    # msrn: a file; identity: no label attends to others; empty: counted on the training split
    config.data.label_graph = ""
    # A file of which labels lie within others, a rule `dog < animal` a line, see
    # data/label_tree.py.
    config.data.label_tree = ""
    config.data.fill_parents = False  # label_tree: the parents of present labels are present too
    config.data.scenes_seed = 0  # scenes: what they are generated from
    config.data.scenes_sizes = (3000, 300, 1000)  # scenes: images of train, val, test
    # The share of the labels that is trained on, for studies with fewer, see data/kept_labels.py.
    config.data.keep_labels = 1.0
    config.data.one_positive = False  # of the labels present in a photo one is trained on
    # What labels are that keep_labels or one_positive leave out: absent (missing labels; of those
    # that are absent all are kept) | unknown.
    config.data.dropped_labels = "absent"
    config.data.labels_seed = 0  # of keep_labels and one_positive, whatever the seed of the run
    # Which split of the set is trained on, validated on and evaluated in the end.
    config.data.splits = ConfigDict({"train": "train", "val": "val", "test": "test"})
    config.data.on_corrupt = "fail"  # fail | skip (and list) images that cannot be read
    # Turn images, and boxes with them, as their EXIF orientation says; prediction always does.
    config.data.upright = False
    # What is black and what white of images of more than 8 bits, such as (0, 4095) for 12; ():
    # told from those of the set.
    config.data.range = ()
    # pixels: photos that no random crop is taken of are kept beside the prepared set, decoded once;
    # none.
    config.data.cache = "none"
    config.data.cache_gib = 10.0  # that the pixels kept of a set may take
    config.data.workers = 0  # processes that decode; 0: threads of this one
    config.data.threads = 4  # that decode, in this process or in each of them
    config.data.image_size = 448  # a multiple of 32, or of the patch of a ViT
    # Pillow's filter wherever photos are resized, training's crops too: bilinear (as released) |
    # bicubic | lanczos.
    config.data.interpolation = "bilinear"
    # The side of the central square that is seen of a photo, as a share of its shorter side (timm's
    # crop_pct, such as 0.875); 0: all of the photo is, squashed (as released).
    config.data.center_crop = 0.0
    # squash (MCAR), as evaluation sees photos | multi_scale (MSRN) | random_resized_crop
    config.data.train_crop = "squash"
    config.data.crop_scale = (0.25, 1.0)  # random_resized_crop: the share of the area
    # Augmented views of a photo, which take turns by the epoch; 0: another one every epoch.
    config.data.views = 0
    # What data.views are drawn from; -1: the seed of the run. Runs of other seeds that have it in
    # common see the same views, so that one store of features serves them all.
    config.data.views_seed = -1

    config.features = ConfigDict()
    # Of a frozen backbone, what the head needs of every view of every photo is computed once and
    # kept beside the prepared set, for validation, evaluation and other runs too. Evaluation with
    # eval.scales, eval.local_bound or eval.global_scores computes all anew.
    config.features.store = False
    config.features.dtype = "float32"  # on disk: float32 | float16, half as large

    config.augment = ConfigDict()
    config.augment.flip = True  # mirror every other image
    config.augment.jitter = 0.3  # 0 to 1, of brightness, contrast and saturation
    # The side of a square of a random colour that is put anywhere, as a share of the image's side;
    # 0: none is.
    config.augment.cutout = 0.0
    config.augment.randaugment = 0  # operations of RandAugment on each image; 0: none
    config.augment.magnitude = 9.0  # 0 to 30, of RandAugment's
    # alpha of Beta(alpha, alpha), in which shares images and labels are mixed by pairs; 0: not.
    config.augment.mixup = 0.0
    config.augment.mean = IMAGENET_MEAN  # of red, green and blue, which images are freed of
    config.augment.std = IMAGENET_STD  # of red, green and blue, which images are then divided by

    config.loss = ConfigDict()
    # Of every label: bce (as released) | focal | asl | hill | splc | large_loss, see
    # mlic_jax/train/label_losses.py.
    config.loss.name = "bce"
    config.loss.reduction = "mean"  # over known labels; sum: as asl is published, for its rates
    # Rare classes count more: none | inverse (of their frequency) | effective (number of images).
    config.loss.class_weights = "none"
    config.loss.gamma = 2.0  # focal, hill, splc: how far what is well told counts less
    config.loss.alpha = 0.25  # focal: the weight of what is present, 1 - alpha of what is absent
    config.loss.gamma_present = 0.0  # asl: how far present labels well told count less
    config.loss.gamma_absent = 4.0  # asl: how far absent labels well told count less; query2label 2
    config.loss.clip = 0.05  # asl: probabilities of absent labels are lowered by it; query2label 0
    config.loss.tau = 0.6  # splc: from the second epoch on, likelier labels count as present
    # large_loss: reject (R) | correct (Ct) | correct_permanently (Cp) the costliest absent labels.
    config.loss.large = "reject"
    # large_loss: the share of the costliest, which grows by so much an epoch, or with Cp is so much
    # in every step.
    config.loss.delta = 0.002
    config.loss.label_policy = "as_positive"  # as_positive | as_negative | ignore
    config.loss.label_smoothing = 0.0  # s: targets are 1 - s / 2 and s / 2

    config.optim = ConfigDict()
    config.optim.name = "sgd"  # sgd (as released) | adam | adamw
    config.optim.learning_rate = 0.01  # of every group times its multiplier
    # How the rate follows batch_size / reference_batch: none (as released) | linear (Goyal et al.
    # 2017) | sqrt.
    config.optim.scaling = "none"
    config.optim.reference_batch = 16  # the batch_size that the rate is meant for
    # sgd: the rate is for so many classes and goes with their number, for the loss is their mean;
    # 0: it is for any number (as released).
    config.optim.reference_classes = 0
    # Of the model's top-level modules, `rest` of all that are not named; 0 freezes.
    config.optim.multipliers = ConfigDict({"features": 0.1, "rest": 1.0})
    # The rate of a stage of the backbone is so many times that of the next one; 1: it is the same.
    config.optim.layer_decay = 1.0
    config.optim.schedule = "step"  # step (as released) | cosine | one_cycle (peak at 20 %)
    config.optim.schedule_share = 1.0  # cosine, one_cycle: how much of it the epochs go through
    config.optim.floor = 0.0  # cosine: the share of the rate where it ends
    config.optim.milestones = (30, 50)  # step: epochs at which the rate drops to a tenth
    config.optim.warmup_epochs = 0.0  # linear, from the rate divided by its steps
    config.optim.momentum = 0.9  # sgd
    config.optim.nesterov = False  # sgd: its momentum looks a step ahead
    config.optim.weight_decay = 1e-4  # sgd, adam: added to the gradient; adamw: decoupled from it
    config.optim.decay_biases_and_norms = True  # as released; False: biases and norms do not decay
    config.optim.clip_norm = 0.0  # the gradient's greatest norm, over all parameters; 0: no limit
    # The decay of an average of all weights and statistics over the steps, such as 0.9997, kept
    # beside them; 0: none is kept.
    config.optim.ema = 0.0

    config.eval = ConfigDict()
    # Which are validated, evaluated and predict: raw, those of the step | ema, the average of them.
    config.eval.weights = "raw"
    config.eval.protocol = "mcar"  # mcar | msrn | mlgcn | asl | q2l | voc2007, see mlic_jax/metrics
    config.eval.label_policy = ""  # empty: what the protocol says
    # How equal scores rank: stable (in the order of the images) | average (the expectation of AP
    # over all orders) | optimistic | pessimistic; empty: what the protocol says.
    config.eval.ties = ""
    config.eval.every = 1  # epochs between validations
    config.eval.batch_size = 16  # of every device, however many there are
    config.eval.top_n = 0  # regions of an image in evaluation; 0: as many as model.top_n
    config.eval.local_size = 0  # of crops in evaluation; 0: as model.local_size says
    # Regions of classes whose global probability is lower are not looked at; 0: all are (released).
    config.eval.local_bound = 0.0
    # A score file of this checkpoint and split: its global stream is not run again; empty: it is.
    config.eval.global_scores = ""
    config.eval.flip = False  # average the logits with those of the mirrored image
    config.eval.scales = ()  # sizes beside data.image_size, over all of which logits are averaged
    # data.label_tree: a label has at least the greatest score of those below it; in prediction too.
    config.eval.consistent = False
    # Also report mAP over the classes with at least so many positives in both splits; 0: do not.
    config.eval.min_positives = 0

    config.calibration = ConfigDict()
    config.calibration.rule = "one"  # one | per_class (best F1) | precision | recall
    config.calibration.target = 0.0  # precision, recall: what is to be reached, such as 0.9
    config.calibration.split = "val"  # the role in data.splits of what it is learned on
    config.calibration.allow_test = False  # learn even on the test split, and name it
    return config.lock()


get_config = default_config  # this file is a recipe too: that of options given without one


def apply_variant(config: ConfigDict, variant: str | None) -> ConfigDict:
    """Applies `backbone,size,pooling` in any order, what follows the colon in `--config FILE:...`.

    Raises:
        UsageError: a part is none of these.
    """
    for part in (variant or "").split(","):
        if part in BACKBONES:
            config.model.backbone = part
        elif part in POOLINGS:
            config.model.pooling = part
        elif part.isdigit():
            config.data.image_size = int(part)
        elif part:
            raise UsageError(
                f"variant {part!r} of the configuration is neither a backbone "
                f"({', '.join(BACKBONES)}), nor a pooling ({', '.join(POOLINGS)}), nor a size"
                f"{did_you_mean(part, (*BACKBONES, *POOLINGS))}"
            )
    return config


def use_coco2014(config: ConfigDict) -> None:
    """The data of COCO 2014, downloaded by TFDS; its folders and files where they are read."""
    config.data.source = "tfds"
    config.data.tfds_name = "coco/2014"
    config.data.name = "coco2014"
    config.data.image_dir = "{split}2014"
    config.data.annotations = "annotations/instances_{split}2014.json"
    config.data.splits = {"train": "train", "val": "val", "test": "val"}


def use_voc2007(config: ConfigDict) -> None:
    """The data of Pascal VOC 2007, downloaded by TFDS."""
    config.data.source = "tfds"
    config.data.tfds_name = "voc/2007"
    config.data.year = "2007"
    config.data.name = "voc2007"
    config.data.splits = {"train": "trainval", "val": "test", "test": "test"}


def apply_mcar_recipe(config: ConfigDict, variant: str | None) -> ConfigDict:
    """`apply_variant`, and the released rates: one variant alone has rates of its own."""
    apply_variant(config, variant)
    if (config.model.backbone, config.data.image_size, config.model.pooling) == (
        "mobilenet_v2",
        448,
        "avg",
    ):
        config.optim.learning_rate = 0.1
        config.optim.milestones = (10, 30, 50)
    return config


def apply_msrn_recipe(config: ConfigDict, variant: str | None) -> ConfigDict:
    """`apply_variant` to MSRN as it was released.

    The backbone and the convolutions that branch off it learn at a tenth of the rate. Of the rate
    itself and of the number of epochs nothing is published: both are ours.
    """
    config.model.name = "msrn"
    train_msrn_as_released(config)
    config.eval.protocol = "msrn"
    return apply_variant(config, variant)


def train_msrn_as_released(config: ConfigDict) -> None:
    """What `apply_msrn_recipe` says of training."""
    config.epochs = 40
    config.data.train_crop = "multi_scale"
    config.augment.jitter = 0.0
    config.optim.multipliers = {"features": 0.1, "branch2": 0.1, "branch3": 0.1, "rest": 1.0}
    config.optim.milestones = (30,)
