"""Fine-tuning for evaluation: a little more training of a client's model, which is then discarded."""

from fedsim.config.choices import method_name
from fedsim.errors import ConfigError
from fedsim.federation.data import InputsAndTargets
from fedsim.federation.federation import Federation
from fedsim.models.params import Params, flat_copy, load_state_, state_of
from fedsim.seeds import rng
from fedsim.strategy import Strategy
from fedsim.training import LocalPlan, Phase, Ruled, train_
from fedsim.training.settings import without_schedule


def fine_tuned_layers(federation: Federation, strategy: Strategy) -> str:
    """Return the expression of the layers that clients fine-tune: the config's, or the strategy's.

    Raises
    ------
    ConfigError
        If it cannot be read, or holds no parameter, or clients' own models have more than the run's.
    """
    if federation.client_rule.has_network:
        raise ConfigError(
            f"evaluation.models holds 'fine-tuned', and strategy.name = {method_name(federation.config)!r} evaluates "
            "more than the model, which has no layers to fine-tune; leave it out"
        )
    chosen = federation.config.evaluation.fine_tune_layers
    layers = strategy.fine_tuning() if chosen == "auto" else chosen
    name = f"evaluation.fine_tune_layers = {chosen!r}" + (f", here {layers!r}," if layers != chosen else "")
    try:
        group = federation.layers.group(layers)
    except ValueError as error:
        raise ConfigError(f"{name} names no layers: {error}") from error
    if not federation.layers.keys(group, buffers=False):
        known = ", ".join(federation.layers.names)
        raise ConfigError(f"{name} must hold a parameter to train; name other layers, of: {known}")
    return layers


def fine_tune(
    federation: Federation, params: Params, train: InputsAndTargets, server_round: int, client: int, layers: str
) -> Params:
    """Return a client's model after training on its own data for as long as ``[evaluation]`` says.

    It has the settings of ``[local]``, but a constant step size, and a new optimiser whose state is not kept.

    Parameters
    ----------
    params
        Personalised model of the client, all entries.
    train
        Training examples of the client.
    layers
        Expression for the layers to train; all others stay as they are.
    """
    config = federation.config
    model, settings = federation.model(), config.evaluation
    load_state_(model, params)
    federation.seed_streams("fine-tune dropout", server_round, client)
    train_(
        model,
        *train,
        plan=LocalPlan((Phase(layers, epochs=settings.fine_tune_epochs, lr=settings.fine_tune_lr),)),
        settings=without_schedule(federation.local),
        rng=rng(config.seed, "fine-tune", server_round, client),
        augmentation=federation.data.augmentation,
        ruled=Ruled(training_loss=federation.objective_of(train[1])),
    )
    return flat_copy(state_of(model))
