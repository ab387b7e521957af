"""DPMixModel: a Keras model whose train_step is one differentially private update."""

import json
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from dpmix_tf.data import Batch, ExampleSource, PoissonBatches
from dpmix_tf.errors import BudgetExhaustedError, DPMixError
from dpmix_tf.models import count_activations, split_frozen_front, validate_network
from dpmix_tf.privacy import PrivacyPlan, randomness
from dpmix_tf.privacy.clipping import (
    ClippedSum,
    choose_chunk_size,
    clipped_gradient_sum,
)
from dpmix_tf.privacy.mechanism import GaussianMechanism
from dpmix_tf.training import cluster
from dpmix_tf.training.averaging import ExponentialMovingAverage
from dpmix_tf.training.optimizers import check_compile, check_optimizer
from dpmix_tf.views import NaiveMixup, ViewMaker
from dpmix_tf.views.maker import as_float

# float16 is not among them: it needs loss scaling.
_COMPUTE_DTYPES = ("float32", "bfloat16")


@keras.saving.register_keras_serializable(package="dpmix_tf")
class DPMixModel(keras.Model):
    """Trains `network` under `plan` on views made by `views`.

    One update: for each example of a Poisson-sampled batch, make its K views, take the
    gradient of their mean cross-entropy, clip it once to plan.clip_norm, add it up;
    then add noise once, divide by the expected batch size, and let the optimizer apply
    it. `compile`, `fit`, `evaluate`, `predict` are Keras's.

    Made and compiled in the scope of a tf.distribute strategy, `fit` shares each batch
    out among the replicas and adds up their sums; every replica then adds the same
    noise, so that it is added once, and makes the same update.

    Example:
      model = DPMixModel(network, plan=plan, views=dp_mix_self(augment="crop_flip"))
      model.compile(optimizer=keras.optimizers.SGD(4.0), metrics=["accuracy"])
      model.fit(PoissonBatches(source, plan), validation_data=(images, labels))

    `model.save("x.keras")` and `keras.models.load_model` keep network, plan, views,
    optimizer, averages and the count of updates, and not the secret seed: what was
    loaded goes on with a fresh one. `model.network` is an ordinary Keras model.

    Args:
      network: Keras model, float images [n,H,W,C] -> logits [n,classes]; uint8 images
        reach it as float32 in [0, 1].
      plan: the privacy budget. Training stops at its last update.
      views: makes K views of one example; its sensitivity must be the plan's.
      seed: secret, int in [0, 2**128); default 128 bits from the operating system.
        Noise and views derive from it. Whoever knows it can take the noise away. Of
        several workers the first one's counts.
      chunk_size: examples vectorised together; memory and speed, never results beyond
        rounding. Default by the network's shape, see privacy.clipping.
      ema_decay: of the averaged weights, in [0, 1).
      private_metrics: show the un-noised training loss, gradient norm and share of
        clipped examples, named "private_...". They are not covered by the guarantee.

    Raises:
      DPMixError: the network is not allowed under differential privacy.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        plan: PrivacyPlan,
        views: ViewMaker | NaiveMixup,
        seed: int | None = None,
        chunk_size: int | None = None,
        ema_decay: float = 0.9999,
        private_metrics: bool = False,
        name: str = "dp_mix_model",
    ):
        super().__init__(name=name)
        validate_network(network)
        if not 0 <= ema_decay < 1:
            raise DPMixError(f"ema_decay must be in [0, 1), received: {ema_decay}.")
        if (
            network.compute_dtype not in _COMPUTE_DTYPES
            or network.variable_dtype != "float32"
        ):
            raise DPMixError(
                f"The network computes in {network.compute_dtype} on weights in "
                f"{network.variable_dtype}; gradients are clipped and noised in "
                'float32. Build it under the policy "float32" or "mixed_bfloat16".'
            )
        if plan.sensitivity != views.sensitivity:
            raise DPMixError(
                f"The plan's noise is for a sensitivity of {plan.sensitivity:g} clip "
                f"norms; with these views it is {views.sensitivity:g}. Make the plan "
                "with sensitivity=views.sensitivity."
            )
        if views.sensitivity > 1 and self.distribute_strategy.num_replicas_in_sync > 1:
            raise DPMixError(
                "naive mixup does not share its microbatches out among replicas. Use "
                "one replica."
            )
        self.seed_chosen = seed is not None
        seed = randomness.fresh_seed() if seed is None else seed
        self.network = network
        parts = split_frozen_front(network)
        self._parts = lambda: parts  # as attributes, Keras would save the layers twice
        self._jit_chunks = False
        self._abandoned = _Flag(self.distribute_strategy)
        self.plan = plan
        self.views = views
        self.chunk_size = self._checked_chunk_size(chunk_size)
        self.private_metrics = private_metrics
        self.assume_poisson = False
        self.public_weights = getattr(network, "public_weights", False)
        self._most_updates = 0  # that this object has seen applied
        self.input_seconds = 0.0  # what `fit` has waited for batches
        self.num_classes = int(network.output_shape[-1])
        self._mechanism = GaussianMechanism(plan, seed)
        self._view_stream = randomness.Stream(seed, "views")
        # Keras weights, so that save_weights and load_weights carry them: a model that
        # came back with its count at zero would report too small an epsilon.
        self._updates = self.add_weight(
            name="updates",
            shape=(),
            dtype="int64",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self.average = ExponentialMovingAverage(network.trainable_variables, ema_decay)
        self._averages = self.average.averages
        self.built = True

    def _checked_chunk_size(self, chunk_size: int | None) -> int:
        """The chunk size asked for, or one that suits the network; logged."""
        if chunk_size is not None and chunk_size < 1:
            raise DPMixError(f"chunk_size must be 1 or more, received: {chunk_size}.")
        views = self.views.views_per_record
        activations = count_activations(self._parts()[1])
        weights = sum(int(np.prod(v.shape)) for v in self.network.trainable_variables)
        if chunk_size is not None:
            why = "as asked for"
        else:
            chunk_size = choose_chunk_size(
                views_per_example=views,
                activations_per_view=activations,
                parameters=weights,
            )
            why = (
                f"K = {views}, {activations} activations a view, {weights} "
                "trainable weights"
            )
        logging.info("Chunks of %d example(s): %s.", chunk_size, why)
        return int(chunk_size)

    @property
    def updates(self) -> int:
        """Updates applied so far; each has been paid for."""
        return self._keep_count()

    @property
    def epsilon(self) -> float:
        """Epsilon spent so far, at plan.delta."""
        return self.plan.epsilon(self.updates)

    def statement(self, updates: int | None = None) -> str:
        """Says in plain words what has been spent so far (or by `updates`)."""
        return self.plan.statement(
            self.updates if updates is None else updates,
            assume_poisson=self.assume_poisson,
            public_pool=self.views.synthetic > 0,
            public_weights=self.public_weights,
            seed_chosen=self.seed_chosen,
        )

    def call(self, images, training=False):
        """Images [n,H,W,C], uint8 or float -> logits [n,classes]."""
        return self.network(as_float(images), training=training)

    def compile(self, optimizer="sgd", *, metrics=None, **kwargs):
        """Configures training, as Keras's compile does.

        Args:
          optimizer: any Keras optimizer; it only ever sees noisy gradients.
          metrics: for `evaluate`; "accuracy" takes integer labels.
          **kwargs: Keras's `run_eagerly`, and `jit_compile`: compile with XLA what is
            done to a chunk's views. Off by default: on CPUs it is many times slower.

        Raises:
          DPMixError: a loss, class weights, gradient accumulation or loss scaling; or
            layers that were unfrozen since the model was made.
        """
        kwargs = check_compile(kwargs)
        validate_network(self.network)  # layers may have been unfrozen meanwhile
        if not self.average.follows(self.network.trainable_variables):
            raise DPMixError(
                "Layers were frozen or unfrozen after this DPMixModel was made. Make a "
                "new one of the network."
            )
        self._jit_chunks = bool(kwargs.pop("jit_compile", False))
        optimizer = keras.optimizers.get(optimizer)
        check_optimizer(optimizer)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            _leave_gradients_as_they_are(optimizer)
        super().compile(
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=metrics,
            auto_scale_loss=False,
            jit_compile=False,
            **kwargs,
        )
        self.optimizer.build(self.network.trainable_variables)
        # train_step leaves Keras's metrics alone; fit still asks for their results.
        self.compute_metrics(
            None, tf.zeros([1], tf.int32), tf.zeros([1, self.num_classes])
        )
        self.reset_metrics()

    def fit(self, x=None, y=None, *, assume_poisson: bool = False, **kwargs):
        """Trains on Poisson-sampled batches until they or the plan's updates end.

        Args:
          x: PoissonBatches made with this plan. It continues at this model's update, so
            that calling fit again never draws the same batches again.
          y: not used.
          assume_poisson: take `x` as any dataset of (images, labels) batches, on your
            word that they are Poisson-sampled with the plan's probability. The
            statement then says that nobody checked.
          **kwargs: Keras's fit arguments: epochs, steps_per_epoch, callbacks,
            validation_data, verbose, ...

        Returns:
          Keras's History.

        Raises:
          BudgetExhaustedError: more updates asked for than the plan has left.
          DPMixError: batches or arguments under which the guarantee would not hold.
        """
        for argument in ("validation_split", "class_weight", "sample_weight"):
            if kwargs.get(argument) is not None:
                raise DPMixError(
                    f"fit takes no {argument}: it would change which examples are "
                    "trained on, or how much, after the plan was made. Cut a "
                    "validation set off before making the plan."
                )
        if y is not None:
            raise DPMixError("fit takes PoissonBatches(source, plan), not x and y.")
        several = cluster.num_workers(self.distribute_strategy) > 1
        if several and kwargs.get("validation_data") is not None:
            raise DPMixError(
                "validation_data is not supported with several workers: call evaluate "
                "on the network after fit."
            )
        left = self.plan.updates - self.updates
        if not self.average.follows(self.network.trainable_variables):
            raise DPMixError(
                "Layers were frozen or unfrozen after compile. Make a new DPMixModel "
                "of the network."
            )
        if isinstance(x, PoissonBatches):
            if x.plan != self.plan:
                raise DPMixError(
                    "The batches were drawn by another plan than the model's: "
                    f"{x.plan} against {self.plan}."
                )
            self._check_source(x.source)
            self.seed_chosen |= x.seed_chosen
            data, available = self._share_out(x)
        elif self.distribute_strategy.num_replicas_in_sync > 1:
            raise DPMixError(
                "Only PoissonBatches can be shared out among several replicas; "
                f"received: {type(x).__name__}."
            )
        elif assume_poisson and isinstance(x, tf.data.Dataset):
            self.assume_poisson = True
            # A data set of unknown length ends with the budget.
            available = int(x.cardinality())
            data = x if available >= 0 else x.take(left)
            available = available if available >= 0 else left
        else:
            raise DPMixError(
                "fit needs batches that were drawn by the plan's sampler: "
                f"PoissonBatches(source, plan); received: {type(x).__name__}. The "
                "accountant assumes Poisson sampling, and shuffled or fixed batches "
                "are not that. If a tf.data.Dataset of yours is Poisson-sampled, pass "
                "assume_poisson=True."
            )
        steps = kwargs.get("steps_per_epoch")
        epochs = kwargs.get("epochs", 1) - kwargs.get("initial_epoch", 0)
        asked = epochs * (steps or available)
        if left <= 0 or asked > left:
            raise BudgetExhaustedError(
                f"The plan allows {self.plan.updates} updates, {self.updates} are "
                f"spent, and this call asks for {asked if asked > 0 else 'more'}. "
                "Training stops here to keep the guarantee; for more updates make a "
                "new plan and train from the start."
            )
        kwargs.setdefault("shuffle", False)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # Keras cannot tell how long shared-out data is.
            kwargs["steps_per_epoch"] = steps or available
        try:
            with cluster.lost_workers_reported(self.distribute_strategy):
                return super().fit(data, **kwargs)
        finally:
            self._keep_count()

    def _keep_count(self) -> int:
        """Returns the count of updates, put back where it was rewound.

        Keras rewinds weights, this count among them, where EarlyStopping restores the
        best ones or older weights are loaded. What was spent stays spent, and no
        update's noise is used twice.
        """
        updates = int(self._updates.numpy())
        if updates < self._most_updates:
            self._updates.assign(self._most_updates)
        self._most_updates = max(updates, self._most_updates)
        return self._most_updates

    def _share_out(self, batches: PoissonBatches):
        """This process's part of the batches from here on; how many updates there are.

        All processes draw with the first one's seed.
        """
        strategy = self.distribute_strategy
        with cluster.lost_workers_reported(strategy):
            seed = cluster.seed_from_chief(strategy, batches.seed)
        batches = batches.starting_at(self.updates, seed=seed)
        replicas = strategy.num_replicas_in_sync
        if replicas == 1:
            return batches.dataset(), len(batches)

        def part(context):
            each = replicas // context.num_input_pipelines
            first = each * context.input_pipeline_id
            return batches.dataset(
                replicas=range(first, first + each), num_replicas=replicas
            )

        return strategy.distribute_datasets_from_function(part), len(batches)

    def _maybe_symbolic_build(self, *unused, **also_unused):
        """Nothing is left to build; Keras's own fails on several replicas' batches."""

    def make_train_function(self, force=False):
        """Makes what `fit` calls for each update, on one replica or several."""
        if self.train_function is not None and not force:
            return
        strategy = self.distribute_strategy

        def update(batch):
            logs = strategy.run(self.train_step, args=(batch,))
            # They are the same on all replicas.
            return {
                name: strategy.experimental_local_results(value)[0]
                for name, value in logs.items()
            }

        traced: dict[Any, Any] = {}

        def train_function(iterator):
            started = time.perf_counter()
            batch = next(iterator)
            self.input_seconds += time.perf_counter() - started
            spec = iterator.element_spec  # batches of any size: traced once
            if spec not in traced:
                traced[spec] = (
                    update
                    if self.run_eagerly
                    else tf.function(update, input_signature=(spec,), autograph=False)
                )
            logs = traced[spec](batch)
            self._most_updates += 1
            return logs

        self.train_function = train_function

    def abandon_update(self) -> None:
        """Makes `fit` fail in the update under way, of which nothing is applied.

        For another thread, where an update takes long; it takes a chunk's time. On
        several replicas it does nothing. The model does not train again.
        """
        self._abandoned.set()

    def train_on_batch(self, *arguments, **settings):
        """Refused: nobody would have sampled such a batch."""
        raise DPMixError(
            "train_on_batch takes a batch that the plan's sampler did not draw. Use "
            "fit(PoissonBatches(source, plan))."
        )

    def _check_source(self, source: ExampleSource) -> None:
        """Refuses examples that the network was not built for."""
        expected = tuple(self.network.input_shape[1:])
        if tuple(source.image_shape) != expected:
            raise DPMixError(
                f"The network takes images of shape {expected}; the source's are "
                f"{source.image_shape}."
            )
        if len(source.class_names) > self.num_classes:
            raise DPMixError(
                f"The network has {self.num_classes} outputs; the source has "
                f"{len(source.class_names)} classes."
            )

    def train_step(self, batch):
        """Makes one private update; called by Keras inside a graph."""
        if not isinstance(batch, Batch) and not self.assume_poisson:
            raise DPMixError(
                "train_step was given a batch that the plan's sampler did not draw. "
                "Use fit(PoissonBatches(source, plan))."
            )
        images, labels, ids = _unpack(batch)
        with tf.control_dependencies([labels]):  # not before there is a batch
            within = tf.debugging.Assert(
                self._updates.value < self.plan.updates,
                [f"The plan's {self.plan.updates} updates are spent: training stops."],
            )
        with tf.control_dependencies([within] if within is not None else []):
            update = tf.identity(self._updates.value)
        result = self._clipped_sum(images, labels, ids, update)
        size = tf.cast(tf.shape(images)[0], tf.float32)
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            result, size = replica.all_reduce(
                tf.distribute.ReduceOp.SUM, (result, size)
            )
        with tf.control_dependencies(self._abandoned.checks(result)):
            # Equal on all replicas, noise included: it is added once in total.
            gradients = self._mechanism.noisy_mean(result.total, update)
            self.optimizer.apply(gradients, self.network.trainable_variables)
            self.average.update(update)
            self._updates.assign_add(1)
        logs = {"updates": update + 1}
        if self.private_metrics:
            size = tf.maximum(size, 1.0)
            logs["private_loss"] = result.loss_sum / size
            logs["private_gradient_norm"] = result.norm_sum / size
            logs["private_clipped"] = result.clipped / size
            logs["private_non_finite"] = result.non_finite
        return logs

    def clipped_gradient_sum(self, images, labels, *, ids=None, update=None):
        """Returns what an update adds noise to. Private: it is not noised.

        Args:
          images: [n,H,W,C], uint8 or float.
          labels: integers [n], or one-hot or soft [n,classes].
          ids: int64 [n], keys of the examples' views; default their positions.
          update: int, whose views to make; default the next one.

        Returns:
          One float32 tensor a trainable variable of the network.
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
        return self._clipped_sum(images, labels, ids, update)

    def _clipped_sum(self, images, labels, ids, update) -> ClippedSum:
        """The clipped sum of one batch: see privacy/clipping.py."""
        labels = self._soft_labels(labels)
        update_seed = randomness.fold_in(self._view_stream.seed, update)
        front, rest = self._parts()

        records, make_views = self.views.records(
            tf.ensure_shape(images, [None, *self.network.input_shape[1:]]),
            labels,
            ids,
            seed=update_seed,
            expected_batch_size=self.plan.expected_batch_size,
        )

        def views_of(*records):
            views, view_labels = make_views(*records)
            if front is not None:
                features = front(
                    tf.reshape(views, [-1, *views.shape[2:]]), training=False
                )
                views = tf.reshape(features, [*views.shape[:2], *features.shape[1:]])
            return views, view_labels

        def mean_loss(views, view_labels):
            logits = tf.cast(rest(views, training=True), tf.float32)
            # TensorFlow's fused cross-entropy is wrong for labels that sum to 0.
            losses = -tf.reduce_sum(view_labels * tf.nn.log_softmax(logits), axis=-1)
            return tf.reduce_mean(losses)

        return clipped_gradient_sum(
            self._mechanism,
            [variable.value for variable in self.network.trainable_variables],
            records,
            views_of,
            mean_loss,
            chunk_size=self.chunk_size,
            jit_compile=self._jit_chunks,
            abandoned=self._abandoned.variable,
        )

    def _soft_labels(self, labels):
        if labels.shape.rank == 1:
            return tf.one_hot(labels, self.num_classes)
        return tf.cast(tf.ensure_shape(labels, [None, self.num_classes]), tf.float32)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` makes an equal model of, the seed left out."""
        self._keep_count()  # before Keras saves the weights
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            # Some layers of layers forget it.
            "trainable": [bool(v.trainable) for v in self.network.variables],
            "plan": self.plan.to_dict(),
            "views": self.views.to_dict(),
            "chunk_size": self.chunk_size,
            "ema_decay": self.average.decay,
            "private_metrics": self.private_metrics,
            "seed_chosen": self.seed_chosen,
            "assume_poisson": self.assume_poisson,
            "public_weights": self.public_weights,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects=None) -> "DPMixModel":
        """Makes the model again, with a fresh seed.

        Raises:
          DPMixError: the pool of synthetic images is gone or has changed.
        """
        config = dict(config)
        told = ("seed_chosen", "assume_poisson", "public_weights")
        history = {name: config.pop(name) for name in told}
        config["network"] = keras.saving.deserialize_keras_object(
            config["network"], custom_objects=custom_objects
        )
        config["network"].public_weights = history["public_weights"]
        trainable = config.pop("trainable")
        for variable, value in zip(config["network"].variables, trainable, strict=True):
            variable.trainable = value
        config["plan"] = PrivacyPlan(**config["plan"])
        kind = NaiveMixup if "microbatch" in config["views"] else ViewMaker
        config["views"] = kind.from_dict(config["views"])
        model = cls(**config)
        for name, value in history.items():  # the updates so far were made under it
            setattr(model, name, value)
        return model

    def save(self, filepath, *arguments, **settings) -> None:
        """Saves a `.keras` file, as Keras does."""
        if not str(filepath).endswith(".keras"):
            raise DPMixError(f"save takes a .keras file, received: {filepath}.")
        super().save(filepath, *arguments, **settings)

    def load_weights(self, filepath, **settings) -> None:
        """Loads all weights of a `.weights.h5` or `.keras` file, or none of them.

        Raises:
          DPMixError: another kind of file, or skip_mismatch: the count of updates could
            be left behind.
        """
        if settings or not str(filepath).endswith((".weights.h5", ".keras")):
            raise DPMixError(
                "load_weights takes a .weights.h5 or .keras file, and all of it, so "
                f"that the count of updates comes along; received: {filepath} "
                f"{settings or ''}. To start from weights alone, load them into "
                "model.network."
            )
        variables = [*self.variables]
        if getattr(self, "optimizer", None) is not None:  # compiled
            variables += self.optimizer.variables
        before = [np.asarray(variable) for variable in variables]
        try:
            super().load_weights(filepath)
        except Exception:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            raise

    def save_own_variables(self, store) -> None:
        """Saves, with the count of updates, what they were made under."""
        super().save_own_variables(store)
        text = json.dumps([self.plan.to_dict(), self.seed_chosen, self.assume_poisson])
        store[_MADE_UNDER] = np.frombuffer(text.encode(), np.uint8)

    def load_own_variables(self, store) -> None:
        """Loads them.

        Raises:
          DPMixError: weights of another plan: their updates cost something else.
        """
        names = set(store.keys())  # of an H5 file too, which is no dict
        if _MADE_UNDER not in names:
            raise DPMixError(
                "These weights do not say under what plan they were trained: they were "
                "not saved by a DPMixModel. Load them into its network."
            )
        text = np.asarray(store[_MADE_UNDER], np.uint8).tobytes()
        plan, seed_chosen, assume_poisson = json.loads(text)
        if plan != self.plan.to_dict():
            raise DPMixError(
                "These weights were trained under another plan:\n"
                f"  {plan}\nthan this model's:\n  {self.plan.to_dict()}\n"
                "Load them into a model of their own plan; to start from them, load "
                "its network's weights, and count both."
            )
        super().load_own_variables(
            {name: store[name] for name in names - {_MADE_UNDER}}
        )
        self.seed_chosen |= seed_chosen
        self.assume_poisson |= assume_poisson

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile` was given, for Keras to save."""
        config = super().get_compile_config()
        if not config:
            return config
        ours = {name: config[name] for name in ("optimizer", "metrics", "run_eagerly")}
        return ours | {"jit_compile": self._jit_chunks}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as the saved one was."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def state(self) -> dict[str, list[Any]]:
        """Variables that a checkpoint must hold besides the run's seed, by group."""
        return {
            "network": kept_variables(self.network),
            "optimizer": list(self.optimizer.variables),
            "average": list(self.average.averages),
            "updates": [self._updates],
        }


