"""The models of a run after its last checkpoint, as torch modules: the global one, and what each client uses."""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors import SafetensorError
from torch import nn

from fedsim.config import making
from fedsim.errors import ConfigError
from fedsim.experiment.checkpoints import Checkpoints
from fedsim.experiment.same_layers import check_layers
from fedsim.federation.client.evaluation import load_for_evaluation
from fedsim.federation.client.state import personalised_model
from fedsim.federation.engines.local import LocalEngine
from fedsim.federation.federation import Federation, federation_of
from fedsim.models.frozen import copy_of
from fedsim.models.params import Params
from fedsim.results.folder import RunFolder
from fedsim.strategy import Strategy


def restored_model(folder: RunFolder, client: int | None = None) -> nn.Module:
    """Return the global model after a run's last checkpoint, or the personalised one of a client, in eval mode.

    A personalised model is the one that the client's accuracy is measured with: its own layers with what it would take
    from the server next, as the strategy makes it of them.

    Raises
    ------
    ConfigError
        If there is no checkpoint or no such client, or the data or the custom parts of the run are not there.
    """
    config, checkpoints = folder.read_config(), Checkpoints(folder.checkpoints)
    if not (server_round := checkpoints.newest()):
        raise ConfigError(f"{folder.path} has no checkpoint; let 'fedsim run' resume it first")
    if client is not None and not 0 <= client < config.clients:
        raise ConfigError(f"client = {client} must be from 0 to {config.clients - 1}")
    federation = federation_of(config)
    check_layers(folder, federation)
    try:
        if client is None:
            params, of = checkpoints.global_model(server_round), 0
            params = {key: value.to(federation.device) for key, value in params.items()}
        else:
            strategy = making.make_strategy(config, federation.model(), federation.calibration())
            params, of = _personalised(federation, strategy, checkpoints, server_round, client), client
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder.checkpoints} is damaged ({error}); run the experiment again") from error
    model = load_for_evaluation(federation, params, lambda: federation.data.client(of).train[0])
    return copy_of(model).eval()


def _personalised(
    federation: Federation, strategy: Strategy, checkpoints: Checkpoints, server_round: int, client: int
) -> Params:
    found: list[Params] = []
    app = ClientApp()

    @app.evaluate()
    def keep(message: Message, context: Context) -> Message:
        found.append(personalised_model(federation, message, context))
        return Message(RecordDict(), reply_to=message)

    with LocalEngine(lambda: app, federation.config.clients, workers=1) as engine:
        checkpoints.read(server_round, strategy, engine)
        strategy.evaluate_clients = None  # this client may not be among those that the run evaluates
        messages = strategy.configure_evaluate(server_round, strategy.arrays, ConfigRecord(), engine)
        list(engine.handle([message for message in messages if message.metadata.dst_node_id == client]))
    return found[0]
