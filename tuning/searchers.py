"""Searchers and schedulers of Ray Tune and Optuna, as a config names them.

Reads the config's `sweep` section, the space and the trials that are known; writes nothing.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, HyperBandScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from longtail.config import Config
from longtail.sweep_results import Trial
from longtail.sweeping import Range
from tuning.spaces import Parameter, Point

SEARCHED = "searched"

#: Settings that may change between two epochs: nothing that was built before, and no weight's shape, hangs on them.
CHANGEABLE = (
    *("learning_rate", "weight_decay", "id_dropout", "max_grad_norm"),
    *("distill_weight", "distill_margin", "distill_teacher", "min_purchases", "min_confidence", "channel_loss_weight"),
    *("dropout", "content_weight", "alignment_decay"),
)


def distributions(space: Sequence[Parameter], start: Point) -> dict[str, BaseDistribution]:
    """The space as Optuna has it."""
    found: dict[str, BaseDistribution] = {}
    for one in space:
        if not isinstance(one.values, Range):
            found[one.setting] = CategoricalDistribution(one.choices(start[one.setting]))
        elif one.values.whole:
            found[one.setting] = IntDistribution(int(one.values.low), int(one.values.high), log=one.values.log)
        else:
            found[one.setting] = FloatDistribution(float(one.values.low), float(one.values.high), log=one.values.log)
    return found


def random_searcher(points: Sequence[Point], max_concurrent: int) -> SearchAlgorithm:
    """Plain random search over points that were drawn before."""
    # TuneConfig's own max_concurrent_trials is ignored beside this generator.
    return BasicVariantGenerator(points_to_evaluate=[dict(point) for point in points], max_concurrent=max_concurrent)


def tpe_searcher(space: Sequence[Parameter], start: Point, first: Sequence[Point], known: Sequence[Trial], config: Config) -> Searcher:
    """Optuna's TPE, told what is known, that begins with the points `first`."""
    settings = config.sweep
    # Another seed for what is left of an interrupted sweep: the same one would suggest the points that are known.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # both have been there, unchanged, since Optuna 2
        sampler = TPESampler(seed=config.run.seed * 1000 + len(known), n_startup_trials=settings.num_startup, multivariate=True, constant_liar=True)
    search = OptunaSearch(distributions(space, start), metric=SEARCHED, mode="max", points_to_evaluate=[dict(one) for one in first], sampler=sampler)
    for trial in known:
        search.add_evaluated_point(trial.point, trial.searched)
    return ConcurrencyLimiter(search, settings.max_concurrent)


def scheduler_of(config: Config, space: Sequence[Parameter], start: Point) -> TrialScheduler:
    """The scheduler by the config; an epoch is a step of it.

    Raises:
        ValueError: it changes settings while trials train, and the space has others.
    """
    settings, epochs = config.sweep, config.train.epochs
    common: dict[str, Any] = {"metric": SEARCHED, "mode": "max"}
    if settings.scheduler == "asha":
        return AsyncHyperBandScheduler(**common, max_t=epochs, grace_period=min(settings.grace_epochs, epochs), reduction_factor=settings.reduction_factor)
    if settings.scheduler == "hyperband":
        return HyperBandScheduler(**common, max_t=epochs, reduction_factor=settings.reduction_factor)
    if settings.scheduler == "pbt":
        check_pbt(config, space)
        mutations = {one.setting: _mutation(one, start) for one in space}
        return PopulationBasedTraining(**common, perturbation_interval=settings.grace_epochs, hyperparam_mutations=mutations)
    return FIFOScheduler()  # type: ignore[no-untyped-call]  # Ray's has no annotation


def check_pbt(config: Config, space: Sequence[Parameter]) -> None:
    """Refuse a space that population based training cannot change between two epochs.

    Raises:
        ValueError: it has such a setting, or trials have too few epochs.
    """
    fixed = [one.setting for one in space if one.setting.split(".")[0] not in ("train", "rankers") or one.setting.split(".")[-1] not in CHANGEABLE]
    if fixed:
        raise ValueError(
            f'sweep.scheduler = "pbt" changes settings in the middle of training, and {", ".join(fixed)} cannot be: what is built before training, or a '
            f"weight's shape, hangs on it. Search {', '.join(CHANGEABLE)} alone, or take asha."
        )
    if config.train.epochs <= config.sweep.grace_epochs:
        raise ValueError(
            f'sweep.scheduler = "pbt" changes settings every sweep.grace_epochs = {config.sweep.grace_epochs} epochs, and train.epochs = '
            f"{config.train.epochs}: raise train.epochs."
        )


def _mutation(one: Parameter, start: Point) -> Any:
    if not isinstance(one.values, Range):
        return list(one.choices(start[one.setting]))
    low, high = one.values.low, one.values.high
    if one.values.whole:
        return tune.lograndint(int(low), int(high) + 1) if one.values.log else tune.randint(int(low), int(high) + 1)
    return tune.loguniform(low, high) if one.values.log else tune.uniform(low, high)
