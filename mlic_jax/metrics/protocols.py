"""Protocols: names for the choices that make two published figures comparable."""

from dataclasses import dataclass
from typing import Literal

from mlic_jax.data.label_policy import LabelPolicy
from mlic_jax.metrics.ties import (
    Ties,
)

ApKind = Literal["raw", "envelope", "voc11"]


@dataclass(frozen=True)
class Protocol:
    """The choices behind a set of published figures."""

    name: str
    threshold: float  # the probability from which on a label counts as predicted
    top_k: int = 3  # the second set of figures: predicted, and among so many highest of its image
    ap_kind: ApKind = "raw"  # see `average_precision`
    ties: Ties = "stable"  # see `average_precision`
    class_f1: Literal["CF1", "CF1_macro"] = "CF1"  # the one its authors call CF1
    unknown_in_ap: LabelPolicy = "ignore"  # what a label 0 counts as in AP and ranking metrics
    unknown_in_f1: LabelPolicy = "as_negative"  # ... and in precision, recall and F1
    sweep: tuple[float, ...] = ()  # logits; the best threshold among them is reported beside
    ranking: bool = False  # whether coverage error, LRAP and ranking loss are reported


PROTOCOLS = {
    row.name: row
    for row in (
        Protocol("mcar", threshold=0.6),  # MCAR (TIP 2021)
        # MSRN's own figures are swept; those at logit 0, its threshold for top-3, stand beside.
        Protocol("msrn", threshold=0.5, sweep=tuple(k / 10 for k in range(-10, 10)), ranking=True),
        # ML-GCN (CVPR 2019): logit 0. (Its code counts one false prediction more in OP for each
        # class that nobody predicted; here there is none.)
        Protocol("mlgcn", threshold=0.5),
        # ASL (ICCV 2021): the threshold of its validation. It knows present and absent alone, so
        # whatever is not present is absent.
        Protocol("asl", threshold=0.8, class_f1="CF1_macro", unknown_in_ap="as_negative"),
        # Query2Label (2021) publishes no threshold: the customary one. Not present is absent.
        Protocol("q2l", threshold=0.5, ap_kind="envelope", unknown_in_ap="as_negative"),
        # The VOC 2007 devkit has AP alone, without the difficult; the rest is customary.
        Protocol("voc2007", threshold=0.5, ap_kind="voc11", unknown_in_f1="ignore"),
    )
}
