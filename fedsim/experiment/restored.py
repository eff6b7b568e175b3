"""The models of a run after a round whose checkpoint is kept, as torch modules: the global and the personalised ones.

A personalised model is the one that the client's accuracy is measured with: what the client keeps with what it would
take from the server next, as the strategy makes it of them.
"""

import math
from collections.abc import Callable, Sequence

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors import SafetensorError
from torch import nn

from fedsim.config import making
from fedsim.errors import ConfigError, message_of
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.kept_round import KeptRound, Metric, WantedRound, kept_round, lost_models
from fedsim.experiment.same_layers import check_layers
from fedsim.federation.client.evaluation import load_for_evaluation
from fedsim.federation.client.state import client_of, personalised_model
from fedsim.federation.data import InputsAndTargets
from fedsim.federation.engines.local import LocalEngine
from fedsim.federation.federation import Federation, federation_of
from fedsim.models.adapters import merge_
from fedsim.models.asymmetry import merge_fixed_
from fedsim.models.copies import copy_of
from fedsim.models.frozen import frozen_keys
from fedsim.models.parametrised import plain_
from fedsim.models.params import Params, fit
from fedsim.results.folder import RunFolder
from fedsim.training.evaluation import Criterion, evaluate

# How far a client's loss may be from the recorded one: other devices and cohorts round differently.
TOLERANCE = 1e-3


def restored_model(
    folder: RunFolder, client: int | None = None, wanted: WantedRound = "last", metric: Metric = "accuracy"
) -> nn.Module:
    """Return what `model_of` returns of what `kept_round` finds."""
    return model_of(kept_round(folder, client, wanted, metric))


def model_of(kept: KeptRound) -> nn.Module:
    """Return the global model after a round, or the personalised one of a client, in eval mode, as its author built it.

    Raises
    ------
    ConfigError
        If the data or the custom parts of the run are not there or have changed, or a file is damaged.
    """
    federation, client = federation_of(kept.config), kept.client
    check_layers(kept.folder, federation)
    try:
        if client is None:
            params = fit(federation.model(), global_model(kept), "the checkpoint")
            model = load_for_evaluation(federation, params, federation.calibration)
            # Frozen tensors and the user's code come from outside the checkpoint, and earlier versions sealed none.
            is_sealed = kept.server_round in kept.folder.manifests()
            if not is_sealed or frozen_keys(model) or kept.folder.read_env().get("files"):
                _check_loss(kept, model, federation.data.test(), federation.criterion)
        else:
            data = federation.data.client(client)
            params = _personalised(federation, kept, client)
            model = load_for_evaluation(federation, params, lambda: data.train[0], own=True)
            _check_loss(kept, model, data.test, federation.criterion)
    except ConfigError:
        raise
    except (KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{kept.folder.path} does not fit the model that its config builds now ({message_of(error)}); has the "
            "model or its version changed since it was run?"
        ) from error
    except (OSError, SafetensorError) as error:
        raise _damaged(kept.folder, error) from error
    restored = copy_of(model).eval()
    plain_(restored)
    merge_(restored)
    merge_fixed_(restored)
    return restored


def global_model(kept: KeptRound) -> Params:
    """Read the global model after a round, under all keys of the model's state dict except those that are frozen.

    Raises
    ------
    ConfigError
        If the file is damaged.
    """
    try:
        return Checkpoints(kept.folder.checkpoints).global_model(kept.server_round)
    except (OSError, SafetensorError) as error:
        raise _damaged(kept.folder, error) from error


def make_personalised(
    federation: Federation, kept: KeptRound, clients: Sequence[int], use: Callable[[int, Params], None]
) -> dict[int, str]:
    """Make the models of clients, each by the client as it would make it to evaluate it after the round.

    Parameters
    ----------
    use
        Function of a client and its model, called for each in turn.

    Returns
    -------
    reasons
        Why the models of some clients cannot be made, by client.
    """
    strategy = making.make_strategy(kept.config, federation.model(), federation.calibration())
    strategy.clients = kept.config.clients
    app = ClientApp()

    @app.evaluate()
    def keep(message: Message, context: Context) -> Message:
        use(client_of(context), personalised_model(federation, message, context))
        return Message(RecordDict(), reply_to=message)

    with LocalEngine(lambda: app, kept.config.clients, workers=1) as engine:
        Checkpoints(kept.folder.checkpoints).read(kept.server_round, strategy, engine)
        strategy.evaluate_clients = None  # a client may not be among those that the run evaluates
        messages = strategy.configure_evaluate(kept.server_round, strategy.arrays, ConfigRecord(), engine)
        replies = list(engine.handle([each for each in messages if each.metadata.dst_node_id in clients]))
    return {reply.metadata.src_node_id: str(reply.error.reason) for reply in replies if reply.has_error()}


def _personalised(federation: Federation, kept: KeptRound, client: int) -> Params:
    found: list[Params] = []
    failed = make_personalised(federation, kept, [client], lambda _, params: found.append(params))
    if not found:
        raise ConfigError(f"the personalised model of client {client} cannot be built: {failed[client]}")
    return found[0]


def _check_loss(kept: KeptRound, model: nn.Module, examples: InputsAndTargets, criterion: Criterion) -> None:
    """Check that a model is the one that was evaluated in the run."""
    recorded = kept.recorded.get("loss")
    # A copy, as some models change when they are evaluated.
    loss = evaluate(copy_of(model).eval(), *examples, criterion).loss
    if recorded is not None and not math.isclose(loss, recorded, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        whose = "the global model" if kept.client is None else f"client {kept.client}"
        raise ConfigError(
            f"{kept.folder.path}: {whose} has a loss of {loss:.6g} now, and had {recorded:.6g} in round "
            f"{kept.server_round}; the data, the code or the versions have changed since, so it cannot be restored"
        )


def _damaged(folder: RunFolder, error: Exception) -> ConfigError:
    return lost_models(folder, f"{folder.checkpoints} is damaged ({message_of(error)})", "run the experiment again")
