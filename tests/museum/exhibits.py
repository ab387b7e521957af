"""A museum of broken privacy: faults, and what catches them.

A context manager plants each fault in the real code, and a check observes it from
outside. A check returns (caught, what it saw); on the unchanged code it must not catch.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf import views
from dpmix_tf.auditing import audit_one_run
from dpmix_tf.data import ArraySource, PoissonBatches, load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.account import Account
from dpmix_tf.privacy.mechanism import GaussianMechanism, SeededGaussianSumQuery
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.training import (
    DPMixModel,
    Trainer,
    default_config,
    dp_model,
    private_step,
)
from dpmix_tf.views.augment import Augmentation
from tests.conftest import plan_for, tiny_network

CLIP = 0.02  # shorter than any example's gradient
SEED = 2


# Checks


def audited():
    """A white-box audit of a short training run on digits."""
    config = default_config()
    config.network.update(name="convnet", widths=(16, 32), groups=4)
    config.views.base, config.views.mixed, config.views.augment = 2, 1, "affine"
    config.privacy.update(
        epsilon=4.0, delta=1e-4, expected_batch_size=200, updates=12, accountant="pld"
    )
    audit = audit_one_run(config, image_canaries=0, gradient_canaries=4_000, seed=7)
    bound = f"epsilon >= {audit.epsilon:.2f}, while {audit.claimed[0]:.2f} is claimed"
    return audit.refuted, bound


def _model(source, *, noise=0.0, network=None, batch=8.0, updates=6, rate=1.0):
    plan = plan_for(len(source), batch=batch, noise=noise, clip=CLIP, updates=updates)
    keras.utils.set_random_seed(SEED)
    model = DPMixModel(
        network or tiny_network(),
        plan=plan,
        views=views.dp_mix_self(base=3, mixed=2, padding=1),
        seed=11,
        chunk_size=4,
    )
    model.compile(keras.optimizers.SGD(rate))
    return model


def _digits(count=40):
    source = load_dataset("digits").train
    return ArraySource(*source.read(np.arange(count)))


def _length(parts):
    return float(np.sqrt(sum(np.sum(np.square(part)) for part in parts)))


def sensitivity():
    """The most that one example moves the clipped sum of eight, or of two."""
    source = _digits(8)
    model = _model(source)
    images, labels = source.read(np.arange(8))
    # The network is sure of this example's class, so its gradient is short.
    kernel = model.network.layers[-1].kernel
    kernel.assign(5 * kernel)
    labels[0] = np.argmax(model(images[:1])[0])
    ids = np.arange(8)

    def total(kept):
        parts = model.clipped_gradient_sum(images[kept], labels[kept], ids=ids[kept])
        return [part.numpy() for part in parts]

    groups = [ids, *(np.array([0, other]) for other in ids[1:])]
    moved = max(
        _length([a - b for a, b in zip(total(group), total(less), strict=True)])
        for group in groups
        for less in (group[group != out] for out in group)
    )
    saw = f"one example moves the sum by {moved / CLIP:.3f} C"
    return moved > CLIP * (1 + 1e-5), saw


def _noises(updates, *, sizes):
    """The noise of each update on a batch of a given size: a list per update."""
    source = _digits()
    model = _model(source, noise=2.0, updates=len(sizes))
    seen = []
    for update, size in zip(updates, sizes, strict=True):
        images, labels = source.read(np.arange(size))
        total = model.clipped_gradient_sum(images, labels, update=update)
        noisy = model.step.mechanism.noisy_mean(
            list(total), tf.constant(update, tf.int64)
        )
        seen.append(
            [
                (n.numpy() * model.plan.expected_batch_size - t.numpy()).ravel()
                for n, t in zip(noisy, total, strict=True)
            ]
        )
    return model.plan, seen


def noise_everywhere():
    """The noise on each variable, compared with the planned standard deviation."""
    plan, (parts,) = _noises([0], sizes=[5])
    planned = plan.noise_multiplier * plan.clip_norm
    ratios = [float(np.std(part) / planned) for part in parts if part.size > 20]
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    return abs(worst - 1) > 0.5, f"a variable's noise is {worst:.2f} of that planned"


def noise_fresh():
    """The correlation between the noise of two updates."""
    _, (first, second) = _noises([0, 1], sizes=[5, 5])
    alike = np.corrcoef(np.concatenate(first), np.concatenate(second))[0, 1]
    return alike > 0.5, f"the noise of two updates has a correlation of {alike:.2f}"


def noise_whatever_the_batch():
    """The noise on an empty batch, compared with that on a full one."""
    plan, (empty, full) = _noises([0, 0], sizes=[0, 24])
    ratio = float(np.std(np.concatenate(empty)) / np.std(np.concatenate(full)))
    return abs(
        ratio - 1
    ) > 0.1, f"an empty batch's noise is {ratio:.2f} of a full one's"


def poisson():
    """The sizes of 2,000 batches, whose variance Poisson sampling determines."""
    source = _digits(40)
    plan = plan_for(40, batch=8, updates=2_000)
    batches = PoissonBatches(source, plan, seed=5)
    drawn = [batches.indices(update) for update in range(2_000)]
    twice = sum(len(np.unique(ids)) < len(ids) for ids in drawn)
    variance = float(np.var([len(ids) for ids in drawn]) / (40 * 0.2 * 0.8))
    saw = f"sizes have {variance:.2f} of the binomial variance; {twice} have repeats"
    return abs(variance - 1) > 0.3 or twice > 0, saw


def resumed():
    """The weights of a run that stops halfway and resumes, and of one that does not."""

    def weights(stops):
        source = _digits()
        model = _model(source, noise=2.0)
        for steps in stops:
            batches = PoissonBatches(source, model.plan, seed=3)
            model.fit(batches, steps_per_epoch=steps, verbose=0)
        return [variable.numpy() for variable in model.network.trainable_variables]

    apart = _length([a - b for a, b in zip(weights([6]), weights([3, 3]), strict=True)])
    return apart > 1e-3, f"the resumed run's weights end {apart:.3g} away"


def counted():
    """The updates that the optimizer applied, and those that epsilon counts."""
    source = _digits()
    model = _model(source, noise=2.0, updates=6)
    with contextlib.suppress(DPMixError):
        for _ in range(4):
            steps = min(3, 6 - model.updates)
            model.fit(
                PoissonBatches(source, model.plan), steps_per_epoch=steps, verbose=0
            )
    applied = int(model.optimizer.iterations.numpy())
    return applied != model.updates, f"{applied} applied, {model.updates} counted"


def nothing_but_gradients():
    """Changes in a network besides those of its trainable weights."""
    source = _digits()
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    before = [variable.numpy() for variable in network.non_trainable_variables]
    try:
        model = _model(source, network=network)
    except DPMixError as error:
        return True, f"refused: {str(error).splitlines()[0][:60]}..."
    images, labels = source.read(np.arange(5))
    model.clipped_gradient_sum(images, labels)
    after = [variable.numpy() for variable in network.non_trainable_variables]
    moved = _length([a - b for a, b in zip(after, before, strict=True)])
    return moved > 0, f"statistics move by {moved:.3g} without clipping or noise"


def pool_is_public():
    """A training run with a pool of synthetic images, some of which are private."""
    private = POOL_OF_TRAINING_IMAGES
    dataset = load_dataset("digits")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 8, 8, 1), np.uint8)
    if private:
        images[:3] = dataset.train.read(np.arange(3))[0]
    pool = SyntheticPool(
        images=images,
        labels=(np.arange(40) // 4).astype(np.int32),
        class_names=dataset.class_names,
        digest="0" * 64,
    )
    config = default_config()
    config.network.update(name="convnet", widths=(8,), groups=4)
    config.views.base, config.views.mixed, config.views.synthetic = 2, 2, 1
    config.views.padding = 1
    config.pool.path = "pool"
    config.privacy.update(
        epsilon=8.0, delta=1e-4, expected_batch_size=20, updates=1, accountant="rdp"
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(SyntheticPool, "load", return_value=pool),
    ):
        try:
            Trainer(config, folder)
        except DPMixError as error:
            return True, f"refused: {str(error)[:60]}..."
    return False, "trains"


# Faults

POOL_OF_TRAINING_IMAGES = False


def _instead(owner, name, make):
    """Replaces owner.name by make(original)."""
    return mock.patch.object(owner, name, make(getattr(owner, name)))


def mixup_across_examples():
    def make(several):
        def mixed(self, images, labels, seeds):
            made, soft = several(self, images, labels, seeds)
            return (
                (made + tf.roll(made, 1, axis=0)) / 2,
                (soft + tf.roll(soft, 1, axis=0)) / 2,
            )

        return mixed

    return _instead(views.ViewMaker, "several", make)


def augmentation_looks_around():
    def make(call):
        def blended(self, images, draws):
            return call(self, (images + tf.roll(images, 5, axis=0)) / 2, draws)

        return blended

    return _instead(Augmentation, "__call__", make)


def each_view_clipped():
    """Each view is clipped, and an example's K clipped views are added up."""

    def make(clipped_gradient_sum):
        def by_view(mechanism, variables, examples, make_views, add, **settings):
            results = []
            for view in range(5):

                def one(*chunk, view=view):
                    made, soft = make_views(*chunk)
                    return made[:, view : view + 1], soft[:, view : view + 1]

                results.append(
                    clipped_gradient_sum(
                        mechanism, variables, examples, one, add, **settings
                    )
                )
            total = [
                sum(parts) for parts in zip(*(r.total for r in results), strict=True)
            ]
            return results[0]._replace(total=total)

        return by_view

    return _instead(private_step, "clipped_gradient_sum", make)


