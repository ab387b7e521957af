"""DPMixModel: a Keras model whose train_step is one differentially private update."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from dpmix_tf.data import Batch, in_order
from dpmix_tf.errors import DivergedError, DPMixError
from dpmix_tf.models import validate_network
from dpmix_tf.pixels import as_float
from dpmix_tf.privacy import Ledger, PrivacyPlan, ledger, randomness
from dpmix_tf.privacy.account import Account
from dpmix_tf.privacy.plan import round_up
from dpmix_tf.privacy.statement import history_warning, state_guarantee
from dpmix_tf.tasks import MULTI_LABEL, SINGLE_LABEL
from dpmix_tf.training import cluster
from dpmix_tf.training.averaging import ExponentialMovingAverage
from dpmix_tf.training.batches import choose_batches
from dpmix_tf.training.checks import (
    check_budget,
    check_class_weights,
    check_fit_arguments,
    check_task,
    check_views,
)
from dpmix_tf.training.loop import TrainFunction
from dpmix_tf.training.losses import shown_binary_cross_entropy
from dpmix_tf.training.optimizers import (
    check_compile,
    check_optimizer,
    leave_gradients_as_they_are,
)
from dpmix_tf.training.private_step import PrivateStep
from dpmix_tf.training.saving import Saving
from dpmix_tf.views import Views


@keras.saving.register_keras_serializable(package="dpmix_tf")
class DPMixModel(Saving):
    """Trains `network` under `plan` on views made by `views`.

    One update: for each example of a Poisson-sampled batch, make its K views, take the
    gradient of their mean cross-entropy, clip it once to plan.clip_norm, and add it to
    the sum; then add noise to the sum once, divide by the expected batch size, and let
    the optimizer apply the result. `compile`, `fit`, `evaluate` and `predict` are
    Keras's.

    If the model is made and compiled in the scope of a tf.distribute strategy, `fit`
    splits each batch among the replicas and adds up their sums. Every replica then adds
    the same noise, so that it counts once, and makes the same update.

    Example:
      model = DPMixModel(network, plan=plan, views=dp_mix_self(augment="crop_flip"))
      model.compile(optimizer=keras.optimizers.SGD(4.0), metrics=["accuracy"])
      model.fit(source, validation_data=validation_source)

    What was spent is kept in a ledger that no weight, callback or exception can rewind.
    The ledger belongs to the network: another DPMixModel of the same network, or of
    some of its layers, continues it. `model.save("x.keras")` and
    `keras.models.load_model` keep network, plan, views, optimizer, averages and ledger,
    but not the secret seed: a loaded model continues with a fresh one. `model.network`
    is an ordinary Keras model; saved by itself, it does not carry the ledger.

    Args:
      network: Keras model, float images [n,H,W,C] -> logits [n,classes]; uint8 images
        reach it as float32 in [0, 1].
      plan: the privacy budget. Training stops at its last update.
      views: makes K views of one example; its sensitivity must equal the plan's.
      seed: secret, int in [0, 2**128); by default 128 bits from the operating system.
        Noise and views derive from it. Whoever knows it can subtract the noise. With
        several workers, the first one's seed is used.
      chunk_size: examples vectorised together; affects memory and speed, and results
        only by rounding. Chosen by the network's shape by default, see
        privacy.clipping.
      ema_decay: of the averaged weights, in [0, 1).
      private_metrics: show the training loss, gradient norm and fraction of clipped
        examples, computed without noise and named "private_...". They are not covered
        by the guarantee.
      task: "single_label"; or "multi_label": a sigmoid and binary cross-entropy per
        output, with labels 0, 1, or NaN where not known, which then count for nothing.
      class_weights: one in [0, 1] per class, such as 1 for a rare class and less for a
        common one: each record's gradient is multiplied, once it is clipped, by the
        mean of its views' labels' weights. No record then moves the sum by more than
        the clip norm; but the weights must not come from private counts: take public
        ones, or privacy.counts. For one label per image.
      make_step: makes the PrivateStep; an audit uses its own, which adds canaries.

    Raises:
      DPMixError: the network is not allowed under differential privacy, or another
        argument is invalid.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        plan: PrivacyPlan,
        views: Views,
        seed: int | None = None,
        chunk_size: int | None = None,
        ema_decay: float = 0.9999,
        private_metrics: bool = False,
        task: str = SINGLE_LABEL,
        class_weights: Sequence[float] | None = None,
        make_step: Callable[..., PrivateStep] = PrivateStep,
        name: str = "dp_mix_model",
    ):
        super().__init__(name=name)
        validate_network(network)
        if not 0 <= ema_decay < 1:
            raise DPMixError(f"ema_decay must be in [0, 1), received: {ema_decay}.")
        check_task(task, views)
        self.class_weights = check_class_weights(class_weights, task, network)
        check_views(views, plan, replicas=self.distribute_strategy.num_replicas_in_sync)
        seed = randomness.as_seed(seed)
        self.network = network
        self.plan = plan
        self.views = views
        Ledger.of(network.variables).refuse_mixed_records(plan)
        self.account = Account.open(network.variables, plan)
        self.step = make_step(
            network,
            plan=plan,
            views=views,
            seed=seed,
            account=self.account,
            chunk_size=chunk_size,
            task=task,
            class_weights=self.class_weights,
        )
        self.task = task
        self.private_metrics = private_metrics
        self.num_classes = int(network.output_shape[-1])
        self._note_conditions(seed)
        if warning := history_warning(self.ledger, plan):
            logging.warning("%s", warning)
        self.average = ExponentialMovingAverage(network.trainable_variables, ema_decay)
        self._averages = self.average.averages
        self.built = True

    def _note_conditions(self, seed: randomness.Seed) -> None:
        """Records what the statement must tell about this training."""
        for condition, holds in {
            ledger.CHOSEN_SEED: seed.origin == randomness.CHOSEN,
            ledger.SHARED_SEED: seed.origin == randomness.SHARED,
            ledger.PUBLIC_POOL: self.views.synthetic > 0,
            ledger.PUBLIC_WEIGHTS: getattr(self.network, "public_weights", False),
            ledger.PRIVATE_METRICS: self.private_metrics,
            ledger.CLASS_WEIGHTS: self.class_weights is not None,
        }.items():
            if holds:
                self.account.note(condition)

    @property
    def chunk_size(self) -> int:
        """Examples vectorised together."""
        return self.step.chunk_size

    @property
    def ledger(self) -> Ledger:
        """Everything that was spent on the network, under this plan and others."""
        return self.account.ledger

    @property
    def updates(self) -> int:
        """Updates charged so far under the plan."""
        return self.account.next

    @property
    def input_seconds(self) -> float:
        """How long `fit` has waited for batches since the model was compiled."""
        return getattr(self.train_function, "input_seconds", 0.0)

    @property
    def epsilon(self) -> float:
        """Epsilon of everything spent on the network so far, at plan.delta."""
        return self.ledger.epsilon(self.plan.delta, self.plan.accountant)

    def statement(self, group_size: int = 1) -> str:
        """Returns, in plain words, the guarantee of what has been spent so far.

        Args:
          group_size: above 1, says too what holds for people with at most so many
            examples.
        """
        return state_guarantee(self.ledger, self.plan, group_size)

    def call(self, images, training=False):
        """Images [n,H,W,C], uint8 or float -> logits [n,classes]."""
        return self.network(as_float(images), training=training)

    def compile(self, optimizer="sgd", *, metrics=None, **kwargs):
        """Configures training, as Keras's compile does.

        Args:
          optimizer: any Keras optimizer; it only ever sees noisy gradients.
          metrics: for `evaluate`; "accuracy" takes integer labels.
          **kwargs: Keras's `run_eagerly`; and `jit_compile`, to compile with XLA the
            computation on a chunk's views. Off by default: on CPUs it is many times
            slower.

        Raises:
          DPMixError: a loss, class weights, gradient accumulation or loss scaling was
            given; or layers were frozen or unfrozen since the model was made.
        """
        kwargs = check_compile(kwargs)
        validate_network(self.network)  # layers may have been unfrozen meanwhile
        self._refuse_refrozen()
        self.step.jit_compile = bool(kwargs.pop("jit_compile", False))
        optimizer = keras.optimizers.get(optimizer)
        check_optimizer(optimizer)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            leave_gradients_as_they_are(optimizer)
        super().compile(
            optimizer=optimizer,
            loss=_SHOWN_LOSSES[self.task],
            metrics=metrics,
            auto_scale_loss=False,
            jit_compile=False,
            **kwargs,
        )
        self.optimizer.build(self.network.trainable_variables)
        # train_step does not use Keras's metrics, but fit still asks for their results.
        logits = tf.zeros([1, self.num_classes])
        labels = logits if self.task == MULTI_LABEL else tf.zeros([1], tf.int32)
        self.compute_metrics(None, labels, logits)
        self.reset_metrics()

    def fit(self, x=None, y=None, *, assume_poisson: bool = False, **kwargs):
        """Trains on Poisson-sampled batches until they or the plan's updates run out.

        Args:
          x: the private examples as a source, which is Poisson-sampled by the plan; or
            PoissonBatches of a source, made with this plan. Either continues at the
            plan's next update, so that another call to fit never repeats batches.
          y: not used.
          assume_poisson: accept any dataset of (images, labels) batches as `x`, on your
            word that they are Poisson-sampled with the plan's probability. The
            statement then says that this was not checked.
          **kwargs: Keras's fit arguments: epochs, steps_per_epoch, callbacks,
            validation_data (which may be a source), verbose, ...

        Returns:
          Keras's History.

        Raises:
          BudgetExhaustedError: more updates are requested than the plan has left.
          DPMixError: the guarantee would not hold with these batches or arguments.
        """
        workers = cluster.num_workers(self.distribute_strategy)
        check_fit_arguments(y, kwargs, workers=workers)
        self._refuse_refrozen()
        self.account.recount()
        data, available = choose_batches(
            x, self.step, self.distribute_strategy, assume_poisson=assume_poisson
        )
        steps = kwargs.get("steps_per_epoch")
        epochs = kwargs.get("epochs", 1) - kwargs.get("initial_epoch", 0)
        check_budget(self.plan, self.updates, epochs * (steps or available))
        kwargs.setdefault("shuffle", False)
        if not isinstance(x, tf.data.Dataset):
            # Keras cannot know the length of the data: where it starts is known only
            # after callbacks have loaded what they load.
            kwargs["steps_per_epoch"] = steps or available
        kwargs["validation_data"] = in_order(kwargs.get("validation_data"))
        with cluster.lost_workers_reported(self.distribute_strategy):
            return super().fit(data, **kwargs)

    def evaluate(self, x=None, y=None, **kwargs):
        """Evaluates as Keras does; `x` may be a source, which is read in order."""
        return super().evaluate(in_order(x), y, **kwargs)

    def _refuse_refrozen(self) -> None:
        if not self.average.follows(self.network.trainable_variables):
            raise DPMixError(
                "Layers were frozen or unfrozen after this DPMixModel was made. Make a "
                "new one from the network: it counts what this one has spent."
            )

    def _maybe_symbolic_build(self, *unused, **also_unused):
        """Does nothing: all is built, and Keras's own fails with several replicas."""

    def make_train_function(self, force=False):
        """Makes the function that `fit` calls for each update."""
        if self.train_function is None or force:
            self.train_function = TrainFunction(
                self.train_step,
                self.distribute_strategy,
                eagerly=self.run_eagerly,
                diverged=self._diverged,
            )

    def _diverged(self) -> DivergedError:
        return DivergedError(
            "The network no longer computes finite numbers after update "
            f"{self.updates} of {self.plan.updates}: training has diverged and stops "
            f"here, with epsilon = {round_up(self.epsilon)} spent. Lower the learning "
            "rate and train a new network; what is spent stays spent."
        )

    def abandon_update(self) -> None:
        """Makes `fit` fail in the current update, none of which is applied.

        For another thread to call during a long update; it takes effect within one
        chunk's time. With several replicas it does nothing. Afterwards the model cannot
        be trained again.
        """
        self.step.abandon()

    def train_on_batch(self, *arguments, **settings):
        """Always refuses: the plan's sampler did not draw such a batch."""
        raise DPMixError(
            "train_on_batch takes a batch that the plan's sampler did not draw. Use "
            "fit(PoissonBatches(source, plan))."
        )

    def train_step(self, batch):
        """Makes one private update; called by Keras inside a graph."""
        if not isinstance(batch, Batch):
            raise DPMixError(
                "train_step was given a batch that the plan's sampler did not draw. "
                "Use fit(PoissonBatches(source, plan))."
            )
        release = self.step.noisy_mean(batch)
        with tf.control_dependencies([release.update]):  # not before it is charged
            self.optimizer.apply(release.gradients, self.network.trainable_variables)
            self.average.update(release.update)
        logs = {"updates": release.update + 1, "finite": self.step.is_finite()}
        if self.private_metrics:
            clipped, size = release.clipped, tf.maximum(release.size, 1.0)
            logs["private_loss"] = clipped.loss_sum / size
            logs["private_gradient_norm"] = clipped.norm_sum / size
            logs["private_clipped"] = clipped.clipped / size
            logs["private_non_finite"] = clipped.non_finite
        return logs

    def clipped_gradient_sum(self, images, labels, *, ids=None, update=None):
        """Returns the sum to which an update adds noise. Private: it has no noise yet.

        Args:
          images: [n,H,W,C], uint8 or float.
          labels: integers [n], or one-hot or soft [n,classes], or several labels.
          ids: int64 [n], keys of the examples' views; by default their positions.
          update: int, the update whose views to make; by default the next one.

        Returns:
          One float32 tensor per trainable variable of the network.
        """
        ids = np.arange(len(images)) if ids is None else ids
        result = self._clipped_sum_graph(
            tf.convert_to_tensor(images),
            tf.convert_to_tensor(labels),
            tf.convert_to_tensor(ids, tf.int64),
            tf.constant(self.updates if update is None else update, tf.int64),
        )
        return result.total

    @tf.function(reduce_retracing=True)
    def _clipped_sum_graph(self, images, labels, ids, update):
        return self.step.clipped_sum(images, labels, ids, update)


# What Keras's evaluate shows; training uses the step's own.
_SHOWN_LOSSES = {
    SINGLE_LABEL: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    MULTI_LABEL: shown_binary_cross_entropy,
}
