"""One training step: the state, its gradient, and the batch in parts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from mlic_jax.data.label_policy import resolve_unknown
from mlic_jax.errors import UsageError
from mlic_jax.features.store import as_computed
from mlic_jax.models.attentive import Attentive
from mlic_jax.models.layers import deal_rows
from mlic_jax.models.precision import in_precision
from mlic_jax.runtime import compilation, devices
from mlic_jax.train.augment import MIXUP, augment, augment_views, mixup
from mlic_jax.train.losses import mean_loss, newly_present, smooth_targets, total_loss
from mlic_jax.train.optim import group_multipliers, moved_average
from mlic_jax.train.options import TrainOptions

Rows = dict[str, jax.Array]  # of a batch, or of a part of one
# Of rows: new batch_stats, (metrics, gradient), and what is of each row by itself.
Outcome = tuple[Any, tuple[Any, Any], Any]


DROPOUT = 1  # tells the key of dropout from those of augmentation


@flax.struct.dataclass
class TrainState:
    """All that training changes; a plain pytree."""

    step: jax.Array  # int32 [], optimiser steps done
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any = None  # of params and batch_stats over the steps, see `optim.moved_average`
    # Of a loss that corrects permanently, bool [N, C]: labels of the split that are present though
    # they are given as absent. None of others.
    corrected: Any = None

    def variables(self, weights: str = "raw") -> dict[str, Any]:
        """Params and batch_stats: `raw`, those of the last step; or `ema`, their average."""
        if weights == "ema":
            return self.average
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    options: TrainOptions,
    mesh: Mesh | None = None,
    shardings: TrainState | None = None,
    epoch_steps: int = 1,
    class_weights: np.ndarray | None = None,
) -> jax.stages.Wrapped:
    """The jitted step: (state, batch, key) -> (state, metrics), the old state's memory reused.

    The batch is what `pipeline.batches` yields, on the devices. What is random in step k follows
    from (key, k), or of a number of views from (`data.views_seed`, view, image). A batch of a
    `Store` has the features `seen` of such views instead of images. Metrics are float32 scalars:
    the loss, its parts, the norm of the gradient and the rate, and how many labels are `corrected`
    so far.

    Args:
        mesh: along whose axis the rows of a batch lie, for a model that `models.spread` along it;
            None: all are on one device.
        shardings: how the state lies on the mesh, see `devices.lying`.
        epoch_steps: steps of an epoch, which some losses go by.
        class_weights: float32 `[C]`, see `label_losses.balanced_weights`; None: all weigh 1.
    """

    gradient_of = make_gradient(model, options, mesh, shardings, class_weights)

    def views_key(key: jax.Array) -> jax.Array:
        own = options.views_seed != options.seed
        return jax.random.key(options.views_seed) if own else key

    def shown(batch: Rows, key: jax.Array, step: jax.Array) -> Rows:
        if "seen" in batch:
            return {"seen": as_computed(batch["seen"])}
        if "view" in batch:
            of_rows = batch["image"], batch["view"], batch["index"]
            return {"images": augment_views(*of_rows, views_key(key), options.augment)}
        key = jax.random.fold_in(key, step)
        return {"images": augment(batch["image"], key, options.augment)}

    def train_step(
        state: TrainState, batch: Rows, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        labels = resolve_unknown(batch["labels"], options.loss.label_policy)
        if options.loss.corrects_permanently:  # of padding any row, for it is not known
            labels = jnp.where(state.corrected[batch["index"]], jnp.int8(1), labels)
        known = (labels != 0) & batch["mask"][:, None]
        rows = {
            **shown(batch, key, state.step),
            "targets": smooth_targets(labels > 0, options.loss.label_smoothing),
            "known": known,
        }
        if options.augment.mixup:
            of_step = jax.random.fold_in(jax.random.fold_in(key, state.step), MIXUP)
            rows = mixup(rows, batch["mask"], of_step, options.augment.mixup)
        rows["groups"] = groups_in_parts(
            batch["mask"], options.accumulation, options.model.bn_groups
        )
        if isinstance(model, Attentive) or options.model.drop_path:
            of_step = jax.random.fold_in(jax.random.fold_in(key, state.step), DROPOUT)
            rows["dropout"] = jax.random.bits(of_step, batch["mask"].shape)
        of_batch = {
            "known": jnp.sum(rows["known"], dtype=jnp.int32),
            "epoch": state.step // jnp.int32(epoch_steps),
        }
        batch_stats, (metrics, gradient), newly = gradient_of(
            state.params, state.batch_stats, rows, of_batch
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        metrics["learning_rate"] = schedule(state.step)
        variables = {
            "params": optax.apply_updates(state.params, updates),
            "batch_stats": batch_stats,
        }
        average = state.average
        if average is not None:
            average = moved_average(average, variables, state.step, options.optim.ema)
        corrected = state.corrected
        if options.loss.corrects_permanently:  # of padding nothing, for it is not known
            corrected = corrected.at[batch["index"]].max(newly)
            metrics["corrected"] = jnp.sum(corrected, dtype=jnp.float32)
        state = TrainState(
            step=state.step + 1,
            **variables,
            opt_state=opt_state,
            average=average,
            corrected=corrected,
        )
        return state, metrics

    return compilation.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def make_gradient(
    model: nn.Module,
    options: TrainOptions,
    mesh: Mesh | None,
    shardings: TrainState | None,
    class_weights: np.ndarray | None = None,
) -> Callable[..., Any]:
    """(params, batch_stats, rows, of_batch) -> `Outcome` of a batch.

    `of_batch` is how many labels are `known`, of all rows, and the `epoch`. Of each row it says
    which labels are `newly_present`, for a loss that corrects permanently; else nothing, None.
    Arguments are those of `make_train_step`.
    """
    axis = None if mesh is None else devices.ROWS
    weights = None if class_weights is None else jnp.asarray(class_weights)

    def share_of_loss(
        params: Any, batch_stats: Any, rows: Rows, of_batch: Rows
    ) -> tuple[jax.Array, tuple[Any, Any, Any]]:
        """What some rows add to the loss, and (what to metrics, new batch_stats, newly present).

        Every row weighs as much as it has of the labels that are known in the whole batch, so that
        the sums over its parts are of all rows together.
        """
        # So that no gradient is computed for what is frozen.
        multipliers = group_multipliers(options.optim, params)
        frozen = {name: lax.stop_gradient(params[name]) for name in params if not multipliers[name]}
        variables = {"params": params | frozen, "batch_stats": batch_stats}
        apply: Callable[..., Any] = model.apply  # what it returns depends on `mutable`
        if "dropout" in rows:  # a key of the first row: other parts and devices have other ones
            apply = partial(apply, rngs={"dropout": jax.random.key(rows["dropout"][0])})
        if "seen" in rows:
            outputs = apply(variables, rows["seen"], method="score")
        else:
            outputs, updates = apply(
                variables,
                rows["images"],
                train=not options.freeze_statistics,
                mask=rows["groups"],
                mutable=["batch_stats"],
            )
            batch_stats = updates["batch_stats"]
        epoch, targets, known = of_batch["epoch"], rows["targets"], rows["known"]
        newly = None
        if options.loss.corrects_permanently:
            newly = newly_present(options.loss, epoch, outputs, targets, known, axis)
            present = smooth_targets(newly, options.loss.label_smoothing)
            targets = jnp.where(newly, present, targets)
        of_labels = mean_loss(options.loss, epoch, weights, axis)
        loss, parts = total_loss(outputs, targets, known, of_labels)
        share = jnp.sum(known, dtype=loss.dtype)
        if options.loss.reduction == "mean":
            share /= jnp.maximum(of_batch["known"], 1).astype(loss.dtype)
        metrics = jax.tree.map(lambda value: share * value, {"loss": loss, **parts})
        return metrics["loss"], (metrics, batch_stats, newly)

    def in_parts(params: Any, batch_stats: Any, rows: Rows, of_batch: Rows) -> Outcome:
        gradient_of = partial(jax.grad(share_of_loss, has_aux=True), params, of_batch=of_batch)
        with in_precision(options.model.precision, training=True):
            return accumulate(gradient_of, options.accumulation, batch_stats, rows)

    if mesh is None or shardings is None:  # one is given with the other
        return in_parts
    params_specs = devices.specs_of(shardings.params)

    def on_all_devices(*arguments: Any) -> Outcome:
        batch_stats, (metrics, gradient), newly = in_parts(*arguments)
        # Exchanged once for all parts.
        gradient = devices.sum_over_devices(gradient, params_specs)
        return batch_stats, (lax.psum(metrics, devices.ROWS), gradient), newly

    everywhere, by_rows = devices.EVERYWHERE, devices.BY_ROWS
    return devices.on_own_rows(
        on_all_devices,
        mesh,
        in_specs=(params_specs, everywhere, by_rows, everywhere),
        out_specs=(everywhere, (everywhere, params_specs), by_rows),
    )


def accumulate(
    gradient_of: Callable[..., Any], count: int, batch_stats: Any, rows: Rows
) -> Outcome:
    """Sums over parts of the rows, one after the other: less memory, more steps.

    Batch normalisation sees a part at a time, and its running statistics move once for each that
    is not padding alone.

    Args:
        gradient_of: (batch_stats, part) -> (gradient, (metrics, new batch_stats, of each row)).
        count: of the parts, which divides the number of rows. A part is every count-th row, so
            that each device has an equal share of every part.

    Returns:
        The last batch_stats, the sums of (metrics, gradient), and what is of each row in the order
        of the rows.
    """

    def of_part(batch_stats: Any, part: Rows) -> Outcome:
        gradient, (metrics, batch_stats, of_rows) = gradient_of(batch_stats, part)
        return batch_stats, (metrics, gradient), of_rows

    def add(carry: tuple[Any, Any], part: Rows) -> tuple[tuple[Any, Any], Any]:
        batch_stats, terms, of_rows = of_part(carry[0], part)
        return (batch_stats, jax.tree.map(jnp.add, carry[1], terms)), of_rows

    if count == 1:
        return of_part(batch_stats, rows)
    parts = jax.tree.map(lambda x: jnp.stack([x[k::count] for k in range(count)]), rows)
    _, shapes, _ = jax.eval_shape(of_part, batch_stats, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (batch_stats, sums), of_rows = lax.scan(add, (batch_stats, zeros), parts)
    in_order = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), of_rows)
    return batch_stats, sums, in_order


def groups_in_parts(mask: jax.Array, parts: int, groups: int) -> jax.Array:
    """`deal_rows` for every part that `accumulate` makes of a batch, int32 `[B]`."""
    by_part = jax.vmap(partial(deal_rows, groups=groups))(mask.reshape(-1, parts).T)
    return by_part.T.reshape(-1)


def check_batch_size(options: TrainOptions, mesh: Mesh) -> None:
    """Raises UsageError where a batch does not divide into parts and groups, and among devices."""
    size, parts, groups = options.batch_size, options.accumulation, options.model.bn_groups
    devices.check_batch_size("batch_size", size, mesh, parts)
    if groups > 0 and size // parts % groups:
        raise UsageError(
            f"model.bn_groups is {groups}, which does not divide the {size // parts} images that "
            "go through the model together"
        )