def sum_clipped():
    """Gradients are added up unclipped, and the sum is clipped."""

    def make(clipped_gradient_sum):
        loose = GaussianMechanism(plan_for(40, batch=8, noise=0.0, clip=1e9), seed=1)

        def after_the_sum(mechanism, *arguments, **settings):
            result = clipped_gradient_sum(loose, *arguments, **settings)
            total, _ = tf.clip_by_global_norm(result.total, mechanism.clip_norm)
            return result._replace(total=total)

        return after_the_sum

    return _instead(private_step, "clipped_gradient_sum", make)


def no_noise():
    def make(noisy_mean):
        def quiet(self, total, update):
            return [part / self._expected_batch_size for part in total]

        return quiet

    return _instead(GaussianMechanism, "noisy_mean", make)


def noise_halved():
    def make(noisy_mean):
        def half(self, total, update):
            noisy = noisy_mean(self, total, update)
            return [
                (n + t / self._expected_batch_size) / 2
                for n, t in zip(noisy, total, strict=True)
            ]

        return half

    return _instead(GaussianMechanism, "noisy_mean", make)


def one_variable_without_noise():
    def make(get_noised_result):
        def partly(self, sample_state, global_state):
            noised, *rest = get_noised_result(self, sample_state, global_state)
            noised[0] = sample_state[0]
            return noised, *rest

        return partly

    return _instead(SeededGaussianSumQuery, "get_noised_result", make)