def kept_variables(network: keras.Model) -> list[Any]:
    """Variables of a network that a checkpoint must hold.

    Of one on public weights the trained ones alone: the rest is built again from the
    file, whose digest is on record.
    """
    if getattr(network, "public_weights", False):
        return list(network.trainable_variables)
    return list(network.variables)


# Where weights files keep the plan, and whether it was kept to.
_MADE_UNDER = "made_under"


class _Flag:
    """Whether the update under way is abandoned; a plain object, so never saved."""

    def __init__(self, strategy: tf.distribute.Strategy):
        alone = strategy.num_replicas_in_sync == 1
        self.variable = tf.Variable(False, trainable=False) if alone else None

    def set(self) -> None:
        """Raises the flag."""
        if self.variable is not None:
            self.variable.assign(True)

    def checks(self, result: ClippedSum) -> list[tf.Operation]:
        """What must pass before `result` is used: it may be of a part of the batch."""
        if self.variable is None:
            return []
        with tf.control_dependencies([result.loss_sum]):
            whole = tf.debugging.Assert(
                ~self.variable, ["The update was abandoned; nothing of it is applied."]
            )
        return [whole] if whole is not None else []


def _unpack(batch):
    """(images, labels, ids) of a Batch, or of (images, labels): positions as ids."""
    if isinstance(batch, Batch):
        return batch
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(batch)
    if weights is not None:
        raise DPMixError("Batches take no sample weights: every example counts once.")
    return images, labels, tf.range(tf.shape(images)[0], dtype=tf.int64)


def _leave_gradients_as_they_are(optimizer: keras.optimizers.Optimizer) -> None:
    """Keeps a Keras optimizer from adding up the replicas' gradients.

    They are equal already, noise included. Adding up what is not yet noisy is no way
    out: the optimizer's own clipping, if any, would come before the noise.
    """
    if hasattr(optimizer, "inner"):
        _leave_gradients_as_they_are(optimizer.inner)
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise DPMixError(
            f"Keras {keras.__version__} adds gradients up over replicas in a way that "
            "dpmix_tf does not know: the noise would be wrong. Use one replica, or a "
            "Keras version that requirements.txt allows."
        )
    optimizer._all_reduce_sum_gradients = lambda gradients: gradients