def noise_used_again():
    def make(noisy_mean):
        return lambda self, total, update: noisy_mean(self, total, 0 * update)

    return _instead(GaussianMechanism, "noisy_mean", make)


def noise_follows_the_batch():
    def make(noisy_mean):
        def scaled(self, total, update):
            noisy = noisy_mean(self, total, update)
            # The length of the sum stands in for the number of examples in it.
            share = tf.linalg.global_norm(total) / self.clip_norm
            mean = [part / self._expected_batch_size for part in total]
            return [m + share * (n - m) for n, m in zip(noisy, mean, strict=True)]

        return scaled

    return _instead(GaussianMechanism, "noisy_mean", make)


def networks_not_checked():
    return _instead(dp_model, "validate_network", lambda original: lambda network: None)


def examples_drawn_twice():
    def make(indices):
        return lambda self, update: np.repeat(indices(self, update), 2)

    return _instead(PoissonBatches, "indices", make)


def fixed_order():
    def make(indices):
        def in_order(self, update):
            size = int(self.plan.expected_batch_size)
            return (np.arange(size) + update * size) % len(self.source)

        return in_order

    return _instead(PoissonBatches, "indices", make)


def numbers_not_looked_at():
    """Nothing checks that a batch belongs to the update it is used for."""
    return _instead(Account, "check", lambda check: lambda self, _: check(self, None))


@contextlib.contextmanager
def forgets_where_it_was():
    """After a stop, streams start over, so batches are used again."""

    def make(dataset):
        return lambda self, **settings: dataset(self, **settings | {"start": lambda: 0})

    with _instead(PoissonBatches, "dataset", make), numbers_not_looked_at():
        yield


@contextlib.contextmanager
def every_other_update_counted():
    def make(charge):
        def uncounted(self, update):
            charged = charge(self, update)
            with tf.control_dependencies([charged]):
                self._next.assign_sub(self._next % 2)
            return charged

        return uncounted

    with _instead(Account, "charge", make), numbers_not_looked_at():
        yield


@contextlib.contextmanager
def pool_of_training_images():
    global POOL_OF_TRAINING_IMAGES
    POOL_OF_TRAINING_IMAGES = True
    try:
        yield
    finally:
        POOL_OF_TRAINING_IMAGES = False


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """A fault and the check that catches it."""

    fault: str
    put_in: Callable[[], contextlib.AbstractContextManager]
    check: Callable[[], tuple[bool, str]]


EXHIBITS = [
    Exhibit(
        "examples mixed with each other before clipping",
        mixup_across_examples,
        sensitivity,
    ),
    Exhibit(
        "an augmentation that draws on other examples",
        augmentation_looks_around,
        sensitivity,
    ),
    Exhibit("K views clipped separately and added up", each_view_clipped, sensitivity),
    Exhibit(
        "the batch's sum clipped instead of each example's gradient",
        sum_clipped,
        sensitivity,
    ),
    Exhibit("no noise", no_noise, audited),
    Exhibit("half the noise", noise_halved, audited),
    Exhibit("no noise on one variable", one_variable_without_noise, noise_everywhere),
    Exhibit("the same noise in every update", noise_used_again, noise_fresh),
    Exhibit(
        "noise scaled by the actual batch size",
        noise_follows_the_batch,
        noise_whatever_the_batch,
    ),
    Exhibit("BatchNormalization accepted", networks_not_checked, nothing_but_gradients),
    Exhibit("each drawn example used twice", examples_drawn_twice, audited),
    Exhibit(
        "batches in a fixed order, accounted as Poisson sampling", fixed_order, poisson
    ),
    Exhibit("batches repeated after a stop", forgets_where_it_was, resumed),
    Exhibit(
        "epsilon counted once per two updates",
        every_other_update_counted,
        counted,
    ),
    Exhibit("training images in the pool", pool_of_training_images, pool_is_public),
]
